"""One client's connection, relayed: every byte of an exchange passes through here.

An observer sees each read before it is sent on, and what may not pass is held. Flow control is one rule: at most one
unsent tail a direction, and while there is one, its source is not read. Ends are passed on as they come: FIN as FIN,
RST as RST.
"""

import _socket
import errno

from freeze_proxy.keeper import Keeper
from freeze_proxy.loop import READ, WRITE, Loop
from freeze_proxy.observe import Http1, Http2, Observer, pick
from freeze_proxy.tcp import Address, Pipe, Side, tcp_socket

REQUEST_READ = SMALL_READ = 64 * 1024
BULK_READ = 256 * 1024
BULK = 16 * 1024
"""Bytes in a read from the server above which the next may fill the large buffer that all connections share."""
SPLICE = 64 * 1024
"""Bytes still to come of a body of known length above which they pass inside the kernel, by splice(2)."""
LINGER = 5.0
"""Seconds that a client has to close its side after the server has closed: enough to fetch the last response."""


class Connections:
    """All connections to one ``target``, and what they share."""

    __slots__ = (
        "_lingering_timed",
        "all",
        "buffer",
        "gate",
        "keeper",
        "lingering",
        "loop",
        "pipe",
        "target",
        "view",
        "waiting",
    )

    def __init__(self, loop: Loop, keeper: Keeper, target: Address) -> None:
        self.loop = loop
        self.keeper = keeper
        self.gate = keeper.gate
        self.target = target
        self.buffer = bytearray()  # for large responses; only an unsent tail is copied from it
        self.view = memoryview(b"")
        self.pipe: Pipe | None = None
        self.all: set[Connection] = set()
        self.waiting: set[Connection] = set()  # for the gate
        self.lingering: dict[Connection, float] = {}  # until when
        self._lingering_timed = False

    def make_buffer(self) -> bytearray:
        """The buffer, when there is a first large response: many a server never sends one."""
        self.buffer = bytearray(BULK_READ)
        self.view = memoryview(self.buffer)
        return self.buffer

    def take_waiting(self) -> "set[Connection]":
        """Those that wait for the gate; from now on they do not any more."""
        waiting, self.waiting = self.waiting, set()
        return waiting

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


class Connection:
    """A client's connection, and the one to the server that belongs to it while there is need of one."""

    __slots__ = (
        "_ahead",
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
        "connections",
        "gate",
        "held",
        "observer",
        "server",
    )

    def __init__(self, connections: Connections, client: _socket.socket) -> None:
        self.connections = connections
        self.gate = connections.gate
        self.observer: Observer | None = None
        self.held = b""  # bytes from the client that wait for the gate
        self.client = Side(connections.loop, client, self._on_client)
        self.server: Side | None = None
        self._recv_client = client.recv
        self._send_client = client.send
        self._ahead: _socket.socket | None = None  # to the server, of no use before the gate opens
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
                observer = self.observer
                if (
                    observer is not None
                    and observer.unread > SPLICE
                    and not self.client.tail
                    and self._splice(observer)
                ):
                    return
                buffer: bytes | bytearray = self.connections.buffer or self.connections.make_buffer()
                size = self._recv_server_into(buffer)
                data = self.connections.view[:size]
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

    def _splice(self, observer: Observer) -> bool:
        """Pass on what there is of a long body, unread; returns whether there was anything to be done.

        Its last bytes come the other way, so that the observer sees the end.
        """
        assert self.server is not None
        pipe = self.connections.pipe
        if pipe is None:
            try:
                pipe = self.connections.pipe = Pipe()
            except OSError:
                return False
        size = pipe.fill(self.server.fd, min(observer.unread - SMALL_READ // 2, BULK_READ))
        if not size:
            return False
        observer.skip(size)
        try:
            rest = pipe.empty(self.client.fd, size)
        except OSError:
            self.close(reset=True)
            return True
        if rest:
            self.client.keep(rest)
            self.server.read(False)
        return True

    # To the server.

    def _begin(self, data: bytes) -> None:
        """The first bytes: which protocol is it?"""
        self._first += data
        observer = pick(self._first, self.connections.keeper)
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
        server = self._take_ahead() or self._connected()
        if server is None:
            self.close(reset=True)
            return False
        self.server = Side(self.connections.loop, server, self._on_server)
        self._recv_server = server.recv
        self._recv_server_into = server.recv_into
        self._send_server = server.send
        return True

    def _connected(self) -> _socket.socket | None:
        """A new connection to the server, or one that is being made."""
        try:
            server = tcp_socket(self.connections.target)
        except OSError:  # out of descriptors: those of this client help the others
            return None
        refused = server.connect_ex(self.connections.target)
        if refused and refused != errno.EINPROGRESS:
            server.close()
            return None
        server.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        return server

    def _take_ahead(self) -> _socket.socket | None:
        """The connection that was made while the gate was shut, if it stands."""
        server, self._ahead = self._ahead, None
        if server is not None:
            try:
                server.getpeername()  # fails where nobody has accepted: the kernel would ask again after a second
                server.recv(1, _socket.MSG_PEEK)
            except BlockingIOError:
                return server
            except OSError:
                pass  # a new one will tell what is wrong
            server.close()
        return None

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

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
        self.connections.waiting.add(self)
        if not observer.in_flight:
            self._hold = True
            self.connections.keeper.held()
        if self.server is None and self.connections.waiting == {self}:
            # The kernel accepts for a server that stands still, in the time that its thaw takes anyway. Only for the
            # first: a server's backlog may be short, and what does not find room waits for a second.
            self._ahead = self._connected()

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
        self._drop_ahead()
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
            self.connections.keeper.ended()

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
            self._speak(Http1(self.connections.keeper))
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
                self.connections.waiting.discard(self)
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
                    self.connections.linger(self)
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
        if self in self.connections.all:
            self.connections.all.discard(self)
            self.connections.waiting.discard(self)
            self.connections.lingering.pop(self, None)
            self.client.close(reset)
            if self.server is not None:
                self.server.close(reset)
                self.server = None
            self._drop_ahead()
            if self.observer is not None:
                self.observer.closed()
            self._end_hold()
