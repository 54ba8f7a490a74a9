"""Settings as a user writes them: durations, addresses, breathing.

Every function raises ``ValueError`` with a sentence that names the value and shows a right one.
"""

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds from ``100ms``, ``5s``, ``2m``, ``1h`` or ``0``."""
    number = text.strip().rstrip("umsh")
    unit = text.strip()[len(number) :]
    try:
        value = float(number) * (_UNITS[unit] if unit or float(number) else 0.0)
    except (KeyError, ValueError):
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError(f"{text!r} is not a duration: write a number and a unit, such as 100ms, 5s or 2m.")
    return value


def positive_duration(text: str) -> float:
    """Like ``duration``, more than nothing."""
    value = duration(text)
    if not value:
        raise ValueError(f"{text!r} is no time at all: write a duration above zero, such as 100ms, 5s or 2m.")
    return value


def breathe(text: str) -> tuple[float, float] | None:
    """``(every, span)`` in seconds from ``30s/50ms``; ``None`` from ``off``."""
    if text == "off":
        return None
    every, slash, span = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} does not say how to breathe: write how often and for how long, such as 30s/50ms.")
    times = positive_duration(every), positive_duration(span)
    if times[0] <= times[1]:
        raise ValueError(f"{text!r} is awake for as long as it sleeps: write the longer time first, such as 30s/50ms.")
    return times


def idle_stream(text: str) -> float | None:
    """Seconds from a duration; ``None`` from ``off``."""
    return None if text == "off" else positive_duration(text)


def address(text: str) -> tuple[str, int]:
    """``(host, port)`` from ``127.0.0.1:8080``, ``[::1]:8080``, ``localhost:8080`` or ``:8080`` (all addresses).

    A host that is a name stays one.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in bare and bare == host):
        raise ValueError(f"{text!r} is not an address: write host and port, such as 127.0.0.1:8080 or [::1]:8080.")
    return bare or "0.0.0.0", int(port)  # noqa: S104 - only where asked for


def unix_socket(text: str) -> str:
    """The path of a unix socket from ``/run/docker.sock`` or ``unix:///run/docker.sock``."""
    path = text.removeprefix("unix://")
    if not path.startswith("/"):
        raise ValueError(f"{text!r} is not a socket of this machine: write its path, such as /run/docker.sock.")
    return path


def written(address: tuple[str, int]) -> str:
    """An address as it is written in a URL."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
