"""The words on the wire between a sidecar and the daemon: HTTP/1.1 with a token, and JSON that is small.

Pure, and used by both sides; the sidecar's memory forbids ``json`` and ``re`` here.
"""

PORT = 9696
FREEZE, THAW, NUMBERS, HOOK = "/freeze", "/thaw", "/numbers", "/"
"""Paths. ``HOOK`` is what queue-proxy of Knative 0.26 to 1.9 calls, with ``PAUSE`` or ``RESUME`` in the body."""
PAUSE, RESUME = "pause", "resume"
AUDIENCE, HOOK_AUDIENCE = "freeze", "concurrency-state-hook"
"""For whom the token must have been issued."""
TOKEN, LEASE, CONNECTION = "token", "lease", "connection"
"""Header fields, and the lease's value: it is bound to the connection."""
FROZEN, THROTTLED, AWAKE = "frozen", "throttled", "awake"
"""States in an answer."""
MODES = ("freeze", "throttle", "dry-run")
COUNTS = ("requests", "freezes", "thaws", "failed_freezes", "failed_thaws", "refused")
SECONDS = ("started", "in_flight_seconds", "frozen_seconds", "waited_seconds")
"""Members of ``NUMBERS``, all of them since ``started``, which is Unix time."""
WAITS = "waits"
"""One more member: how many thaws were waited for, by buckets with these upper bounds in seconds, and one without."""
WAIT_BOUNDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MOST_TOKEN, MOST_HEAD, MOST_BODY = 8 * 1024, 16 * 1024, 16 * 1024
"""Bytes: of a token, of a request's head, of its body."""
MOST_ANSWER = 64 * 1024
"""Bytes of an answer's body."""
MOST_SENTENCE = 500
"""Characters of an answer's ``error`` that are kept."""

_STATUS_LINE = b"HTTP/1.1 "


class Garbled(Exception):
    """What came is no answer of a daemon; the text says why."""


# What the sidecar says.


def order(containers: "list[str] | None" = None, mode: str = "") -> bytes:
    """The body of a request: whom to freeze or thaw (``None``: all), and how (empty: freeze); empty if that is all."""
    parts = []
    if containers is not None:
        parts.append(f'"containers": [{", ".join(map(_quoted, containers))}]')
    if mode:
        parts.append(f'"mode": {_quoted(mode)}')
    return f"{{{', '.join(parts)}}}".encode() if parts else b""


def request(path: str, host: str, token: bytes, body: bytes = b"", *, lease: bool = False) -> bytes:
    """The bytes of a POST. ``host`` is for the field that HTTP/1.1 wants, ``token`` is taken as it is.

    ``lease``: what this freezes is to be thawed when the connection closes.
    """
    fields = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    if body:
        fields += "Content-Type: application/json\r\n"
    if lease:
        fields += "Lease: connection\r\n"
    return b"%bToken: %b\r\n\r\n%b" % (fields.encode(), token, body)


def _quoted(text: str) -> str:
    """A JSON string."""
    return '"' + "".join(c if (c.isalnum() and c.isascii()) or c in "-_. " else _escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    point = ord(character)
    if point < 0x10000:
        return f"\\u{point:04x}"
    point -= 0x10000
    return f"\\u{0xD800 | point >> 10:04x}\\u{0xDC00 | point & 0x3FF:04x}"


# What the daemon answers.


class Answers:
    """Takes the bytes that come from a daemon, in whatever pieces, and gives its answers, one after another.

    Keeps the bytes of one answer that is not whole, at most ``MOST_HEAD`` and ``MOST_ANSWER``, and of what came in
    one piece with it.
    """

    __slots__ = ("_data", "_known", "_last")

    def __init__(self) -> None:
        self._data = b""
        self._last = b""  # head, which is nearly always that of the answer before
        self._known = (0, 0)  # what it says

    def feed(self, data: bytes) -> None:
        """These bytes have come."""
        self._data += data

    def next(self) -> "tuple[int, bytes] | None":
        """Status and body of the next answer, or ``None``: it is not whole yet. Raises ``Garbled``; that is the end."""
        data = self._data
        if data[: len(_STATUS_LINE)] != _STATUS_LINE[: len(data)]:
            raise Garbled(f"it does not speak HTTP/1.1, but says {data[:20]!r}")
        end = data.find(b"\r\n\r\n", 0, MOST_HEAD)
        if end < 0:
            if len(data) >= MOST_HEAD:
                raise Garbled(f"the head of its answer is longer than {MOST_HEAD} bytes")
            return None
        head = data[:end]
        if head != self._last:
            self._known, self._last = _head(head), head
        status, length = self._known
        whole = end + 4 + length
        if len(data) < whole:
            return None
        self._data = data[whole:]
        return status, data[end + 4 : whole]


def _head(head: bytes) -> tuple[int, int]:
    """Status, and the body's length in bytes."""
    first, *lines = head.split(b"\r\n")
    digits = first[len(_STATUS_LINE) :].split(b" ", 1)[0]
    if len(digits) != 3 or not digits.isdigit() or digits[:1] < b"2":
        raise Garbled(f"its answer begins with {first[:40]!r}")
    length = -1
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or not name or name.strip() != name or name == b"transfer-encoding":
            raise Garbled(f"its answer has the field {line[:40]!r}")
        if name == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > 9 or int(value) > MOST_ANSWER:
                raise Garbled(f"its answer has the field {line[:40]!r}")
            length = int(value)
    if length < 0:
        raise Garbled("its answer has no Content-Length")
    return int(digits), length


def complaint(body: bytes) -> str:
    """The sentence in ``{"error": "…"}``, on one line and cut at ``MOST_SENTENCE``; empty where there is none."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    for mark in ("{", '"error"', ":", '"'):
        if not text.startswith(mark):
            return ""
        text = text[len(mark) :]
        if mark != '"':
            text = text.lstrip(" \t\r\n")
    characters: list[str] = []
    at = 0
    while at < len(text) and text[at] != '"' and len(characters) < MOST_SENTENCE:
        character = text[at]
        at += 1
        if character == "\\":
            character, at = _unescaped(text, at)
        characters.append(character)
    # JSON escapes a character beyond U+FFFF as two, which UTF-16 takes for one.
    sentence = "".join(characters).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(c if c.isprintable() else " " for c in sentence).strip()


def _unescaped(text: str, at: int) -> tuple[str, int]:
    """The character of the escape that begins after the backslash, and where the text goes on."""
    letter = text[at : at + 1]
    if letter != "u":
        return letter if letter in ('"', "\\", "/") else " ", at + 1
    digits = text[at + 1 : at + 5]
    if len(digits) == 4 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
        return chr(int(digits, 16)), at + 5
    return "\ufffd", at + 1
