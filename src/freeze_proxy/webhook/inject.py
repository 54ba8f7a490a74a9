"""What becomes of a pod at admission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXCLUDED_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "freeze-proxy"})
SANDBOXED = frozenset({"gvisor", "runsc", "kata", "kata-qemu", "kata-clh", "kata-fc", "kata-dragonball"})


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
    """The decision on one pod; never raises, whatever JSON it is given."""
    return Outcome()


def defaults_trouble(defaults: Mapping[str, str]) -> list[str]:
    """A sentence for each thing that is wrong in the ConfigMap's defaults."""
    return []
