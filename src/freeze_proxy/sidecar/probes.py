"""The original probes of a pod's containers, as Kubernetes writes them: what to send, and what the answer says.

Pure. The rules are the kubelet's (Kubernetes documentation, "Configure Liveness, Readiness and Startup Probes"): an
HTTP answer from 200 to 399 passes, a TCP connection that is made passes, a gRPC health check passes with SERVING.
Redirects to the same host are followed, ten requests at most in all; one to another host passes (the same page, "HTTP
probes"; what the same host is, and how Host and a missing Location are treated, are those of Go's HTTP client).
"""

HTTP, TCP, GRPC = "http", "tcp", "grpc"
USER_AGENT = "kube-probe/freeze-proxy"
MOST_REQUESTS = 10
"""Requests of one probe: the first, and those to which it is redirected."""
MOST_HEAD = 16 * 1024
"""Bytes of an HTTP answer that are looked at, interim answers included."""

_KINDS = {"httpGet": HTTP, "tcpSocket": TCP, "grpc": GRPC}
_REDIRECTS = (b"301", b"302", b"303", b"307", b"308")
_PORTS = {"http": 80, "https": 443}
_NOT_SENT = ("host", "connection", "content-length", "transfer-encoding", "trailer")  # they would frame the request
_MOST_SHOWN = 200  # characters of somebody else's text in a sentence


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
            return f"GET {self.scheme}://{where}{self.path[:_MOST_SHOWN]}"
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
    if any(value.get(kind) is not None and not _holds_probes(value[kind]) for kind in (*_KINDS, "exec")):
        return {"": probes(value, port)}
    return {str(name): probes(each, port) for name, each in value.items()}


def request(probe: Probe, host: str) -> bytes:
    """What an HTTP probe sends; ``host`` is what it connects to."""
    given = [name.lower() for name, _ in probe.headers]
    hosts = [text for name, text in probe.headers if name.lower() == "host"]
    lines = [f"GET {probe.path} HTTP/1.1"]
    lines.append(
        "Host: " + (hosts[0] if hosts else f"[{host}]:{probe.port}" if ":" in host else f"{host}:{probe.port}")
    )
    lines += [f"{name}: {text}" for name, text in probe.headers if name.lower() not in _NOT_SENT]
    if "user-agent" not in given:
        lines.append(f"User-Agent: {USER_AGENT}")
    if "accept" not in given:
        lines.append("Accept: */*")
    lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")


class Answer:
    """What a server answers to an HTTP probe, piece by piece. ``location``: where it redirects to, if it does."""

    __slots__ = ("_data", "_left", "location")

    def __init__(self) -> None:
        self._data = b""
        self._left = MOST_HEAD
        self.location = ""

    def feed(self, data: bytes) -> "str | None":
        """Why the probe has failed, nothing if it has passed or is redirected, ``None``: too little to tell."""
        data = data[: self._left]
        self._left -= len(data)
        self._data += data
        said = self._verdict()
        if said is None and not self._left:
            return "it says too much before it answers"
        return said

    def _verdict(self) -> "str | None":
        while True:
            if len(self._data) < 12:
                return None if b"HTTP/1.".startswith(self._data[:7]) else "it does not answer in HTTP"
            status = self._data[9:12]
            if not self._data.startswith(b"HTTP/1.") or not status.isdigit():
                return "it does not answer in HTTP"
            interim = status[:1] == b"1" and status != b"101"
            if not interim and status not in _REDIRECTS:
                return "" if status[:1] in (b"2", b"3") else f"it answers {status.decode()}"
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return None
            if not interim:
                self.location = _location(head)
                return ""
            self._data = rest  # by a loop, for a hostile server may send many


def _location(head: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"location":
            return value.strip(b" \t").decode("latin-1")
    return ""


def follow(probe: Probe, host: str, location: str) -> "Probe | None":
    """The probe that a redirect of this one to ``location`` leads to; ``None``: it leads to another host.

    ``host`` is what this one connects to. A reference is resolved as in RFC 3986, section 5.2. Raises ``ValueError``
    with a sentence where the location is no URL, or none of HTTP.
    """
    if any(c < " " or c == "\x7f" for c in location):
        raise ValueError(f"it redirects to {location[:_MOST_SHOWN]!r}, which is no URL")
    scheme, rest = _scheme(location.partition("#")[0])
    port, headers = probe.port, probe.headers
    if scheme or rest.startswith("//"):
        authority, rest = _authority(rest)
        name, said_port = _name_and_port(authority)
        if name != host:
            return None
        if (scheme or probe.scheme) not in _PORTS:
            raise ValueError(f"it redirects to {location[:_MOST_SHOWN]!r}, which is not a URL of HTTP")
        try:
            port = _port(said_port or None, _PORTS[scheme or probe.scheme])
        except ValueError:
            raise ValueError(f"it redirects to {location[:_MOST_SHOWN]!r}, which is no URL") from None
        if scheme:  # What was told to call the server something else was told of the first URL.
            headers = [(name, text) for name, text in headers if name.lower() != "host"]
        base = "/"
    else:
        base = probe.path
    further = Probe(HTTP, port, probe.host, probe.timeout, probe.period)
    further.scheme = scheme or probe.scheme
    further.headers = headers
    further.path = "".join(c if "!" <= c <= "~" else f"%{ord(c):02X}" for c in _resolved(base, rest))
    return further


def _scheme(reference: str) -> "tuple[str, str]":
    scheme, colon, rest = reference.partition(":")
    if colon and scheme[:1].isalpha() and scheme.isascii() and all(c.isalnum() or c in "+-." for c in scheme):
        return scheme.lower(), rest
    return "", reference


def _authority(reference: str) -> "tuple[str, str]":
    """It and the rest; without one (``mailto:somebody``) nothing, which is no host's name."""
    if not reference.startswith("//"):
        return "", reference
    reference = reference[2:]
    ends = [at for at in (reference.find("/"), reference.find("?")) if at >= 0]
    end = min(ends, default=len(reference))
    return reference[:end].rpartition("@")[2], reference[end:]


def _name_and_port(authority: str) -> "tuple[str, str]":
    if authority.startswith("["):
        name, _, port = authority[1:].partition("]")
        return name, port.removeprefix(":")
    name, _, port = authority.partition(":")
    return name, port


def _resolved(base: str, reference: str) -> str:
    """Path and query of a reference without an authority."""
    path, mark, query = reference.partition("?")
    base_path, base_mark, base_query = base.partition("?")
    if not path:
        return base_path + (mark + query if mark else base_mark + base_query)
    if not path.startswith("/"):
        path = base_path.rpartition("/")[0] + "/" + path
    kept: list[str] = []
    steps = path.split("/")[1:]
    for step in steps:
        if step == "..":
            del kept[-1:]
        elif step != ".":
            kept.append(step)
    if steps[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept) + mark + query


def _holds_probes(value: object) -> bool:
    """Whether this is what stands under a container's name, and not what stands under a probe's kind."""
    return isinstance(value, list) or (isinstance(value, dict) and any(kind in value for kind in (*_KINDS, "exec")))


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
        _host(said),
        _seconds(value, "timeoutSeconds", 1.0) or 1.0,
        _seconds(value, "periodSeconds", 10.0),
    )
    if probe.kind == HTTP:
        probe.scheme = (_text(said, "scheme") or "http").lower()
        if probe.scheme not in ("http", "https"):
            raise ValueError(f"a probe's scheme is HTTP or HTTPS, not {_shown(probe.scheme)}.")
        path = _text(said, "path") or "/"
        probe.path = path if path.startswith("/") else "/" + path
        if any(c <= " " for c in probe.path):
            raise ValueError(f"a probe's path is {_shown(probe.path)}; write spaces as %20.")
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
    if not name or any(not "!" <= c <= "~" or c == ":" for c in name) or any(c in "\r\n\0" for c in text):
        raise ValueError(f"{_shown(name)}: {_shown(text)} is no header field.")
    return name, text


def _host(value: "dict[str, object]") -> str:
    host = _text(value, "host")
    if any(c <= " " or c == "\x7f" for c in host):
        raise ValueError(f"a probe's host is {_shown(host)}, and should be a name or an address.")
    return host


def _text(value: "dict[str, object]", name: str) -> str:
    text = value.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {_shown(text)}, and should be text.")
    return text


def _port(value: object, port: int) -> int:
    if value is None or value == 0:
        return port
    if isinstance(value, str):
        if not value.isascii() or not value.isdigit():
            raise ValueError(f"port {_shown(value)} is a name, which is not known here; write its number.")
        number = int(value) if len(value) <= 5 else 0
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if not 0 < number < 65536:
        raise ValueError(f"a probe's port is {_shown(value)}, and should be a number from 1 to 65535.")
    return number


def _seconds(value: "dict[str, object]", name: str, default: float) -> float:
    seconds = value.get(name)
    if seconds is None:
        return default
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86400:
        raise ValueError(f"{name} is {_shown(seconds)}, and should be a number of seconds.")
    return float(seconds)


def _shown(value: object) -> str:
    """For a sentence, which is short whatever the value is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
