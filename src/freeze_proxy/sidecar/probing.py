"""One run of one probe, on the loop.

``done`` is called once, with nothing if the probe has passed, else with the reason in words that go on after "the
server". It is never called from within the constructor, nor after ``stop``. Redirects within the host are followed,
each on a connection of its own; the probe's timeout is for all of them together.
"""

import _socket
import errno
import posix

from freeze_proxy.control.names import is_address, resolve
from freeze_proxy.loop import WRITE, Loop, Timer
from freeze_proxy.sidecar.probes import GRPC, HTTP, MOST_REQUESTS, Answer, Probe, follow, request
from freeze_proxy.tcp import Side, tcp_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from freeze_proxy.sidecar.grpc import Answer as GrpcAnswer
    from freeze_proxy.sidecar.tls import Tls

NOBODY = "does not accept connections"
"""How the result begins where nobody listens."""
MOST_READ = 64 * 1024
"""Bytes that are read of a connection at most, with all that TLS and HTTP/2 say besides the answer."""
_PIECE = 16 * 1024


class Probing:
    """Runs ``probe`` against ``host``, unless it names a host itself; begins at once."""

    __slots__ = (
        "_answer",
        "_done",
        "_grpc",
        "_host",
        "_ip",
        "_loop",
        "_probe",
        "_read",
        "_request",
        "_requests",
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
        self._ip = ""
        self._side: Side | None = None
        self._answer = Answer()
        self._read = 0
        self._request = b""
        self._requests = 0
        self._talking = False
        self._tls: Tls | None = None
        self._grpc: GrpcAnswer | None = None
        self._timer: Timer | None = loop.at(loop.now + probe.timeout, self._too_slow)
        if is_address(self._host):
            self._connect(self._host)
            return
        try:
            resolve(loop, self._host, self._resolved)
        except OSError as error:
            self._finish_soon(f"cannot be looked up: {_words(error)}")

    def stop(self) -> None:
        """End it; nothing more is heard of it."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hang_up()

    def _hang_up(self) -> None:
        if self._side is not None:
            self._side.close()
            self._side = None

    def _finish(self, reason: str) -> None:
        done = self._done
        self.stop()
        if done is not None:
            done(reason)

    def _finish_soon(self, reason: str) -> None:
        self._loop.soon(lambda: self._finish(reason))

    def _too_slow(self) -> None:
        what = "does not answer" if self._talking else "does not accept a connection for"
        self._finish(f"{what} {self._probe!r} within {self._probe.timeout:g} s")

    def _resolved(self, ip: str, reason: str) -> None:
        if self._done is None:
            return
        if ip:
            self._connect(ip)
        else:
            self._finish(f"cannot be found: {self._host} does not resolve ({reason})")

    def _connect(self, ip: str) -> None:
        """Calls nobody before the round is over."""
        self._ip = ip
        address = (ip, self._probe.port)
        try:
            server = tcp_socket(address)
        except OSError as error:  # the machine's trouble, which says nothing of the server
            self._finish_soon(f"cannot be asked: {_words(error)}")
            return
        try:
            # From a port of its own that is known beforehand: a connection to a free port may reach itself.
            server.bind(("::" if ":" in ip else "0.0.0.0", 0))  # noqa: S104 - does not listen
            itself = server.getsockname()[1] == self._probe.port
            refused = errno.ECONNREFUSED if itself else server.connect_ex(address)
        except OSError as error:
            server.close()
            self._finish_soon(f"cannot be asked: {_words(error)}")
            return
        if refused not in (0, errno.EINPROGRESS):
            server.close()
            self._finish_soon(self._refused(refused))
            return
        self._side = Side(self._loop, server, self._connected)
        self._side.keep(b"")  # to be told when it is connected

    def _refused(self, error: int) -> str:
        where = f"[{self._host}]" if ":" in self._host else self._host
        return f"{NOBODY} at {where}:{self._probe.port} ({posix.strerror(error).lower()})"

    def _connected(self, _events: int) -> None:
        side, probe = self._side, self._probe
        assert side is not None
        error = side.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            self._finish(self._refused(error))
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
        self._requests += 1
        side.handle_with(self._talk)
        if self._tls is None:
            side.keep(self._request)
        else:
            side.keep(self._tls_step(b"")[1])

    def _talk(self, events: int) -> None:
        side = self._side
        assert side is not None
        try:
            if events & WRITE:
                side.flush()
        except OSError:
            pass  # It may have answered before it went.
        try:
            data = side.socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(f"breaks the connection of {self._probe!r} before it answers ({_words(error)})")
            return
        if not data:
            self._finish(f"closes the connection of {self._probe!r} before it answers")
            return
        self._read += len(data)
        try:
            said = self._hear(data)
        except OSError as error:  # of TLS
            self._finish(f"fails in TLS with {self._probe!r} ({_words(error)})")
            return
        if said is None and self._read > MOST_READ:
            said = "it says too much before it answers"
        if said == "" and self._answer.location:
            said = self._follow(self._answer.location)
        if said is not None:
            self._finish(f"does not pass {self._probe!r}: {said}" if said else "")

    def _follow(self, location: str) -> "str | None":
        """Like a verdict: ``None`` while it goes on."""
        try:
            further = follow(self._probe, self._host, location)
        except ValueError as error:
            return str(error)
        if further is None:
            return ""
        if self._requests >= MOST_REQUESTS:
            return f"it redirects {MOST_REQUESTS} times"
        self._hang_up()
        self._probe = further
        self._answer = Answer()
        self._read = 0
        self._talking = False
        self._tls = None
        self._connect(self._ip)
        return None

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
        return self._answer.feed(data)

    def _tls_step(self, data: bytes) -> "tuple[bytes, bytes]":
        assert self._tls is not None
        said, reply, sent = self._tls.exchange(data, self._request)
        if sent:
            self._request = b""
        return said, reply


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
