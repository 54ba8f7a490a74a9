"""A gRPC health check (grpc.health.v1.Health/Check), in the few HTTP/2 frames that it takes (RFC 9113, RFC 7541).

Pure. Imported where a probe is one of these. Header fields are sent without Huffman coding and without indexing, and
of the answer's fields none is read: the message says all, and without one the check has failed.
"""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_MOST_FRAME = 16384
_SERVING = 1
_WORDS = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def request(host: str, port: int, service: str) -> bytes:
    """What the check sends, all of it."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    fields = b"\x83\x86"  # :method POST, :scheme http (RFC 7541, appendix A)
    fields += b"\x04" + _string(b"/grpc.health.v1.Health/Check")  # :path
    fields += b"\x01" + _string(authority.encode())
    fields += b"\x0f\x10" + _string(b"application/grpc")  # content-type
    fields += b"\x00" + _string(b"te") + _string(b"trailers")
    fields += b"\x00" + _string(b"user-agent") + _string(b"kube-probe/freeze-proxy")
    name = service.encode("utf-8", "replace")
    message = b"\x0a" + _number(len(name)) + name if name else b""
    data = b"\x00" + len(message).to_bytes(4, "big") + message
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, fields)
        + _frame(_DATA, _END_STREAM, 1, data)
    )


class Answer:
    """What a server answers to the check, piece by piece."""

    __slots__ = ("_data", "_message")

    def __init__(self) -> None:
        self._data = b""
        self._message = b""

    def feed(self, data: bytes) -> "tuple[str | None, bytes]":
        """Why the check has failed, nothing if it has passed, ``None``: not known yet; and what is to be sent."""
        self._data += data
        reply = b""
        while len(self._data) >= 9:
            length, kind, flags = int.from_bytes(self._data[:3], "big"), self._data[3], self._data[4]
            stream = int.from_bytes(self._data[5:9], "big") & 0x7FFFFFFF
            if length > _MOST_FRAME or (kind == _SETTINGS and length % 6):
                return "it does not speak HTTP/2", reply
            if len(self._data) < 9 + length:
                break
            payload, self._data = self._data[9 : 9 + length], self._data[9 + length :]
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                reply += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
            elif kind == _GOAWAY or (kind == _RESET and stream == 1):
                return "it refuses the gRPC health check", reply
            elif kind == _DATA and stream == 1:
                self._message += payload[1 : len(payload) - payload[0]] if flags & 8 and payload else payload
                if (verdict := self._verdict()) is not None:
                    return verdict, reply
            if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return "it does not offer the gRPC health service, or does not know the service", reply
        return None, reply

    def _verdict(self) -> "str | None":
        message = self._message
        if len(message) < 5:
            return None
        length = int.from_bytes(message[1:5], "big")
        if message[0] or length > _MOST_FRAME:
            return "it answers the gRPC health check with what is no answer"
        if len(message) < 5 + length:
            return None
        status = message[6] if length >= 2 and message[5] == 8 else 0
        return "" if status == _SERVING else f"its gRPC health is {_WORDS.get(status, str(status))}"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _string(text: bytes) -> bytes:
    """A string literal of HPACK (RFC 7541, section 5.2)."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    return b"\x7f" + _number(len(text) - 127) + text


def _number(number: int) -> bytes:
    """Seven bits a byte, the lowest first, as protobuf and HPACK both write what follows a prefix."""
    out = b""
    while number >= 128:
        out += bytes((number & 127 | 128,))
        number >>= 7
    return out + bytes((number,))
