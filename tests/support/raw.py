"""An HTTP/1.1 client that keeps every byte it is sent, and uses h11 only to know where a response ends."""

import re
import socket

import h11

from tests.support.ports import LOOPBACK
from tests.support.wait import PATIENCE

_VOLATILE = re.compile(rb"(?im)^(date): [^\r]*")


def masked(response: bytes) -> bytes:
    """Without what differs from second to second."""
    return _VOLATILE.sub(rb"\1: masked", response)


def request(method: str, path: str, *fields: str, body: bytes = b"") -> bytes:
    """The bytes of a request. A ``body`` goes with its length unless the fields say how it is framed."""
    lines = [f"{method} {path} HTTP/1.1", "Host: example.test", *fields]
    if body and not any(field.lower().startswith(("content-length", "transfer-encoding")) for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class RawClient:
    """One connection."""

    def __init__(self, port: int, host: str = LOOPBACK) -> None:
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self.socket.close()

    def read_response(self, method: str) -> bytes:
        """All bytes of the response to a request by this method, interim responses included; fails if it is cut."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "example.test")]))
        parser.send(h11.EndOfMessage())
        raw = []
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = self.socket.recv(1 << 18)
                raw.append(data)
                parser.receive_data(data)
            elif isinstance(event, h11.EndOfMessage):
                break
        surplus, _ = parser.trailing_data
        assert not surplus, f"More than a response: {surplus[:200]!r}"
        return b"".join(raw)

    def exchange(self, raw_request: bytes) -> bytes:
        """Send this and return the bytes of its response."""
        self.socket.sendall(raw_request)
        return self.read_response(raw_request.split(b" ", 1)[0].decode())

    def rest(self) -> bytes:
        """All until the other side closes."""
        parts = []
        while data := self.socket.recv(1 << 18):
            parts.append(data)
        return b"".join(parts)
