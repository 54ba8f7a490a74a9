"""The admin port: what the kubelet, queue-proxy and Prometheus ask of a sidecar, in a few lines of HTTP/1.1.

Anybody in the cluster may connect: heads are bounded in size and time, connections in number, and what comes behind a
request waits for its answer in the kernel.

| path | answer |
|---|---|
| `/ready` | 200 if the server is ready, else 503 and the reason |
| `/live`, `/live/NAME` | the same for the liveness of all containers, or of one |
| `/metrics` | numbers, for Prometheus |
| `/drain/NONCE` | the preStop hook: 200 once no request will come |
"""

import _operator
import _socket

from freeze_proxy.loop import READ, WRITE, Loop, Timer
from freeze_proxy.tcp import Side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[str], None]

MOST_HEAD = 8 * 1024
"""Bytes of a request's head."""
MOST_CONNECTIONS = 100
HEAD_TIME = 10.0
"""Seconds for a request's head to come, and for an answer to be taken; an idle connection lasts as long."""

_INDEX = "freeze-proxy sidecar: /ready, /live, /metrics\n"
_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Admin:
    """Answers on ``listener``, until ``close``."""

    __slots__ = ("_drain", "_live", "_loop", "_metrics", "_nonce", "_ready", "connections", "listener")

    def __init__(
        self,
        loop: Loop,
        listener: _socket.socket,
        *,
        ready: "Callable[[Answer], None]",
        live: "Callable[[str, Answer], bool]",
        metrics: "Callable[[], str]",
        drain: "Callable[[Callable[[], None]], None]",
        nonce: str,
    ) -> None:
        self._loop = loop
        self.listener = listener
        self._ready = ready
        self._live = live
        self._metrics = metrics
        self._drain = drain
        self._nonce = nonce.encode()
        self.connections: dict[Visitor, None] = {}  # the oldest first
        loop.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Answer nobody any more."""
        self._loop.forget(self.listener.fileno())
        self.listener.close()
        for visitor in list(self.connections):
            visitor.close()

    def _accept(self, _events: int) -> None:
        try:
            fd, _address = self.listener._accept()  # type: ignore[attr-defined]
        except OSError:
            # Nobody is there, or there are no descriptors: those of the oldest visitor help.
            if self.connections:
                next(iter(self.connections)).close()
            return
        while len(self.connections) >= MOST_CONNECTIONS:
            waiting = next((each for each in self.connections if not each.busy), next(iter(self.connections)))
            waiting.close()
        client = _socket.socket(self.listener.family, _socket.SOCK_STREAM, 0, fd)
        client.setblocking(False)
        self.connections[Visitor(self, self._loop, client)] = None

    def ask(self, path: str, answer: "Callable[[int, str], None]") -> None:
        """Answer a request for this path: with a status and a text, now or later."""

        def told(reason: str) -> None:
            if reason:
                answer(503, f"The server {reason}.\n")
            else:
                answer(200, "ok\n")

        if path == "/ready":
            self._ready(told)
        elif path == "/live" or path.startswith("/live/"):
            if not self._live(path[len("/live/") :], told):
                answer(404, "There is no liveness probe of such a container.\n")
        elif path == "/metrics":
            answer(200, self._metrics())
        elif path.startswith("/drain/") and self._is_nonce(path[len("/drain/") :]):
            self._drain(lambda: answer(200, "drained\n"))
        elif path == "/":
            answer(200, _INDEX)
        else:
            answer(404, f"There is no such path. {_INDEX}")

    def _is_nonce(self, text: str) -> bool:
        # In a time that does not tell how much of it is right.
        return bool(self._nonce) and _operator._compare_digest(text.encode("utf-8", "replace"), self._nonce)


class Visitor:
    """One connection. ``busy``: it waits for an answer."""

    __slots__ = ("_admin", "_data", "_loop", "_side", "_timer", "busy")

    def __init__(self, admin: Admin, loop: Loop, client: _socket.socket) -> None:
        self._admin = admin
        self._loop = loop
        self._data = b""
        self.busy = False
        self._side: Side | None = Side(loop, client, self._on_client)
        self._timer: Timer | None = loop.at(loop.now + HEAD_TIME, self.close)

    def close(self) -> None:
        """End it."""
        self._end_timer()
        if self._side is not None:
            self._side.close()
            self._side = None
            self._admin.connections.pop(self, None)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_client(self, events: int) -> None:
        side = self._side
        assert side is not None
        try:
            if events & WRITE and side.flush():
                self._next()
            if self._side is not side or self.busy or side.tail:
                return
            data = side.socket.recv(MOST_HEAD)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        self._data += data
        self._next()

    def _next(self) -> None:
        """Answer the next request, if it is whole."""
        side = self._side
        if side is None or self.busy or side.tail:
            return
        side.read(True)
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            if len(head) > MOST_HEAD:
                self._answer(400, "The head of the request is too long.\n", "GET", last=True)
            elif self._timer is None:
                self._timer = self._loop.at(self._loop.now + HEAD_TIME, self.close)
            return
        self._data = rest
        self._end_timer()
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        fields = [line.lower().replace(" ", "") for line in lines[1:]]
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self._answer(400, "That is no HTTP/1.1 request.\n", "GET", last=True)
            return
        method, path, version = words
        body = any(field.startswith("transfer-encoding:") for field in fields)
        body = body or any(field.startswith("content-length:") and field != "content-length:0" for field in fields)
        last = body or version == "HTTP/1.0" or "connection:close" in fields
        if method not in ("GET", "HEAD"):
            self._answer(405, "Only GET and HEAD are answered here.\n", method, last=True)
            return
        self.busy = True
        side.read(False)
        self._admin.ask(path.partition("?")[0], lambda status, text: self._answer(status, text, method, last=last))

    def _answer(self, status: int, text: str, method: str, *, last: bool) -> None:
        side = self._side
        self.busy = False
        if side is None:
            return
        body = text.encode("utf-8", "replace")
        kind = "text/plain; version=0.0.4; charset=utf-8" if text.startswith("# ") else "text/plain; charset=utf-8"
        head = f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        if last:
            head += "Connection: close\r\n"
            self._data = b""
        data = head.encode() + b"\r\n" + (b"" if method == "HEAD" else body)
        self._end_timer()
        self._timer = self._loop.at(self._loop.now + HEAD_TIME, self.close)
        try:
            sent = side.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent != len(data):
            side.keep(data[sent:])
        elif last:
            side.finish()
            side.read(True)
        else:
            self._loop.soon(self._next)
