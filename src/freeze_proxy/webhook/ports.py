"""Which port serves, and which are taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freeze_proxy.annotations import NEVER_FROZEN, SIDECARS
from freeze_proxy.webhook.probes import Unfit

STEADY = ("readinessProbe", "livenessProbe")
"""Probes that go on for as long as a container runs."""
_SERVICE_PORTS = ("http", "http1", "h2c", "grpc")
_RESERVED = frozenset({8008, 8012, 8013, 8022, 8112, 9090, 9091, 9696, 9697})


def all_containers(spec: Mapping[str, Any]) -> list[Any]:
    """Of every kind but ephemeral ones, which no pod has at its creation."""
    return [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]


def serving_port(containers: list[Any], knative: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The serving container and its port, by the rule at the top of ``inject``. Raises ``Unfit``."""
    named = [
        (each, port)
        for each in containers
        if each["name"] not in NEVER_FROZEN | SIDECARS
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


def named_ports(container: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a container's ports by their names."""
    return {port["name"]: port["containerPort"] for port in container.get("ports") or [] if port.get("name")}


def used_ports(spec: Mapping[str, Any]) -> set[int]:
    """What containers declare, what is asked of them, and what their environment calls a port."""
    used = set(_RESERVED)
    for each in all_containers(spec):
        used |= {port.get("containerPort") for port in each.get("ports") or []}
        asked = [each.get(kind) for kind in (*STEADY, "startupProbe")] + list((each.get("lifecycle") or {}).values())
        for action in (action for one in asked for action in (one or {}).values() if isinstance(action, dict)):
            used |= {action["port"]} if type(action.get("port")) is int else set()
        for variable in each.get("env") or []:
            value = variable.get("value")
            if variable["name"].endswith("PORT") and isinstance(value, str) and value.isdecimal() and len(value) < 6:
                used.add(int(value))
    return used
