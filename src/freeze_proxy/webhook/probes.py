"""Rewriting probes: who would have asked the server asks the sidecar, and the sidecar gets the original.

Http, tcp and gRPC probes are moved with their timings; exec and startup probes stay (see design: Probes). A probe that
the sidecar could not read raises ``Unfit``: the sidecar would end with it, so such a pod is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from freeze_proxy.plain_json import parse

_KINDS = ("httpGet", "tcpSocket", "grpc")
_QUEUE_PORTS = (8012, 8013)
_DAY = 86400


class Unfit(Exception):
    """The pod cannot be handled; the text says why."""


def movable(probe: object) -> bool:
    """Whether the kubelet would send this probe to the server itself."""
    return isinstance(probe, dict) and any(probe.get(kind) is not None for kind in _KINDS)


def moved(probe: Mapping[str, Any], path: str, port: int, host: str = "") -> dict[str, Any]:
    """The probe with its timings, asking ``path`` on the admin port; without a host it goes to the pod's address."""
    timings = {name: value for name, value in probe.items() if name not in (*_KINDS, "exec")}
    where: dict[str, Any] = {"path": path, "port": port}
    if host:
        where["host"] = host
    return {"httpGet": {**where, "scheme": "HTTP"}, **timings}


def original(probe: Mapping[str, Any], ports: Mapping[str, int], user_port: int, host: str = "") -> dict[str, Any]:
    """The probe as the sidecar runs it: named ports are numbers; ``host`` is where it goes if it names none.

    Serving up to 1.1 sends liveness through queue-proxy, which would count it as traffic: that goes to the server.
    Raises ``Unfit``.
    """
    kinds = [kind for kind in _KINDS if probe.get(kind) is not None]
    if len(kinds) != 1 or probe.get("exec") is not None or not isinstance(probe[kinds[0]], dict):
        raise Unfit("a probe of this pod is not one of httpGet, tcpSocket and grpc")
    action = dict(probe[kinds[0]])
    port = resolved(action.get("port"), ports)
    action["port"] = user_port if port in (None, 0, *_QUEUE_PORTS) else port
    if host and not action.get("host"):
        action["host"] = host
    _check(kinds[0], action)
    for name in ("timeoutSeconds", "periodSeconds"):
        seconds = probe.get(name)
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds <= _DAY):
            raise Unfit(f"a probe of this pod has a {name} that is no number of seconds up to a day")
    kept = {name: value for name, value in probe.items() if name.endswith(("Seconds", "Threshold"))}
    return {kinds[0]: action, **kept}


def resolved(port: object, ports: Mapping[str, int]) -> object:
    """A port's number, where it is given by a name that its container declares."""
    return ports.get(port, port) if isinstance(port, str) else port


def serving(text: str, ports: Mapping[str, int], user_port: int, admin: int) -> tuple[str, list[dict[str, Any]]]:
    """What queue-proxy's ``SERVING_READINESS_PROBE`` becomes, in its form (object or array), and the originals.

    queue-proxy asks within the pod, on 127.0.0.1. Raises ``Unfit``.
    """
    try:
        value: Any = parse(text)
    except ValueError:
        raise Unfit("queue-proxy's SERVING_READINESS_PROBE is not JSON") from None
    each = value if isinstance(value, list) else [value]
    if not each or not all(isinstance(probe, dict) for probe in each):
        raise Unfit("queue-proxy's SERVING_READINESS_PROBE holds no probe")
    originals = [original(probe, ports, user_port, "127.0.0.1") for probe in each if movable(probe)]
    new = [moved(probe, "/ready", admin, "127.0.0.1") if movable(probe) else probe for probe in each]
    return written(new if isinstance(value, list) else new[0]), originals


def written(value: object) -> str:
    """JSON for an environment variable: a ``$`` would be read by the kubelet, as in ``$(NAME)``, so there is none."""
    return json.dumps(value, separators=(",", ":")).replace("$", "\\u0024")


def _check(kind: str, action: Mapping[str, Any]) -> None:
    port = action["port"]
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) < 6:
        port = int(port)
    if type(port) is not int or not 0 < port < 65536:
        raise Unfit("a probe of this pod has a port that none of its container's ports has for a name")
    told = {name: action.get(name) for name in ("host", "path", "scheme", "service")}
    texts = {name: "" if text is None else text for name, text in told.items()}
    if not all(isinstance(text, str) for text in texts.values()):
        raise Unfit("a probe of this pod has a host, path, scheme or service that is not text")
    if any(c <= " " or c == "\x7f" for c in texts["host"]):
        raise Unfit("a probe of this pod has a host that is no name and no address")
    if kind != "httpGet":
        return
    if texts["scheme"].lower() not in ("", "http", "https"):
        raise Unfit("a probe of this pod has a scheme that is neither HTTP nor HTTPS")
    if any(c <= " " for c in texts["path"]):
        raise Unfit("a probe of this pod has a path with a space; write it as %20")
    headers = [] if action.get("httpHeaders") is None else action["httpHeaders"]
    if not isinstance(headers, list) or not all(_is_header(each) for each in headers):
        raise Unfit("a probe of this pod has httpHeaders that cannot be sent")


def _is_header(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    name, text = value.get("name"), value.get("value")
    return (
        isinstance(name, str)
        and (text is None or isinstance(text, str))
        and bool(name)
        and all("!" <= c <= "~" and c != ":" for c in name)
        and not any(c in "\r\n\0" for c in text or "")
    )
