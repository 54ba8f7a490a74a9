"""The relay moves bytes between clients and one server, and holds them back while the gate is shut.

It forwards verbatim: one connection to the server for one from a client, nothing added, changed or dropped. An
observer sees every read before it is sent on. Flow control is one rule: at most one unsent tail a direction, and
while there is one, its source is not read.

What it says itself: 503 where a thaw failed, and the answer to an HTTP/2 PING that comes while the server stands still.
"""

import _socket
import errno

from freeze_proxy.keeper import Gated, Keeper
from freeze_proxy.loop import READ, WRITE, Loop
from freeze_proxy.observe import Http1, Http2, Observer, pick

REQUEST_READ = SMALL_READ = 64 * 1024
BULK_READ = 256 * 1024
BULK = 16 * 1024
"""Bytes in a read from the server above which the next may fill the large buffer that all connections share."""
LINGER = 5.0
"""Seconds that a client has to close its side after the server has closed: enough to fetch the last response."""
ACCEPT_PAUSE = 0.1
"""Seconds without accepting after the process or the machine has run out of descriptors or memory."""
BACKLOG = 1024

_ACCEPT_AT_ONCE = 64
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_UNFINISHED = (errno.EINPROGRESS, errno.EAGAIN, errno.ENOTCONN)
_RESET_ON_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {1, 0}: close sends RST

Address = tuple[str, int]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def tcp_socket(address: Address) -> _socket.socket:
    """A non-blocking TCP socket of the address's family; the host is an IPv4 or IPv6 address."""
    family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
    return _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)


def listen(address: Address) -> _socket.socket:
    """A listening socket. Raises ``OSError`` where the address is taken or not this machine's."""
    listener = tcp_socket(address)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class Relay(Gated):
    """Accepts on ``listener`` and relays to ``target``, by the will of ``keeper``'s gate."""

    __slots__ = (
        "_lingering_timed",
        "buffer",
        "connections",
        "gate",
        "keeper",
        "lingering",
        "listener",
        "loop",
        "target",
        "view",
        "waiting",
    )

    def __init__(self, loop: Loop, keeper: Keeper, listener: _socket.socket, target: Address) -> None:
        self.loop = loop
        self.keeper = keeper
        self.gate = keeper.gate
        self.listener = listener
        self.target = target
        self.buffer = bytearray(BULK_READ)  # for large responses; only an unsent tail is copied from it
        self.view = memoryview(self.buffer)
        self.connections: set[Connection] = set()
        self.waiting: set[Connection] = set()
        self.lingering: dict[Connection, float] = {}  # until when
        self._lingering_timed = False
        keeper.gated = self

    def start(self, idle_stream: float | None = None) -> None:
        """Begin to accept. ``idle_stream``: seconds of silence after which a stream counts as idle."""
        self.loop.watch(self.listener.fileno(), READ, self._accept)
        if idle_stream is not None:
            self._sweep(idle_stream / 4)

    def stop_accepting(self) -> None:
        """Close the listener; connections go on."""
        if self.listener.fileno() >= 0:
            self.loop.forget(self.listener.fileno())
            self.listener.close()

    def drained(self) -> bool:
        """Close every connection that waits for nothing; returns whether none is left."""
        for connection in list(self.connections):
            if not connection.busy:
                connection.close()
        return not self.connections

    # What the gate wants.

    def before_freeze(self) -> None:
        """Close idle connections to the server: its keep-alive timers would fire at the thaw, and race a request."""
        for connection in self.connections:
            connection.let_go()

    def release(self) -> None:
        """Send on all that was held."""
        waiting, self.waiting = self.waiting, set()
        for connection in waiting:
            connection.release()

    def refuse(self) -> None:
        """Answer 503 to all that wait."""
        waiting, self.waiting = self.waiting, set()
        for connection in waiting:
            connection.refuse()

    # The listener.

    def _accept(self, _events: int) -> None:
        listener = self.listener
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                fd, _address = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_MEANS:
                    self.loop.forget(listener.fileno())
                    self.loop.at(self.loop.now + ACCEPT_PAUSE, self._accept_again)
                    return
                continue  # a client that has left already (accept(2), "Error handling")
            client = _socket.socket(listener.family, _socket.SOCK_STREAM, 0, fd)
            client.setblocking(False)
            client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            self.connections.add(Connection(self, client))

    def _accept_again(self) -> None:
        if self.listener.fileno() >= 0:
            self.loop.watch(self.listener.fileno(), READ, self._accept)

    def linger(self, connection: "Connection") -> None:
        """Give the client a while to fetch what it was sent last, then close."""
        if not self._lingering_timed:
            self._lingering_timed = True  # one timer for all: clients that leave at once would heap up one each
            self.loop.at(self.loop.now + LINGER, self._end_lingering)
        self.lingering[connection] = self.loop.now + LINGER

    def _end_lingering(self) -> None:
        for connection, until in list(self.lingering.items()):
            if until > self.loop.now:
                self.loop.at(until, self._end_lingering)
                return
            connection.close()
        self._lingering_timed = False

    def _sweep(self, period: float) -> None:
        for connection in self.connections:
            if connection.observer is not None:
                connection.observer.sweep()
        self.loop.at(self.loop.now + period, lambda: self._sweep(period))


def _nothing(_events: int) -> None:
    """Handles the events of a side that is closed; there are none."""


class Side:
    """One socket of a connection: what it is watched for, and the unsent ``tail`` of what goes to it."""

    __slots__ = ("_events", "_fd", "_handler", "_loop", "finished", "socket", "tail")

    def __init__(self, loop: Loop, socket: _socket.socket, handler: "Callable[[int], None]") -> None:
        self._loop = loop
        self._fd = socket.fileno()
        self._handler = handler
        self._events = READ
        self.socket = socket
        self.tail = b""
        self.finished = False  # our FIN is sent
        loop.watch(self._fd, READ, handler)

    def _want(self, events: int) -> None:
        # Watched for nothing, it is not watched at all: a hang-up would be reported without end.
        if events != self._events:
            if not events:
                self._loop.forget(self._fd)
            elif not self._events:
                self._loop.watch(self._fd, events, self._handler)
            else:
                self._loop.change(self._fd, events)
            self._events = events

    def read(self, on: bool) -> None:
        """Read from it, or leave what it sends in the kernel."""
        self._want(self._events | READ if on else self._events & ~READ)

    def handle_with(self, handler: "Callable[[int], None]") -> None:
        """Hand its events to another handler from now on."""
        events = self._events
        self._want(0)
        self._handler = handler
        self._want(events)

    def keep(self, tail: bytes) -> None:
        """Send this when it can take it."""
        self.tail += tail
        self._want(self._events | WRITE)

    def flush(self) -> bool:
        """Send of the tail what it takes; returns whether that was all. Raises ``OSError`` where it is gone."""
        try:
            sent = self.socket.send(self.tail)
        except BlockingIOError:
            return False
        self.tail = self.tail[sent:]
        if self.tail:
            return False
        self._want(self._events & ~WRITE)
        return True

    def finish(self) -> None:
        """Say that nothing more will come: send FIN."""
        if not self.finished:
            self.finished = True
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                pass  # It is gone already, as reading from it will tell.

    def close(self, reset: bool = False) -> None:
        """Close it after this round of events; with ``reset``, by RST."""
        self._want(0)
        if reset:
            self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        self._loop.close_after(self.socket)
        self._handler = _nothing  # it holds the connection, which holds this: the memory would wait for a collection


class Connection:
    """A client's connection, and the one to the server that belongs to it while there is need of one."""

    __slots__ = (
        "_bulk",
        "_client_done",
        "_first",
        "_hold",
        "_observe_server",
        "_recv_client",
        "_recv_server",
        "_recv_server_into",
        "_send_client",
        "_send_server",
        "_server_done",
        "client",
        "gate",
        "held",
        "observer",
        "relay",
        "server",
    )

    def __init__(self, relay: Relay, client: _socket.socket) -> None:
        self.relay = relay
        self.gate = relay.gate
        self.observer: Observer | None = None
        self.held = b""  # bytes from the client that wait for the gate
        self.client = Side(relay.loop, client, self._on_client)
        self.server: Side | None = None
        self._recv_client = client.recv
        self._send_client = client.send
        self._bulk = False  # the server sent much at once, and may do so again
        self._first = b""  # bytes from the client that do not yet tell its protocol
        self._hold = False  # what is held is no exchange, and is counted by ourselves
        self._client_done = False  # it will send no more
        self._server_done = False  # likewise

    @property
    def busy(self) -> bool:
        """Whether an exchange is in flight, or bytes are on their way to the client."""
        return bool(self.client.tail or self.held or (self.observer is not None and self.observer.in_flight))

    # The two handlers that every byte passes.

    def _on_client(self, events: int) -> None:
        if events & WRITE:
            self._flush_client()
            if not events & READ:
                return
        try:
            data = self._recv_client(REQUEST_READ)
        except BlockingIOError:
            return
        except OSError:
            self.close(reset=True)
            return
        observer = self.observer
        if not data:
            self._client_ended()
        elif observer is None:
            self._begin(data)
        elif self.gate.open:
            observer.from_client(data)
            self._to_server(data)
        elif not self._answer_pings(observer, data):
            self._ask(observer, data)

    def _on_server(self, events: int) -> None:
        if events & WRITE:
            self._flush_server()
            if not events & READ:
                return
        data: bytes | memoryview
        try:
            if self._bulk:
                buffer: bytes | bytearray = self.relay.buffer
                size = self._recv_server_into(buffer)
                data = self.relay.view[:size]
            else:
                data = buffer = self._recv_server(SMALL_READ)
                size = len(data)
        except BlockingIOError:
            return
        except OSError:
            self._server_failed()
            return
        if not size:
            self._server_ended()
            return
        self._bulk = size >= BULK
        self._observe_server(buffer, size)
        try:
            sent = 0 if self.client.tail else self._send_client(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(reset=True)
            return
        if sent != size:
            self.client.keep(bytes(data[sent:]))
            if self.server is not None:
                self.server.read(False)

    # To the server.

    def _begin(self, data: bytes) -> None:
        """The first bytes: which protocol is it?"""
        self._first += data
        observer = pick(self._first, self.relay.keeper)
        if observer is not None:
            self._speak(observer)

    def _speak(self, observer: Observer) -> None:
        """The protocol is known."""
        data, self._first = self._first, b""
        self.observer = observer
        self._observe_server = observer.from_server
        self._ask(observer, data)

    def _ask(self, observer: Observer, data: bytes) -> None:
        """Bytes for the server, while the gate may be shut."""
        observer.from_client(data)
        if self.gate.open:
            self._to_server(data)
        else:
            self._wait(observer, data)

    def _to_server(self, data: bytes) -> None:
        if self.server is None:
            if not self._connect():
                return
        elif self.server.tail:
            self.server.keep(data)
            return
        try:
            sent = self._send_server(data)
        except BlockingIOError:
            sent = 0  # not yet connected, or slower than the client
        except ConnectionRefusedError:
            self.close(reset=True)
            return
        except OSError:
            self._server_deaf()
            return
        if sent != len(data) and self.server is not None:
            self.server.keep(data[sent:])
            self.client.read(False)

    def _connect(self) -> bool:
        try:
            server = tcp_socket(self.relay.target)
        except OSError:  # out of descriptors: those of this client help the others
            self.close(reset=True)
            return False
        refused = server.connect_ex(self.relay.target)
        if refused and refused != errno.EINPROGRESS:
            server.close()
            self.close(reset=True)
            return False
        server.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.server = Side(self.relay.loop, server, self._on_server)
        self._recv_server = server.recv
        self._recv_server_into = server.recv_into
        self._send_server = server.send
        return True

    def _flush_server(self) -> None:
        assert self.server is not None
        try:
            if self.server.flush():
                self.client.read(not self._client_done)
                self._wind_down()
        except ConnectionRefusedError:
            self.close(reset=True)
        except OSError:
            self._server_deaf()

    def _server_deaf(self) -> None:
        """It takes no more. What it has said before is still there to be read, and reading tells how it ended."""
        assert self.server is not None
        self.server.tail = b""
        self.server.read(True)
        self.client.handle_with(self._on_ignored_client)
        self.client.read(not self._client_done)

    # To the client.

    def _flush_client(self) -> None:
        try:
            if self.client.flush():
                if self.server is not None and not self._server_done:
                    self.server.read(True)
                if not self.held and not self._client_done and (self.server is None or not self.server.tail):
                    self.client.read(True)
                self._wind_down()
        except OSError:
            self.close(reset=True)

    def _say(self, data: bytes) -> None:
        """Send the client something of our own."""
        if not self.client.tail:
            try:
                data = data[self._send_client(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self.close(reset=True)
                return
        if data:
            self.client.keep(data)
            self.client.read(False)

    def _answer_pings(self, observer: Observer, data: bytes) -> bool:
        pongs = observer.pongs(data) if isinstance(observer, Http2) and not observer.in_flight else None
        if pongs is None:
            return False
        self._say(pongs)
        return True

    # The gate.

    def _wait(self, observer: Observer, data: bytes) -> None:
        """Hold these bytes until the gate opens."""
        self.held = data
        self.client.read(False)
        self.relay.waiting.add(self)
        if not observer.in_flight:
            self._hold = True
            self.relay.keeper.held()

    def release(self) -> None:
        """The gate is open: send on what was held."""
        data, self.held = self.held, b""
        self.client.read(not self._client_done and not self.client.tail)
        self._to_server(data)
        self._wind_down()
        self._end_hold()

    def refuse(self) -> None:
        """The thaw has taken too long: answer 503, and end."""
        assert self.observer is not None
        if isinstance(self.observer, Http2) and not self._client_done:
            # Many clients send a handshake first and their streams after it: these have not been read yet.
            try:
                self.observer.from_client(self._recv_client(REQUEST_READ))
            except OSError:
                pass  # There is nothing more, or the client is gone, as the answer to it will tell.
        refusal = self.observer.refusal()
        self.held = b""
        self.observer.closed()
        self._end_hold()
        if not refusal:
            self.close(reset=True)
            return
        self._say(refusal)
        self._server_ended()

    def _end_hold(self) -> None:
        if self._hold:
            self._hold = False
            self.relay.keeper.ended()

    def let_go(self) -> None:
        """The server is about to stand still: an idle connection to it is closed, and opened again when needed."""
        server, observer = self.server, self.observer
        if server is None or observer is None or self._server_done or self._client_done:
            return
        if observer.reusable and not server.tail:
            if observer.last:
                self._server_ended()  # as it has announced; the client may be waiting for that
            else:
                self._drop_server()

    # The ends.

    def _client_ended(self) -> None:
        self._client_done = True
        self.client.read(False)
        if self._first:
            # It said too little to tell its protocol, and will not say more: the server may know what to make of it.
            self._speak(Http1(self.relay.keeper))
        self._wind_down()

    def _server_ended(self) -> None:
        """It sends no more."""
        assert self.observer is not None
        self._server_done = True
        self.observer.server_closed()
        if self.observer.opaque:
            assert self.server is not None
            self.server.read(False)
        else:
            if self.held:  # for a server that has closed, as if it had been sent at once
                self.held = b""
                self.relay.waiting.discard(self)
                self._end_hold()
            if self.server is not None:
                self._drop_server()
            self.client.handle_with(self._on_ignored_client)
            self.client.read(not self._client_done)
        self._wind_down()

    def _server_failed(self) -> None:
        """Its connection was reset; so is the client's, unless all that the client has of it is whole."""
        assert self.observer is not None
        if self.observer.whole:
            self._server_ended()
        else:
            self.close(reset=True)

    def _wind_down(self) -> None:
        """Pass on the end of either side, once all before it has been sent."""
        if self.held:
            return
        server, client = self.server, self.client
        if self._server_done and not client.tail:
            if self._client_done:
                self.close()
                return
            if not client.finished:
                client.finish()
                if server is None:
                    self.relay.linger(self)
        if self._client_done:
            if server is None or (self.observer is not None and self.observer.reusable):
                if not client.tail:
                    self.close()
            elif not server.tail:
                server.finish()

    def _on_ignored_client(self, events: int) -> None:
        """What the client sends reaches nobody any more; closing now could take the last response from it."""
        if events & WRITE:
            self._flush_client()
            if not events & READ:
                return
        try:
            data = self._recv_client(REQUEST_READ)
        except BlockingIOError:
            return
        except OSError:
            self.close(reset=True)
            return
        if not data:
            self._client_ended()

    def _drop_server(self) -> None:
        assert self.server is not None
        self.server.close()
        self.server = None

    def close(self, reset: bool = False) -> None:
        """End both connections, with ``reset`` by RST."""
        if self in self.relay.connections:
            self.relay.connections.discard(self)
            self.relay.waiting.discard(self)
            self.relay.lingering.pop(self, None)
            self.client.close(reset)
            if self.server is not None:
                self.server.close(reset)
                self.server = None
            if self.observer is not None:
                self.observer.closed()
            self._end_hold()
