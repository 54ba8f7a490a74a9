"""The schemas that Kubernetes publishes with each release, and rules that no schema can say."""

import functools
from collections import Counter
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

Json = dict[str, Any]

RELEASES = ("1.29", "1.34", "1.37")

# The package would read its files, of some megabytes, for each object anew.
utils.schema_contents = functools.cache(utils.schema_contents)


def hold(one: Json, release: str) -> None:
    """Raises where the object has not the form that this release's schema gives it; nothing may be in it besides."""
    kubernetes_validate.validate(one, release, strict=True)


def unlawful(pod: Json) -> list[str]:
    """What the API server refuses in a pod, or the kubelet does not start, although its form is right.

    A reading of ours of Kubernetes' validation of pods: names that must be one of a kind, references that must lead
    somewhere, ports that are in range, sums that must fit, a user that must not be root.
    """
    spec = pod["spec"]
    everyone = spec["containers"] + spec.get("initContainers", [])
    volumes = [each["name"] for each in spec.get("volumes", [])]
    sources = [one for each in spec.get("volumes", []) for one in each.get("projected", {}).get("sources", [])]
    if any("serviceAccountToken" in one for one in sources) and not spec.get("serviceAccountName"):
        return ["a token of no service account"]
    found = [f"two {what} are called {name}" for what, name in _twice(everyone, volumes)]
    for each in everyone:
        who = each["name"]
        ports = each.get("ports", [])
        names = [port["name"] for port in ports if "name" in port]
        found += [f"{who}: two ports are called {name}" for name, count in Counter(names).items() if count > 1]
        found += [f"{who}: no port is {port}" for port in _asked(each) if not _leads(port, names)]
        mounts = [mount["name"] for mount in each.get("volumeMounts", [])]
        found += [f"{who}: there is no volume {name}" for name in mounts if name not in volumes]
        resources = each.get("resources", {})
        for kind, limit in resources.get("limits", {}).items():
            if _amount(resources.get("requests", {}).get(kind, limit)) > _amount(limit):
                found.append(f"{who}: more {kind} is requested than there may be")
        security = spec.get("securityContext", {}) | each.get("securityContext", {})
        if security.get("runAsNonRoot") and security.get("runAsUser") == 0:
            found.append(f"{who}: root, which it must not be")
    for part in ("requests", "limits"):
        for kind, most in spec.get("resources", {}).get(part, {}).items():
            if sum(_amount(each.get("resources", {}).get(part, {}).get(kind, "0")) for each in everyone) > _amount(
                most
            ):
                found.append(f"containers have more {kind} together than the pod")
    return found


def not_restricted(pod: Json) -> list[str]:
    """What of the Pod Security Standard "restricted" (and so "baseline") this pod breaks: a reading of 1.34."""
    spec = pod["spec"]
    found = [what for what in ("hostNetwork", "hostPID", "hostIPC") if spec.get(what)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [f"volume {v['name']}" for v in spec.get("volumes", []) if not (v.keys() - {"name"}) <= allowed]
    whole = spec.get("securityContext", {})
    for each in spec["containers"] + spec.get("initContainers", []):
        mine = each.get("securityContext", {})
        wrong = {
            "privileged": mine.get("privileged"),
            "hostPort": any(port.get("hostPort") for port in each.get("ports", [])),
            "privilege escalation": mine.get("allowPrivilegeEscalation") is not False,
            "capabilities dropped": "ALL" not in mine.get("capabilities", {}).get("drop", []),
            "capabilities added": set(mine.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"},
            "root": not (whole | mine).get("runAsNonRoot") or (whole | mine).get("runAsUser") == 0,
            "seccomp": (whole | mine).get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "probe's host": any(action.get("host") for action in _actions(each)),
            "procMount": mine.get("procMount", "Default") != "Default",
        }
        found += [f"{each['name']}: {what}" for what, is_wrong in wrong.items() if is_wrong]
    return found


def _twice(everyone: list[Json], volumes: list[str]) -> list[tuple[str, str]]:
    containers = [each["name"] for each in everyone]
    return [
        (what, name)
        for what, names in (("containers", containers), ("volumes", volumes))
        for name, count in Counter(names).items()
        if count > 1
    ]


def _actions(container: Json) -> list[Json]:
    """What its probes and hooks do."""
    probes = [container.get(kind) or {} for kind in ("readinessProbe", "livenessProbe", "startupProbe")]
    asked = [*probes, *container.get("lifecycle", {}).values()]
    return [action for one in asked for action in one.values() if isinstance(action, dict)]


def _asked(container: Json) -> list[Any]:
    """The ports that the kubelet asks at this container."""
    return [action["port"] for action in _actions(container) if "port" in action]


def _leads(port: object, names: list[str]) -> bool:
    return port in names if isinstance(port, str) else isinstance(port, int) and 0 < port < 65536


def _amount(quantity: str) -> float:
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    for unit, factor in units.items():
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)
