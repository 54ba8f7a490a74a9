"""Which of the node's pods want to be frozen without a sidecar, and how. Pure.

A pod asks by the annotation ``freeze.extensions.knative.dev/attach: ambient``; one that says nothing does so by a label
of the same name on its namespace. What else its annotations say is read as the webhook reads it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from freeze_proxy import settings
from freeze_proxy.annotations import NEVER_FROZEN, PREFIX, Refused, names, said, usable
from freeze_proxy.gate import Settings

ATTACH = PREFIX + "attach"
AMBIENT = "ambient"
SIDECAR = "freeze-proxy"
QUEUE_PROXY = "queue-proxy"
_STEADY = ("livenessProbe", "readinessProbe")


class Unfit(Exception):
    """The pod asks for it, but cannot be served so; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one pod wants, as far as the API server knows.

    ``told``: all its settings. ``containers``: the names of those to be frozen, ``ids``: of those that run. ``ready``:
    Kubernetes says that the server may be used, and that it has started. ``proven_by_request``: it may be frozen only
    once a request has ended. ``queue_proxy``: it has one, to be asked at the pod's address ``ip``.
    """

    uid: str
    namespace: str
    name: str
    mode: str
    gate: Settings = field(compare=False)
    told: tuple[tuple[str, str], ...]
    containers: tuple[str, ...]
    ids: tuple[str, ...]
    ready: bool
    proven_by_request: bool
    ending: bool
    any_socket: bool
    queue_proxy: bool
    ip: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def asks(pod: Any, namespace_labels: Mapping[str, str]) -> bool:
    """Whether it wants to be served here at all. ``pod`` is as the API server gives it (core/v1, by lightkube)."""
    metadata, spec = pod.metadata, pod.spec
    if metadata is None or spec is None or not metadata.uid:
        return False
    annotations, labels = metadata.annotations or {}, metadata.labels or {}
    wanted = annotations.get(ATTACH, namespace_labels.get(ATTACH, "")).strip()
    everyone = [*(spec.containers or ()), *(spec.initContainers or ())]
    served = labels.get(PREFIX + "injected") == "true" or any(each.name == SIDECAR for each in everyone)
    over = pod.status is not None and pod.status.phase in ("Succeeded", "Failed")
    return wanted == AMBIENT and not served and not over


def read(pod: Any, defaults: Mapping[str, str], excluded: Collection[str]) -> Wish:
    """What a pod wants that ``asks``. ``defaults`` are the cluster's, ``excluded`` is frozen only when named.

    Raises ``Unfit``.
    """
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    annotations = metadata.annotations or {}
    if spec.hostNetwork:
        raise Unfit("It is in the host's network, where its packets are not its own.")
    try:
        told, _ = said(annotations)
    except Refused as reason:
        raise Unfit(str(reason)) from reason
    told = {**usable(defaults), **told}
    there = [each.name for each in spec.containers]
    frozen = _chosen(there, told, annotations, excluded)
    servers = [each for each in spec.containers if each.name in frozen]
    statuses = {each.name: each for each in (status.containerStatuses if status else None) or ()}
    conditions = (status.conditions if status else None) or ()
    ready = any(each.type == "Ready" and each.status == "True" for each in conditions)
    states = [statuses[name] for name in frozen if name in statuses]
    started = len(states) == len(frozen) and all(each.started is not False and each.containerID for each in states)
    return Wish(
        uid=metadata.uid,
        namespace=metadata.namespace or "",
        name=metadata.name or "",
        mode=told.get("mode", "freeze"),
        gate=_gate(told),
        told=tuple(sorted(told.items())),
        containers=tuple(frozen),
        ids=tuple(sorted(each.containerID.rpartition("/")[2] for each in states if each.containerID)),
        ready=ready and started,
        proven_by_request=any(
            each.startupProbe is not None or any(getattr(getattr(each, kind), "exec", None) for kind in _STEADY)
            for each in servers
        ),
        ending=metadata.deletionTimestamp is not None,
        any_socket=told.get("wake-on") == "any",
        queue_proxy=QUEUE_PROXY in there,
        ip=(status.podIP if status else None) or "",
    )


def _chosen(
    there: list[str], told: Mapping[str, str], annotations: Mapping[str, str], excluded: Collection[str]
) -> list[str]:
    named = told.get("containers")
    if named is not None:
        found = [name for name in names(named) if name in there]
        missing = [name for name in names(named) if name not in there]
        if missing and PREFIX + "containers" in annotations:
            raise Unfit(f"Annotation {PREFIX}containers: the pod has no container {missing[0]!r}.")
        if found:
            return found
    frozen = [name for name in there if name not in NEVER_FROZEN and name not in excluded]
    if not frozen:
        raise Unfit("It has no container to freeze.")
    return frozen


def _gate(told: Mapping[str, str]) -> Settings:
    made = Settings(mode=told.get("mode", "freeze"))
    if "grace" in told:
        made.grace = settings.duration(told["grace"])
    if "thaw-timeout" in told:
        made.thaw_timeout = settings.positive_duration(told["thaw-timeout"])
    if "breathe" in told:
        made.breathe = settings.breathe(told["breathe"])
    if "idle-stream" in told:
        made.idle_stream = settings.idle_stream(told["idle-stream"])
    return made
