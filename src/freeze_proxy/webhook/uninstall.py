"""``freeze-proxy uninstall --check``: what there still is of freeze-proxy in a cluster, and what to do about it.

It only looks. What it finds is in the order in which it should go: who puts sidecars into pods first, then the pods
that have one, the daemons last. Nothing is frozen when they have gone: a daemon thaws everything before it leaves.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2
from lightkube import AsyncClient
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.apps_v1 import DaemonSet, Deployment
from lightkube.resources.core_v1 import Namespace, Pod
from lightkube.resources.rbac_authorization_v1 import ClusterRole, ClusterRoleBinding

from freeze_proxy.annotations import PREFIX
from freeze_proxy.apiserver import PATIENCE, ApiServer, NotConfigured, Unreachable
from freeze_proxy.webhook.settings import AMBIENT, CONFIGURATION, DAEMON, WEBHOOK, Failure

INJECTED = PREFIX + "injected"
_SOME = 500
"""Pods that are asked for at once."""
_MOST_NAMESPACES = 20
_CLEAN, _LEFT = 0, 1


@dataclass(frozen=True, slots=True)
class Seen:
    """What is in the cluster; ``pods``: how many have a sidecar, by namespace."""

    configuration: bool = False
    deployment: bool = False
    daemons: bool = False
    namespace: str = ""
    """Empty, ``Active`` or ``Terminating``."""
    roles: tuple[str, ...] = ()
    """Cluster roles and their bindings, as kubectl names them."""
    pods: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that is left: what it is, what it still does, what to do."""

    what: str
    does: str
    todo: str


def left(seen: Seen, namespace: str) -> list[Left]:
    """What of all that is left, in the order in which it should go. Pure."""
    found = []
    if seen.configuration:
        found.append(
            Left(
                f"MutatingWebhookConfiguration {CONFIGURATION}",
                "new pods get the sidecar" if seen.deployment else "nobody answers it; pods start without the sidecar",
                f"kubectl delete mutatingwebhookconfiguration {CONFIGURATION}",
            )
        )
    several = sorted(seen.pods.items())
    for where, count in several[:_MOST_NAMESPACES]:
        does = "freezes between requests" if seen.daemons else "only relays: without a daemon nothing is frozen"
        again = " once the configuration is gone" if seen.configuration else ""
        found.append(
            Left(
                f"{count} pod{'s' if count > 1 else ''} with the sidecar in {where}",
                f"works; the sidecar {does}; new ones take their place without it{again}",
                f"kubectl delete pod -n {where} -l {INJECTED}=true",
            )
        )
    if several[_MOST_NAMESPACES:]:
        found.append(Left(f"pods in {len(several) - _MOST_NAMESPACES} more namespaces", "likewise", "likewise"))
    if seen.deployment:
        todo = f"kubectl delete deployment -n {namespace} {WEBHOOK}"
        found.append(Left(f"Deployment {WEBHOOK}", "answers reviews", todo))
    if seen.daemons:
        todo = f"kubectl delete daemonset -n {namespace} {DAEMON}"
        found.append(Left(f"DaemonSet {DAEMON}", "freezes for pods; thaws all when it goes", todo))
    if seen.namespace:
        going = seen.namespace == "Terminating"
        does, todo = ("is going", "wait") if going else ("holds the rest", f"kubectl delete namespace {namespace}")
        found.append(Left(f"Namespace {namespace}", does, todo))
    found += [Left(role, "rights of what has gone", f"kubectl delete {role}") for role in seen.roles]
    return found


def run(kubeconfig: str | None, context: str | None, namespace: str, as_json: bool) -> int:
    """Look, and print what is left; returns 0 if nothing is, otherwise 1. Raises ``Failure``."""
    try:
        seen = asyncio.run(_look(ApiServer(kubeconfig, context, "user"), namespace))
    except (NotConfigured, Unreachable) as reason:
        raise Failure(str(reason)) from reason
    found = left(seen, namespace)
    if as_json:
        print(json.dumps({"clean": not found, "left": [asdict(each) for each in found]}, indent=2))
    else:
        _print(found)
    return _LEFT if found else _CLEAN


async def _look(server: ApiServer, namespace: str) -> Seen:
    client = AsyncClient(
        config=server.config, timeout=httpx2.Timeout(PATIENCE), trust_env=False, transport=server.transport(2)
    )

    async def there(kind: Any, name: str, where: str | None = None) -> Any:
        plural = kind.__name__.lower() + "s"

        async def ask() -> object:
            return await client.get(kind, name, namespace=where) if where else await client.get(kind, name)

        return await server.find(ask, f"give the {kind.__name__} {name}", f"get {plural}")

    try:
        kept = await there(Namespace, namespace)
        roles = [
            f"{kind.__name__.lower()} {name}"
            for kind in (ClusterRoleBinding, ClusterRole)
            for name in (DAEMON, AMBIENT, WEBHOOK)
            if await there(kind, name) is not None
        ]
        return Seen(
            configuration=await there(MutatingWebhookConfiguration, CONFIGURATION) is not None,
            deployment=await there(Deployment, WEBHOOK, namespace) is not None,
            daemons=await there(DaemonSet, DAEMON, namespace) is not None,
            namespace=(kept.status.phase if kept.status else None) or "Active" if kept else "",
            roles=tuple(roles),
            pods=await _pods(client, server.call),
        )
    finally:
        await client.close()


async def _pods(
    client: AsyncClient, call: Callable[[Callable[[], Awaitable[Counter[str]]], str, str], Awaitable[Counter[str]]]
) -> Counter[str]:
    """How many have a sidecar, by namespace."""

    async def ask() -> Counter[str]:
        found: Counter[str] = Counter()
        async for pod in client.list(Pod, namespace="*", labels={INJECTED: "true"}, chunk_size=_SOME):
            found[(pod.metadata.namespace if pod.metadata else None) or ""] += 1
        return found

    return await call(ask, "list the pods with the sidecar", "list pods in all namespaces")


def _print(found: list[Left]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)  # commands are there to be copied
    if not found:
        console.print(Text("Nothing of freeze-proxy is left in this cluster."))
        return
    for each in found:
        console.print(Text.assemble((each.what, "bold"), f": {each.does}\n", (f"    {each.todo}", "yellow")))
    console.print(Text("\nFrom top to bottom is the order in which nothing is lost. Pods that are left go on working."))
