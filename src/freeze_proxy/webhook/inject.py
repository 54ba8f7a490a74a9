"""What becomes of a pod at admission: the sidecar is put into it, or it is let through, or refused.

Pure. A pod that we cannot handle is let through unchanged with a warning: no pod is ever held up by us. Only an
annotation of ours that cannot be understood is refused.

On Knative the server is the container with the port named ``user-port``, and queue-proxy is pointed at the sidecar.
Elsewhere a pod asks for the sidecar by the label ``freeze.extensions.knative.dev/inject: "true"``, and its Service
must have a *named* target port: the sidecar takes over that name. It is the name of the pod's only named TCP port; of
several the one that is called ``http``, ``http1``, ``h2c`` or ``grpc``, if only one is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freeze_proxy.webhook import probes
from freeze_proxy.webhook.annotations import (
    NEVER_FROZEN,
    PREFIX,
    SIDECARS,
    Refused,
    defaults_trouble,
    names,
    said,
    usable,
)
from freeze_proxy.webhook.probes import Unfit

__all__ = ["Options", "Outcome", "defaults_trouble", "inject"]

NAME = "freeze-proxy"
EXCLUDED_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "freeze-proxy", "knative-serving"})
SANDBOXED = frozenset({"gvisor", "runsc", "kata", "kata-qemu", "kata-clh", "kata-fc", "kata-dragonball"})
"""Their processes are not the node's: there is nothing to freeze."""

_SERVICE_PORTS = ("http", "http1", "h2c", "grpc")
_RESERVED = frozenset({8008, 8012, 8013, 8022, 8112, 9090, 9091, 9696, 9697})
_TOKEN_FOLDER = "/var/run/secrets/freeze-proxy"  # noqa: S105 - where it is, not what
_VARIABLES = {
    "mode": "MODE",
    "grace": "GRACE",
    "thaw-timeout": "THAW_TIMEOUT",
    "breathe": "BREATHE",
    "idle-stream": "IDLE_STREAM",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the cluster says; ``defaults``: annotations without their prefix, from the ConfigMap."""

    image: str
    daemon_port: int = 9696
    audience: str = "freeze"
    token_seconds: int = 600
    native_sidecars: bool = True
    defaults: Mapping[str, str] = field(default_factory=dict)
    cpu_request: str = "10m"
    memory_request: str = "16Mi"
    memory_limit: str = "64Mi"
    excluded_namespaces: frozenset[str] = EXCLUDED_NAMESPACES
    sandboxed_runtime_classes: frozenset[str] = SANDBOXED


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
        return Outcome(_diff(pod, new, "") if new is not None else [], warnings)
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
    inside = any(each["name"] == NAME for each in _all_containers(pod["spec"]))
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
    _check_fit(pod["spec"], namespace, options)
    return _Pod(pod, knative, frozen, options).with_sidecar(told, nonce)


def _check_fit(spec: Mapping[str, Any], namespace: str, options: Options) -> None:
    runtime = spec.get("runtimeClassName")
    if namespace in options.excluded_namespaces:
        raise Unfit(f"the namespace {namespace} is excluded")
    if spec.get("hostNetwork"):
        raise Unfit("it is in the host's network, where its ports are not its own")
    if runtime in options.sandboxed_runtime_classes:
        raise Unfit(f"its runtime class {runtime} keeps its processes where the node's daemon cannot freeze them")
    if (spec.get("os") or {}).get("name") == "windows":
        raise Unfit("it is for Windows")
    if not options.native_sidecars and spec.get("restartPolicy") in ("Never", "OnFailure"):
        raise Unfit("it is to end by itself, which a sidecar would keep it from before Kubernetes 1.29")


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
            can = ", ".join(str(name) for name in there if name not in NEVER_FROZEN)
            raise Refused(f"Annotation {PREFIX}containers: the pod has no container {missing[0]!r}, only {can}.")
        if found := [name for name in wanted if name in there]:
            return found
    return [name for name in there if name not in NEVER_FROZEN | SIDECARS]


class _Pod:
    """A copy of the pod, in the making."""

    def __init__(self, pod: Mapping[str, Any], knative: bool, frozen: list[str], options: Options) -> None:
        self.pod: dict[str, Any] = copy.deepcopy(dict(pod))
        self.spec = self.pod["spec"]
        self.containers = self.spec["containers"]
        self.knative = knative
        self.frozen = frozen
        self.options = options
        if not frozen:
            raise Unfit("it has no container to freeze")
        self.server, self.port = _serving_port(self.containers, knative)
        self.user_port = self.port["containerPort"]
        if type(self.user_port) is not int or not 0 < self.user_port < 65536:
            raise Unfit("its serving port has no number")
        used = _used_ports(self.spec)
        self.data = next(port for port in range(9999, 1024, -1) if port not in used)
        self.admin = next(port for port in range(min(9998, self.data - 1), 1024, -1) if port not in used)

    def with_sidecar(self, told: Mapping[str, str], nonce: str) -> dict[str, Any]:
        waits = any(
            each.get("startupProbe") or any((each.get(kind) or {}).get("exec") for kind in _STEADY)
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
            "resources": {
                "requests": {"cpu": self.options.cpu_request, "memory": self.options.memory_request},
                "limits": {"memory": self.options.memory_limit},
            },
            # The hook thaws at once and answers when no request will come; only the pod's spec holds the nonce.
            "lifecycle": {"preStop": {"httpGet": {"path": f"/drain/{nonce}", "port": self.admin, "scheme": "HTTP"}}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [{"name": volume, "mountPath": _TOKEN_FOLDER, "readOnly": True}],
        }
        # It has no probe of its own: one that waited for the server would hold up a native sidecar's pod for ever.
        if self.options.native_sidecars:
            # The last: the init containers before it have run by then, and need nothing of it.
            self.spec["initContainers"] = [
                *(self.spec.get("initContainers") or []),
                {**sidecar, "restartPolicy": "Always"},
            ]
        else:
            self.containers.insert(0, sidecar)
        metadata = self.pod["metadata"]
        metadata["labels"] = {**(metadata.get("labels") or {}), PREFIX + "injected": "true"}
        return self.pod

    def _frozen_containers(self) -> list[dict[str, Any]]:
        return [each for each in self.containers if each["name"] in self.frozen]

    def _redirect_queue_proxy(self) -> list[dict[str, Any]]:
        """Points queue-proxy at the sidecar, and gives back the readiness probes that it ran."""
        queue: dict[str, Any] = next((each for each in self.containers if each["name"] == "queue-proxy"), {})
        env = {each["name"]: each for each in queue.get("env") or []}
        if not env.get("USER_PORT", {}).get("value"):
            raise Unfit("its queue-proxy has no USER_PORT, as Knative Serving 0.25 and later give it")
        env["USER_PORT"]["value"] = str(self.data)
        probe = env.get("SERVING_READINESS_PROBE", {})
        if not probe.get("value"):
            return []
        probe["value"], originals = probes.serving(
            probe["value"], _named_ports(self.server), self.user_port, self.admin
        )
        return originals

    def _move_probes(self) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """Moves what the kubelet asks the frozen containers; gives back the readiness and the liveness originals."""
        readiness, liveness = [], {}
        for each in self._frozen_containers():
            ports = _named_ports(each)
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
        for asks in (*(self.server.get(kind) for kind in (*_STEADY, "startupProbe")), *hooks.values()):
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
            "LISTEN": f"127.0.0.1:{self.data}" if self.knative else f":{self.data}",
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


_STEADY = ("readinessProbe", "livenessProbe")


def _all_containers(spec: Mapping[str, Any]) -> list[Any]:
    return [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]


def _serving_port(containers: list[Any], knative: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The serving container and its port, by the rule at the top."""
    named = [
        (each, port)
        for each in containers
        if each["name"] not in NEVER_FROZEN
        for port in each.get("ports") or []
        if port.get("name") and port.get("protocol", "TCP") == "TCP"
    ]
    if knative:
        named = [(each, port) for each, port in named if port["name"] == "user-port"]
    elif len(named) > 1:
        named = [(each, port) for each, port in named if port["name"] in _SERVICE_PORTS]
    if len(named) != 1:
        raise Unfit(
            f"it has {len(named)} ports named user-port instead of one"
            if knative
            else "which port serves is not clear: give a name to one TCP port only, or call one of them http"
        )
    return named[0]


def _named_ports(container: Mapping[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports") or [] if port.get("name")}


def _used_ports(spec: Mapping[str, Any]) -> set[int]:
    """What containers declare, and what their environment calls a port."""
    used = set(_RESERVED)
    for each in _all_containers(spec):
        used |= {port.get("containerPort") for port in each.get("ports") or []}
        for variable in each.get("env") or []:
            value = variable.get("value")
            if variable["name"].endswith("PORT") and isinstance(value, str) and value.isdecimal() and len(value) < 6:
                used.add(int(value))
    return used


def _diff(old: Any, new: Any, path: str) -> list[dict[str, Any]]:
    """The JSON Patch (RFC 6902) that makes ``new`` of ``old``; a list grows by elements with names of their own."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        patch = []
        for key in (*old, *(key for key in new if key not in old)):
            place = path + "/" + key.replace("~", "~0").replace("/", "~1")
            if key not in new:
                patch.append({"op": "remove", "path": place})
            elif key not in old:
                patch.append({"op": "add", "path": place, "value": new[key]})
            else:
                patch += _diff(old[key], new[key], place)
        return patch
    if isinstance(old, list) and isinstance(new, list):
        added = [n for n, each in enumerate(new) if isinstance(each, dict) and each.get("name") not in _names(old)]
        kept = [each for n, each in enumerate(new) if n not in added]
        if len(kept) != len(old):
            added, kept = [], new
        if len(kept) == len(old):
            patch = []
            for n, (one, other) in enumerate(zip(old, kept, strict=True)):
                patch += _diff(one, other, f"{path}/{n}")
            return patch + [{"op": "add", "path": f"{path}/{n}", "value": new[n]} for n in added]
    return [{"op": "replace", "path": path, "value": new}]


def _names(elements: list[Any]) -> list[Any]:
    return [each.get("name") for each in elements if isinstance(each, dict)]
