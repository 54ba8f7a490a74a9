"""The original probes of a pod's containers, as Kubernetes writes them: what to send, and what the answer says.

Pure. The rules are the kubelet's (Kubernetes documentation, "Configure Liveness, Readiness and Startup Probes"): an
HTTP answer from 200 to 399 passes, a TCP connection that is made passes, a gRPC health check passes with SERVING.
"""

HTTP, TCP, GRPC = "http", "tcp", "grpc"
USER_AGENT = "kube-probe/freeze-proxy"

_KINDS = {"httpGet": HTTP, "tcpSocket": TCP, "grpc": GRPC}


class Probe:
    """One probe. ``timeout`` and ``period`` are seconds; an empty ``host`` is the pod itself.

    For ``http``: ``scheme``, ``path`` and ``headers``; for ``grpc``: ``service``.
    """

    __slots__ = ("headers", "host", "kind", "path", "period", "port", "scheme", "service", "timeout")

    def __init__(self, kind: str, port: int, host: str = "", timeout: float = 1.0, period: float = 10.0) -> None:
        self.kind = kind
        self.port = port
        self.host = host
        self.timeout = timeout
        self.period = period
        self.scheme = "http"
        self.path = "/"
        self.headers: list[tuple[str, str]] = []
        self.service = ""

    def __repr__(self) -> str:
        where = f"{self.host or 'the pod'}:{self.port}"
        if self.kind == HTTP:
            return f"GET {self.scheme}://{where}{self.path}"
        return f"{self.kind} {where} {self.service}".rstrip()


def probes(value: object, port: int) -> list[Probe]:
    """The probes in parsed JSON: one object or an array of them. ``port`` is the server's, where a probe names none.

    Raises ``ValueError`` with a sentence.
    """
    found = [_probe(each, port) for each in (value if isinstance(value, list) else [value])]
    if not found:
        raise ValueError("it is an array without a probe.")
    return found


def named_probes(value: object, port: int) -> dict[str, list[Probe]]:
    """The probes by the names of their containers; of one bare probe, by no name. Raises like ``probes``."""
    if not isinstance(value, dict):
        raise ValueError("it is not an object with the names of containers.")
    if any(kind in value for kind in (*_KINDS, "exec")):
        return {"": probes(value, port)}
    return {str(name): probes(each, port) for name, each in value.items()}


def request(probe: Probe, host: str) -> bytes:
    """What an HTTP probe sends; ``host`` is what it connects to."""
    fields = {name.lower(): (name, text) for name, text in probe.headers}
    given_host = fields.pop("host", ("", f"[{host}]:{probe.port}" if ":" in host else f"{host}:{probe.port}"))[1]
    fields.setdefault("user-agent", ("User-Agent", USER_AGENT))
    fields.setdefault("accept", ("Accept", "*/*"))
    fields["connection"] = ("Connection", "close")
    lines = [f"GET {probe.path} HTTP/1.1", f"Host: {given_host}"]
    lines += [f"{name}: {text}" for name, text in fields.values()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")


def verdict(answer: bytes) -> "str | None":
    """Why an HTTP answer that begins like this fails the probe, nothing if it passes, ``None``: too little to tell."""
    while True:
        if len(answer) < 12:
            return None if b"HTTP/1.".startswith(answer[:7]) else "it does not answer in HTTP"
        status = answer[9:12]
        if not answer.startswith(b"HTTP/1.") or not status.isdigit():
            return "it does not answer in HTTP"
        if status[:1] != b"1" or status == b"101":
            return "" if status[:1] in (b"2", b"3") else f"it answers {status.decode()}"
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        answer = answer[end + 4 :]  # what follows a 1xx; by a loop, for a hostile server may send many


def _probe(value: object, port: int) -> Probe:
    if not isinstance(value, dict):
        raise ValueError("a probe is an object with httpGet, tcpSocket or grpc.")
    kinds = [kind for kind in _KINDS if value.get(kind) is not None]
    if value.get("exec") is not None:
        raise ValueError("an exec probe cannot be run from here; leave it with its container.")
    if len(kinds) != 1:
        raise ValueError("a probe has one of httpGet, tcpSocket and grpc.")
    said = value[kinds[0]]
    if not isinstance(said, dict):
        raise ValueError(f"{kinds[0]} is not an object.")
    probe = Probe(
        _KINDS[kinds[0]],
        _port(said.get("port"), port),
        _text(said, "host"),
        _seconds(value, "timeoutSeconds", 1.0) or 1.0,
        _seconds(value, "periodSeconds", 10.0),
    )
    if probe.kind == HTTP:
        probe.scheme = (_text(said, "scheme") or "http").lower()
        if probe.scheme not in ("http", "https"):
            raise ValueError(f"a probe's scheme is HTTP or HTTPS, not {probe.scheme!r}.")
        path = _text(said, "path") or "/"
        probe.path = path if path.startswith("/") else "/" + path
        if any(c <= " " for c in probe.path):
            raise ValueError(f"a probe's path is {probe.path!r}; write spaces as %20.")
        headers = said.get("httpHeaders") or []
        if not isinstance(headers, list):
            raise ValueError("httpHeaders is not an array.")
        probe.headers = [_header(each) for each in headers]
    probe.service = _text(said, "service")
    return probe


def _header(value: object) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise ValueError("httpHeaders holds something that is no object.")
    name, text = _text(value, "name"), _text(value, "value")
    if not name or any(c <= " " or c in ":\x7f" for c in name) or any(c in "\r\n\0" for c in text):
        raise ValueError(f"{name!r}: {text!r} is no header field.")
    return name, text


def _text(value: "dict[str, object]", name: str) -> str:
    text = value.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r}, and should be text.")
    return text


def _port(value: object, port: int) -> int:
    if value is None or value == 0:
        return port
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError(f"a probe's port is {value!r}, and should be a number from 1 to 65535.")
    return value


def _seconds(value: "dict[str, object]", name: str, default: float) -> float:
    seconds = value.get(name)
    if seconds is None:
        return default
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86400:
        raise ValueError(f"{name} is {seconds!r}, and should be a number of seconds.")
    return float(seconds)
