"""What becomes of a pod at admission: the sidecar is put into it, or it is let through, or refused.

Pure. A pod that we cannot handle is let through unchanged with a warning: no pod is ever held up by us. Only an
annotation of ours that cannot be understood is refused.

On Knative the server is the container with the port named ``user-port``, and queue-proxy is pointed at the sidecar.
Elsewhere a pod asks for the sidecar by the label ``freeze.extensions.knative.dev/inject: "true"``, and its Service
must have a *named* target port: the sidecar takes over that name. It is the name of the pod's only named TCP port; of
several the one that is called ``http``, ``http1``, ``h2c`` or ``grpc``, if only one is.

Nothing that is put into a pod may have the API server refuse it, or the kubelet not start it: what the sidecar asks for
follows what the pod has (``_resources``, ``_security``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freeze_proxy.annotations import (
    NEVER_FROZEN,
    PREFIX,
    SIDECARS,
    Refused,
    defaults_trouble,
    names,
    said,
    usable,
)
from freeze_proxy.webhook import probes
from freeze_proxy.webhook.patch import copied, difference
from freeze_proxy.webhook.ports import STEADY, all_containers, named_ports, serving_port, used_ports
from freeze_proxy.webhook.probes import Unfit

__all__ = ["Options", "Outcome", "defaults_trouble", "inject"]

NAME = "freeze-proxy"
EXCLUDED_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "freeze-proxy", "knative-serving"})
SANDBOXED = ("gvisor", "runsc", "kata")
"""How the names of runtime classes begin whose processes are not the node's: there is nothing to freeze."""
IMAGE_USER = 65532
"""Whom the sidecar's image runs as: its Dockerfile says so, and a test compares them."""

_MOST_NAMED = 20
_TOKEN_FOLDER = "/var/run/secrets/freeze-proxy"  # noqa: S105 - where it is, not what
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_VARIABLES = {
    "mode": "MODE",
    "grace": "GRACE",
    "thaw-timeout": "THAW_TIMEOUT",
    "breathe": "BREATHE",
    "idle-stream": "IDLE_STREAM",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the cluster says; ``defaults``: annotations without their prefix, from the ConfigMap.

    ``native_sidecars``: it has restartable init containers; ``native_ports``: and Services find their ports by name.
    """

    image: str
    daemon_port: int = 9696
    audience: str = "freeze"
    token_seconds: int = 600
    native_sidecars: bool = True
    native_ports: bool = True
    defaults: Mapping[str, str] = field(default_factory=dict)
    cpu_request: str = "10m"
    cpu_limit: str = "1"
    memory_request: str = "16Mi"
    memory_limit: str = "128Mi"
    excluded_namespaces: frozenset[str] = EXCLUDED_NAMESPACES
    sandboxed_runtime_classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outcome:
    """``patch``: JSON Patch (RFC 6902), empty: unchanged. ``refused``: empty, or the sentence of the denial."""

    patch: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: str = ""


def inject(pod: Mapping[str, Any], namespace: str, options: Options, nonce: str) -> Outcome:
    """The decision on one pod; never raises, whatever JSON it is given. ``nonce``: letters, digits, ``-``, ``_``."""
    warnings: list[str] = []
    try:
        new = _injected(pod, namespace, options, nonce, warnings)
        return Outcome(difference(pod, new, "") if new is not None else [], warnings)
    except Refused as refusal:
        return Outcome([], warnings, str(refusal))
    except Unfit as reason:
        warnings.append(f"freeze-proxy: the pod is left as it is, and never frozen: {reason}.")
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError):
        warnings.append("freeze-proxy: the pod is left as it is, and never frozen: it has not the form of a pod.")
    return Outcome([], warnings)


def _injected(
    pod: Mapping[str, Any], namespace: str, options: Options, nonce: str, warnings: list[str]
) -> dict[str, Any] | None:
    """The new pod, or nothing where none is wanted."""
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    knative = "serving.knative.dev/revisionUID" in labels
    wanted = labels.get(PREFIX + "inject")
    if wanted == "false" or (not knative and wanted != "true"):
        return None
    containers = pod["spec"].get("containers") or []
    inside = any(each["name"] == NAME for each in all_containers(pod["spec"]))
    if inside and labels.get(PREFIX + "injected") == "true":
        return None
    if inside:
        raise Unfit(f"it has a container {NAME} that this webhook did not put there, perhaps the proof of concept's")
    if labels.get(PREFIX + "injected") is not None:
        raise Unfit(f"its label {PREFIX}injected says that it has the sidecar already; take the label away")
    told, unknown = said(metadata.get("annotations") or {})
    warnings += unknown
    told = {**usable(options.defaults), **told}
    if told.get("mode") == "off" or told.get("attach") == "ambient" or told.get("inject") == "false":
        return None
    frozen = _frozen(containers, told, options)
    native = options.native_sidecars and (knative or options.native_ports)
    _check_fit(pod["spec"], namespace, options, native)
    new = _Pod(pod, knative, native, frozen, options)
    warnings += new.cautions()
    return new.with_sidecar(told, nonce)


def _check_fit(spec: Mapping[str, Any], namespace: str, options: Options, native: bool) -> None:
    runtime = spec.get("runtimeClassName") or ""
    if namespace in options.excluded_namespaces:
        raise Unfit(f"the namespace {namespace} is excluded")
    if spec.get("hostNetwork"):
        raise Unfit("it is in the host's network, where its ports are not its own")
    if runtime.startswith(SANDBOXED) or runtime in options.sandboxed_runtime_classes:
        raise Unfit(f"its runtime class {runtime} keeps its processes where the node's daemon cannot freeze them")
    if not spec.get("serviceAccountName"):  # API servers give every pod one before they ask us, but for static pods
        raise Unfit("it has no service account, and so no token that says which pod it is; static pods have none")
    if (spec.get("os") or {}).get("name") == "windows":
        raise Unfit("it is for Windows")
    if not native and spec.get("restartPolicy") in ("Never", "OnFailure"):
        raise Unfit("it is to end by itself, which a sidecar would keep it from before Kubernetes 1.33")


def _frozen(containers: list[Any], told: Mapping[str, str], options: Options) -> list[str]:
    """The names of the containers to freeze; only a pod's own annotation can be refused."""
    there = [each["name"] for each in containers]
    named = told.get("containers")
    if named is not None:
        wanted = names(named)
        missing = [name for name in wanted if name not in there]
        if not missing:
            return wanted
        if named != options.defaults.get("containers", "").strip():
            can = ", ".join(str(name) for name in there[:_MOST_NAMED] if name not in NEVER_FROZEN)
            raise Refused(f"Annotation {PREFIX}containers: the pod has no container {missing[0]!r}, only {can}.")
        if found := [name for name in wanted if name in there]:
            return found
    return [name for name in there if name not in NEVER_FROZEN | SIDECARS]


class _Pod:
    """A copy of the pod, in the making."""

    def __init__(
        self, pod: Mapping[str, Any], knative: bool, native: bool, frozen: list[str], options: Options
    ) -> None:
        self.pod: dict[str, Any] = copied(dict(pod))
        self.spec = self.pod["spec"]
        self.containers = self.spec["containers"]
        self.knative, self.native = knative, native
        self.frozen = frozen
        self.options = options
        if not frozen:
            raise Unfit("it has no container to freeze")
        self.server, self.port = serving_port(self.containers, knative)
        self.user_port = self.port["containerPort"]
        if type(self.user_port) is not int or not 0 < self.user_port < 65536:
            raise Unfit("its serving port has no number")
        for each in self._frozen_containers():
            if any(port.get("hostPort") for port in each.get("ports") or []):
                raise Unfit(f"its container {each['name']} has a hostPort, where requests go past the sidecar")
        used = used_ports(self.spec)
        free = (port for port in range(9999, 1024, -1) if port not in used)
        self.data, self.admin = next(free, 0), next(free, 0)
        if not self.admin:
            raise Unfit("it has no two ports left for the sidecar")

    def cautions(self) -> list[str]:
        """Warnings of what finds a server that may be frozen, and does not wake it."""
        ports = [
            f"freeze-proxy: port {port['containerPort']} of container {each['name']} is not relayed: what comes in "
            "there finds the container frozen at times, and does not wake it."
            for each in self._frozen_containers()
            for port in each.get("ports") or []
            if port is not self.port
        ]
        return ports + [
            f"freeze-proxy: container {each['name']} has a preStop hook of the kind exec, which the runtime refuses if "
            "the pod is deleted while it is frozen; one of the kind httpGet waits for the thaw."
            for each in self._frozen_containers()
            if ((each.get("lifecycle") or {}).get("preStop") or {}).get("exec")
        ]

    def with_sidecar(self, told: Mapping[str, str], nonce: str) -> dict[str, Any]:
        waits = any(
            each.get("startupProbe") or any((each.get(kind) or {}).get("exec") for kind in STEADY)
            for each in self._frozen_containers()
        )
        readiness = self._redirect_queue_proxy() if self.knative else []
        moved, liveness = self._move_probes()
        sidecar: dict[str, Any] = {
            "name": NAME,
            "image": self.options.image,
            "ports": [{"name": "freeze-admin", "containerPort": self.admin, "protocol": "TCP"}],
            "env": self._environment(told, readiness + moved, liveness, waits, nonce),
        }
        if not self.knative:
            self._take_over_name(sidecar["ports"])
        volume = self._token_volume()
        sidecar |= {
            **self._resources(),
            # The hook thaws at once and answers when no request will come; only the pod's spec holds the nonce.
            "lifecycle": {"preStop": {"httpGet": {"path": f"/drain/{nonce}", "port": self.admin, "scheme": "HTTP"}}},
            "securityContext": self._security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [{"name": volume, "mountPath": _TOKEN_FOLDER, "readOnly": True}],
        }
        # It has no probe of its own: one that waited for the server would hold up a native sidecar's pod for ever.
        metadata = self.pod["metadata"]
        if self.native:
            # The last: the init containers before it have run by then, and need nothing of it.
            self.spec["initContainers"] = [
                *(self.spec.get("initContainers") or []),
                {**sidecar, "restartPolicy": "Always"},
            ]
        else:
            self.containers.insert(0, sidecar)
            # Else kubectl logs and exec would take the first.
            metadata["annotations"] = {_DEFAULT_CONTAINER: self.server["name"], **(metadata.get("annotations") or {})}
        metadata["labels"] = {**(metadata.get("labels") or {}), PREFIX + "injected": "true"}
        return self.pod

    def _resources(self) -> dict[str, Any]:
        """Requests, as a pod that is scaled by its CPU needs of each container; and limits.

        The limits of the whole pod, where it has them (Kubernetes 1.34), would have to be wide enough. Where every
        container has a CPU limit, a quota may demand one.
        """
        if self.spec.get("resources"):
            return {}
        limits = {"memory": self.options.memory_limit}
        if all("cpu" in ((each.get("resources") or {}).get("limits") or {}) for each in self.containers):
            limits["cpu"] = self.options.cpu_limit
        requests = {"cpu": self.options.cpu_request, "memory": self.options.memory_request}
        return {"resources": {"requests": requests, "limits": limits}}

    def _security(self) -> dict[str, Any]:
        """Restricted, by the Pod Security Standards. The image's user is said only where the pod's would be root."""
        root = (self.spec.get("securityContext") or {}).get("runAsUser") == 0
        return {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            **({"runAsUser": IMAGE_USER} if root else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        }

    def _frozen_containers(self) -> list[dict[str, Any]]:
        frozen = set(self.frozen)
        return [each for each in self.containers if each["name"] in frozen]

    def _redirect_queue_proxy(self) -> list[dict[str, Any]]:
        """Points queue-proxy at the sidecar, and gives back the readiness probes that it ran."""
        queue: dict[str, Any] = next((each for each in self.containers if each["name"] == "queue-proxy"), {})
        env = {each["name"]: each for each in queue.get("env") or []}
        if env.get("CONCURRENCY_STATE_ENDPOINT", {}).get("value"):
            raise Unfit("its queue-proxy pauses it already: take concurrency-state-endpoint out of config-deployment")
        if not env.get("USER_PORT", {}).get("value"):
            raise Unfit("its queue-proxy has no USER_PORT, as Knative Serving 0.25 and later give it")
        env["USER_PORT"]["value"] = str(self.data)
        probe = env.get("SERVING_READINESS_PROBE", {})
        if not probe.get("value"):
            return []
        probe["value"], originals = probes.serving(probe["value"], named_ports(self.server), self.user_port, self.admin)
        return originals

    def _move_probes(self) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """Moves what the kubelet asks the frozen containers; gives back the readiness and the liveness originals."""
        readiness, liveness = [], {}
        for each in self._frozen_containers():
            ports = named_ports(each)
            if probes.movable(each.get("readinessProbe")):
                readiness.append(probes.original(each["readinessProbe"], ports, self.user_port))
                each["readinessProbe"] = probes.moved(each["readinessProbe"], "/ready", self.admin)
            if probes.movable(each.get("livenessProbe")):
                liveness[each["name"]] = probes.original(each["livenessProbe"], ports, self.user_port)
                each["livenessProbe"] = probes.moved(each["livenessProbe"], f"/live/{each['name']}", self.admin)
        return readiness, liveness

    def _take_over_name(self, ports: list[dict[str, Any]]) -> None:
        """The Service's target port becomes the sidecar's; what else named it in its container gets the number."""
        name = self.port.pop("name")
        ports.insert(0, {"name": name, "containerPort": self.data, "protocol": "TCP"})
        hooks = self.server.get("lifecycle") or {}
        for asks in (*(self.server.get(kind) for kind in (*STEADY, "startupProbe")), *hooks.values()):
            for action in (asks or {}).values():
                if isinstance(action, dict) and action.get("port") == name:
                    action["port"] = self.user_port

    def _token_volume(self) -> str:
        volumes = self.spec.get("volumes") or []
        name = "freeze-proxy-token"
        while any(each["name"] == name for each in volumes):
            name += "-x"
        token = {
            "audience": self.options.audience,
            "expirationSeconds": self.options.token_seconds,
            "path": "token",
        }
        self.spec["volumes"] = [*volumes, {"name": name, "projected": {"sources": [{"serviceAccountToken": token}]}}]
        return name

    def _environment(
        self,
        told: Mapping[str, str],
        readiness: list[dict[str, Any]],
        liveness: dict[str, dict[str, Any]],
        waits: bool,
        nonce: str,
    ) -> list[dict[str, Any]]:
        """What the sidecar is told; HOST_IP stands before its use, as the kubelet expands in order."""
        grace = self.spec.get("terminationGracePeriodSeconds")
        values = {
            # The brackets are for IPv6, and do no harm elsewhere.
            "DAEMON": f"[$(HOST_IP)]:{self.options.daemon_port}",
            "TARGET": f"127.0.0.1:{self.user_port}",
            "LISTEN": f"127.0.0.1:{self.data}" if self.knative else f"[::]:{self.data}",
            "ADMIN": f":{self.admin}",
            "TOKEN_FILE": f"{_TOKEN_FOLDER}/token",
            "CONTAINERS": ",".join(self.frozen),
            **{variable: told[name] for name, variable in _VARIABLES.items() if name in told},
            "READINESS_PROBE": probes.written(readiness[0] if len(readiness) == 1 else readiness) if readiness else "",
            "LIVENESS_PROBES": probes.written(liveness) if liveness else "",
            "AWAIT_REQUEST": "true" if waits else "",
            "NONCE": nonce,
            "DRAIN_URL": "http://127.0.0.1:8022/wait-for-drain" if self.knative else "",
            "TERMINATION_GRACE": f"{min(max(int(grace), 1), 10**8)}s" if grace is not None else "",
        }
        return [
            {"name": "HOST_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}},
            {
                "name": "FREEZE_PROXY_POD_IP",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}},
            },
            *({"name": f"FREEZE_PROXY_{name}", "value": value} for name, value in values.items() if value),
        ]
