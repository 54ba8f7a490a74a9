"""One run of one probe, on the loop.

``done`` is called once, with nothing if the probe has passed, else with the reason in words that go on after "the
server". It is never called from within the constructor, nor after ``stop``.
"""

import _socket
import errno
import posix

from freeze_proxy.control.names import is_address, resolve
from freeze_proxy.loop import WRITE, Loop, Timer
from freeze_proxy.sidecar.probes import GRPC, HTTP, Probe, request, verdict
from freeze_proxy.tcp import Side, tcp_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from freeze_proxy.sidecar.grpc import Answer
    from freeze_proxy.sidecar.tls import Tls

NOBODY = "does not accept connections"
"""How the result begins where nobody listens."""
MOST_ANSWER = 16 * 1024
"""Bytes of an answer that are read at most: a verdict takes the first line."""


class Probing:
    """Runs ``probe`` against ``host``, unless it names a host itself; begins at once."""

    __slots__ = (
        "_answer",
        "_done",
        "_grpc",
        "_host",
        "_loop",
        "_probe",
        "_read",
        "_request",
        "_side",
        "_talking",
        "_timer",
        "_tls",
    )

    def __init__(self, loop: Loop, probe: Probe, host: str, done: "Callable[[str], None]") -> None:
        self._loop = loop
        self._probe = probe
        self._host = probe.host or host
        self._done: Callable[[str], None] | None = done
        self._side: Side | None = None
        self._answer = b""
        self._read = 0
        self._request = b""
        self._talking = False
        self._tls: Tls | None = None
        self._grpc: Answer | None = None
        self._timer: Timer | None = loop.at(loop.now + probe.timeout, self._too_slow)
        try:
            if is_address(self._host):
                self._connect(self._host)
            else:
                resolve(loop, self._host, self._resolved)
        except OSError as error:
            reason = _words(error)
            loop.soon(lambda: self._finish(reason))

    def stop(self) -> None:
        """End it; nothing more is heard of it."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._side is not None:
            self._side.close()
            self._side = None

    def _finish(self, reason: str) -> None:
        done = self._done
        self.stop()
        if done is not None:
            done(reason)

    def _too_slow(self) -> None:
        what = "does not answer" if self._talking else "does not accept a connection"
        self._finish(f"{what} {self._about()} within {self._probe.timeout:g} s")

    def _about(self) -> str:
        return f"{self._probe!r}"

    def _resolved(self, ip: str, reason: str) -> None:
        if self._done is None:
            return
        if not ip:
            self._finish(f"cannot be found: {self._host} does not resolve ({reason})")
            return
        try:
            self._connect(ip)
        except OSError as error:
            self._finish(_words(error))

    def _connect(self, ip: str) -> None:
        """Raises ``OSError``."""
        address = (ip, self._probe.port)
        server = tcp_socket(address)
        try:
            # From a port of its own that is known beforehand: a connection to a free port may reach itself.
            server.bind(("::" if ":" in ip else "0.0.0.0", 0))  # noqa: S104 - does not listen
            itself = server.getsockname()[1] == self._probe.port
            refused = errno.ECONNREFUSED if itself else server.connect_ex(address)
            if refused not in (0, errno.EINPROGRESS):
                raise OSError(refused, posix.strerror(refused))
        except OSError:
            server.close()
            raise
        self._side = Side(self._loop, server, self._connected)
        self._side.keep(b"")  # to be told when it is connected

    def _connected(self, _events: int) -> None:
        side, probe = self._side, self._probe
        assert side is not None
        error = side.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            self._finish(f"{NOBODY} at {self._host}:{probe.port} ({posix.strerror(error).lower()})")
            return
        if probe.kind == HTTP:
            self._request = request(probe, self._host)
            if probe.scheme == "https":
                from freeze_proxy.sidecar.tls import Tls

                self._tls = Tls("" if is_address(self._host) else self._host)
        elif probe.kind == GRPC:
            from freeze_proxy.sidecar import grpc

            self._request = grpc.request(self._host, probe.port, probe.service)
            self._grpc = grpc.Answer()
        else:
            self._finish("")
            return
        self._talking = True
        side.handle_with(self._talk)
        first = self._request if self._tls is None else self._tls_step(b"")[1]
        side.keep(first)

    def _talk(self, events: int) -> None:
        side = self._side
        assert side is not None
        try:
            if events & WRITE:
                side.flush()
            data = side.socket.recv(MOST_ANSWER)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(f"ends the connection of {self._about()} ({_words(error)})")
            return
        if not data:
            self._finish(f"ends the connection of {self._about()} without an answer")
            return
        self._read += len(data)
        try:
            said = self._hear(data)
        except OSError as error:  # of TLS
            self._finish(f"fails in TLS with {self._about()} ({_words(error)})")
            return
        if said is None and self._read > 4 * MOST_ANSWER:
            said = f"answers {self._about()} with too much before it says anything"
        if said is not None:
            self._finish(f"does not pass {self._about()}: {said}" if said else "")

    def _hear(self, data: bytes) -> "str | None":
        side = self._side
        assert side is not None
        if self._grpc is not None:
            said, reply = self._grpc.feed(data)
            if reply:
                side.keep(reply)
            return said
        if self._tls is not None:
            data, reply = self._tls_step(data)
            if reply:
                side.keep(reply)
        self._answer = (self._answer + data)[:MOST_ANSWER]
        return verdict(self._answer)

    def _tls_step(self, data: bytes) -> "tuple[bytes, bytes]":
        assert self._tls is not None
        said, reply, sent = self._tls.exchange(data, self._request)
        if sent:
            self._request = b""
        return said, reply


def _words(error: OSError) -> str:
    return f"cannot be reached: {error.strerror or error}".lower()
