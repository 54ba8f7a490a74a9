"""What a pod's annotations and the cluster's defaults say.

A value that cannot be understood is refused with a sentence, and not guessed at: whoever wrote it is there to read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from freeze_proxy import settings
from freeze_proxy.gate import MODES

PREFIX = "freeze.extensions.knative.dev/"
_LONGEST = 4096
_MOST_CONTAINERS = 64  # the daemon takes no more names

NEVER_FROZEN = frozenset({"freeze-proxy", "queue-proxy"})
"""Not even when asked for: they are what would have asked for the thaw."""
SIDECARS = frozenset(
    {
        "azwi-proxy",
        "consul-connect-envoy-sidecar",
        "consul-dataplane",
        "daprd",
        "datadog-agent-injected",
        "gke-gcsfuse-sidecar",
        "istio-proxy",
        "jaeger-agent",
        "kuma-sidecar",
        "linkerd-proxy",
        "nginx-mesh-sidecar",
        "otc-container",
        "vault-agent",
        "xray-daemon",
    }
)
"""What other webhooks put into pods, by the names that they use: frozen only when named.

``docs/nodes.md`` says whose they are.
"""


class Refused(Exception):
    """An annotation that cannot be understood; the text is the sentence of the denial."""


def _one_of(*words: str) -> Callable[[str], object]:
    def read(text: str) -> None:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}.")

    return read


def names(text: str) -> list[str]:
    """Containers' names from ``web,cache``; raises ``ValueError``."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not 0 < len(found) <= _MOST_CONTAINERS:
        raise ValueError(f"{text!r} names {len(found)} containers: write 1 to {_MOST_CONTAINERS}, such as web,cache.")
    wrong = [name for name in found if not name.isascii() or not name.replace("-", "").isalnum()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no container's name: write names with commas between, such as web,cache.")
    never = [name for name in found if name in NEVER_FROZEN]
    if never:
        raise ValueError(f"{never[0]!r} is never frozen: name the containers that serve.")
    return found


class Annotation(NamedTuple):
    """``default``: what holds where nothing is said. ``cluster_wide``: the ConfigMap may say another."""

    name: str
    default: str
    read: Callable[[str], object]
    cluster_wide: bool
    about: str


ANNOTATIONS = (
    Annotation("mode", "freeze", _one_of(*MODES), True,
        "`freeze`: it stands still between requests. `throttle`: it runs at a hundredth of a core. `dry-run`: it runs, "
        "and all is counted as if it were frozen. `off`: the pod gets no sidecar."),
    Annotation("grace", "100ms", settings.duration, True,
        "How long there must have been no request before a freeze."),
    Annotation("thaw-timeout", "5s", settings.positive_duration, True,
        "How long a request waits for a thaw that fails before it is answered 503 with `Retry-After`."),
    Annotation("breathe", "off", settings.breathe, True,
        "`30s/50ms`: while frozen, run for 50 ms every 30 s, so that heartbeats and leases live on."),
    Annotation("idle-stream", "off", settings.idle_stream, True,
        "A WebSocket or a stream that has moved no byte for so long counts as idle; any byte thaws."),
    Annotation("containers", "", names, True,
        "Which containers are frozen, with commas between: `web,cache`. By default all but queue-proxy and what other "
        "webhooks are known to put into pods."),
    Annotation("attach", "sidecar", _one_of("sidecar", "ambient"), False,
        "`ambient`: the pod gets no sidecar, for a daemon that watches its packets."),
    Annotation("wake-on", "listening", _one_of("listening", "any"), False,
        "With `ambient`: which packets wake the pod, those for ports that it listens on, or `any` for its sockets."),
    Annotation("inject", "true", _one_of("true", "false"), False,
        "`false`: the pod gets no sidecar. As a *label* with `true` it asks for one outside Knative."),
)  # fmt: skip
"""The one list of them; the table in ``docs/configure.md`` is made from it."""
_READERS = {each.name: each.read for each in ANNOTATIONS if each.cluster_wide}
_ELSEWHERE = {each.name: each.read for each in ANNOTATIONS if not each.cluster_wide}


def said(annotations: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What the pod says, by names without their prefix, and warnings. Raises ``Refused``."""
    found: dict[str, str] = {}
    warnings = []
    readers = _READERS | _ELSEWHERE
    for key, value in annotations.items():
        if not isinstance(key, str) or not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if name not in readers:
            warnings.append(f"freeze-proxy: annotation {key[:200]} is not known; known are {', '.join(readers)}.")
            continue
        trouble = _trouble(readers[name], value)
        if trouble:
            raise Refused(f"Annotation {key}: {trouble}")
        found[name] = value.strip()
    return found, warnings


def defaults_trouble(defaults: Mapping[str, str]) -> list[str]:
    """A sentence for each thing that is wrong in the ConfigMap's defaults."""
    troubles = []
    for name, value in defaults.items():
        if name not in _READERS:
            troubles.append(f"{name}: it is no default; there are {', '.join(_READERS)}.")
        elif trouble := _trouble(_READERS[name], value):
            troubles.append(f"{name}: {trouble}")
    return troubles


def usable(defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults that can be understood: a wrong ConfigMap is no reason to refuse pods."""
    return {
        name: value.strip()
        for name, value in defaults.items()
        if name in _READERS and not _trouble(_READERS[name], value)
    }


def _trouble(reader: Callable[[str], object], value: object) -> str:
    if not isinstance(value, str):
        return "it is not text."
    if len(value) > _LONGEST:
        return f"it is longer than {_LONGEST} characters."
    try:
        reader(value.strip())
    except ValueError as error:
        return str(error)
    return ""
