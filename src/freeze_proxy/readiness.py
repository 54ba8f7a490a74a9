"""Waiting for a server: it is ready when it accepts connections and, where a path is given, answers it with 2xx or 3xx.

Runs on the loop, never blocks, and imports nothing heavy.
"""

import _socket
import errno

from freeze_proxy.loop import READ, WRITE, Loop, Timer
from freeze_proxy.tcp import Address, tcp_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE = 0.025
"""Seconds between two tries."""
TRY_TIMEOUT = 2.0
"""Seconds that one try may take."""


class Readiness:
    """Tries the ``addresses`` in turn until one of them is ready, then calls ``ready`` with it, once."""

    def __init__(
        self, loop: Loop, addresses: list[Address], path: str | None, ready: "Callable[[Address], None]"
    ) -> None:
        self._loop = loop
        self._addresses = addresses
        self._path = path
        self._ready = ready
        self._turn = 0
        self._timer: Timer | None = None
        self._socket: _socket.socket | None = None
        self._answer = b""
        self.last = "it does not accept connections"
        """Why it is not ready, for people to read."""
        self._try()

    def stop(self) -> None:
        """Give up."""
        self._close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try(self) -> None:
        self._turn += 1
        address = self._addresses[self._turn % len(self._addresses)]
        try:
            self._socket = tcp_socket(address)
            # From a port of its own that is known beforehand: where nobody listens, a connection may reach itself,
            # and would hold the port that the server is about to listen on.
            self._socket.bind(("::" if ":" in address[0] else "0.0.0.0", 0))  # noqa: S104 - does not listen
        except OSError:
            self._close()  # no IPv6 here, say
            self._again()
            return
        itself = self._socket.getsockname()[1] == address[1]
        refused = errno.ECONNREFUSED if itself else self._socket.connect_ex(address)
        if refused and refused != errno.EINPROGRESS:
            self._close()
            self._again()
            return
        self._answer = b""
        self._timer = self._loop.at(self._loop.now + TRY_TIMEOUT, self._timed_out)
        self._loop.watch(self._socket.fileno(), WRITE, self._connected)

    def _connected(self, _events: int) -> None:
        assert self._socket is not None
        refused = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if refused:
            self._close()
            self._again()
        elif self._path is None:
            self._done()
        else:
            host, port = self._addresses[self._turn % len(self._addresses)]
            host = f"[{host}]" if ":" in host else host
            request = f"GET {self._path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            self.last = f"it accepts connections, but does not answer {self._path}"
            try:
                self._socket.send(request.encode())
            except OSError:
                self._close()
                self._again()
                return
            fd = self._socket.fileno()
            self._loop.forget(fd)
            self._loop.watch(fd, READ, self._answered)

    def _answered(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._answer += data
        if data and len(self._answer) < 12:
            return
        status = self._answer[9:12]
        if self._answer.startswith(b"HTTP/1.") and status[:1] in (b"2", b"3"):
            self._done()
            return
        if status:
            self.last = f"it answers {self._path} with {status.decode('latin-1')}"
        self._close()
        self._again()

    def _timed_out(self) -> None:
        self._timer = None
        self._close()
        self._again()

    def _done(self) -> None:
        self.stop()
        self._ready(self._addresses[self._turn % len(self._addresses)])

    def _again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.at(self._loop.now + PAUSE, self._try)

    def _close(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._loop.close_after(self._socket)
            self._socket = None
