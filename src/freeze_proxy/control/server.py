"""A small HTTP/1.1 server on asyncio, for what comes from pods: bounded in size, time and number.

llhttp reads the bytes. Whoever answers gets whole requests, one connection's in their order, each at once when it has
arrived, however many before it are still unanswered; the answers leave in the order of the requests. So a thaw need not
wait until the freeze before it is done.

What holds it within bounds:

1. A head is ``MOST_HEAD`` bytes at most, a body ``MOST_BODY``; a request that has begun is complete ``PATIENCE``
   seconds later, or its connection is closed.
2. At most ``MOST_WAITING`` requests of one connection are unanswered; further ones are not read. A read takes
   ``READ_SIZE`` bytes, is parsed in pieces, and ``AT_ONCE`` requests are handed on before others have their turn, one
   at a time where nobody has shown who it is: a flood costs each of the others a fraction of a millisecond.
3. A connection that is not ``trusted`` is closed when it has brought no request for ``PATIENCE`` seconds, and there
   are ``MOST_UNTRUSTED`` from one address at most. A trusted one stays; keep-alive finds out when its peer has gone.
4. Who does not fetch the answers gets no more of them, and is cut off after ``PATIENCE`` seconds.

A pod asks for the same again and again, byte by byte, and each time somebody waits. So whoever answers may have it kept
what a request means (``Request.keep``); one of the same bytes on the same connection is known by their hash, and not
parsed. Of the bytes themselves nothing is kept: a token is among them.
"""

import asyncio
import contextlib
import http
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from hashlib import sha256
from types import coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

import httptools

from freeze_proxy.beats import next_beat
from freeze_proxy.control.messages import MOST_BODY, MOST_HEAD

PATIENCE = 10.0
LINGER = 2.0
"""Seconds for which a client that is refused may go on sending: a reset would take the answer from it."""
MOST_WAITING, AT_ONCE = 16, 2
MOST_KEPT = 2
"""Meanings of requests that are kept for a connection: a freeze and a thaw."""
READ_SIZE, _PIECE = 16 * 1024, 1024
MOST_CONNECTIONS, MOST_UNTRUSTED, MOST_FIELDS = 8192, 128, 64
_KEEPALIVE = (15, 5, 3)
"""Seconds of silence before the first probe and between two, and how many may stay unanswered."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Request:
    """One request. ``path`` is without its query; names in ``headers`` are lower case, of repeated ones the first.

    ``number`` is higher than that of any request that arrived before, on whichever connection; ``at`` is the moment,
    in seconds of the monotonic clock. ``meaning`` is what was kept of one of the same bytes; then ``headers`` and
    ``body`` are empty.
    """

    __slots__ = ("_digest", "at", "body", "connection", "headers", "meaning", "method", "number", "path")

    _newest = 0

    def __init__(
        self,
        connection: "Connection",
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
        meaning: Any = None,
    ) -> None:
        self.number = Request.next_number()
        self.at = time.monotonic()
        self.connection = connection
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.meaning = meaning
        self._digest = b""  # of its bytes, if it was read at once and alone

    def keep(self, meaning: Any, holds: Callable[[], bool]) -> None:
        """What it means, for the next of the same bytes, if ``holds`` says then that this is still so."""
        if self._digest:
            self.connection.keep(Kept(self._digest, self.method, self.path, meaning, holds))

    def came_as(self, data: bytes) -> None:
        """These are its bytes, all of them and no others; without this nothing is kept of it."""
        self._digest = sha256(data).digest()

    @classmethod
    def next_number(cls) -> int:
        """For an order that comes in no request, but at the same time as they do."""
        Request._newest += 1
        return Request._newest


class Kept(NamedTuple):
    """What is kept of a request whose bytes have this digest."""

    digest: bytes
    method: str
    path: str
    meaning: Any
    holds: Callable[[], bool]


class Answer:
    """An answer, ``body`` encoded already."""

    __slots__ = ("body", "kind", "more", "status")

    def __init__(self, status: int, body: bytes, kind: str = "application/json", more: str = "") -> None:
        self.status = status
        self.body = body
        self.kind = kind
        self.more = more

    def encoded(self, keep: bool, with_body: bool = True) -> bytes:
        """The bytes to send."""
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\nContent-Type: {self.kind}\r\n"
            f"Content-Length: {len(self.body)}\r\n{self.more}{'' if keep else _CLOSE}\r\n"
        )
        return head.encode("latin-1") + (self.body if with_body else b"")


_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_CLOSE = "Connection: close\r\n"


def answer(facts: Any, status: int = 200) -> Answer:
    """An answer that is JSON."""
    return Answer(status, json.dumps(facts).encode() + b"\n")


def error(status: int, sentence: str, more: str = "") -> Answer:
    """An answer that says what is wrong and what to do."""
    return Answer(status, json.dumps({"error": sentence}).encode() + b"\n", more=more)


class Handler(Protocol):
    """Who answers."""

    async def answer(self, request: Request) -> Answer:
        """The answer. Up to its first wait this is carried out in the call that has read the request, in no task."""
        ...

    def closed(self, connection: "Connection") -> None:
        """A connection has ended, whoever ended it."""
        ...


class Connection(asyncio.BufferedProtocol):
    """One client's connection. ``closed`` says that it has ended, ``peer`` is its address."""

    def __init__(self, server: "Server") -> None:
        self.trusted = False
        self.closed = False
        self.peer = ""
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._unparsed = b""
        # Short, and mostly empty: a deque would take half a kilobyte even so.
        self._arrived: list[tuple[Request, bool]] = []
        self._waiting: list[_Slot] = []
        self._kept: list[Kept] = []  # the newest first
        self._turn: asyncio.Handle | None = None
        self._last = False  # nothing more is read or answered after what is waiting
        self._busy_writing = False
        self._since = time.monotonic()  # the begin of what must be over within PATIENCE
        self._begin()

    # From asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        if not self._server.admit(self):
            self._refuse(429, "There are too many connections from this address; close some, or wait a few seconds.")
            return
        raw = transport.get_extra_info("socket")
        if raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            for option, value in zip(names, _KEEPALIVE, strict=True):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended. Requests that have begun are carried to their end; their handler sees ``closed``."""
        self.closed = True
        self._drop()
        self._waiting.clear()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where bytes are read to: one place for all, since they are taken out of it at once."""
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """More bytes."""
        if self._last:
            return
        data = bytes(self._server.buffer[:nbytes])
        alone = self._between and not self._more
        if alone and self._kept and (request := self._known(data)) is not None:
            self._arrived.append((request, True))
        else:
            self._unparsed += data
            self._whole, self._before = data if alone and self.trusted else b"", self._requests
        if self._turn is None:
            self._take()

    def eof_received(self) -> bool:
        """No more requests; who waits for answers still gets them (RFC 9112 §9.6), and is closed then."""
        self._ended = True
        return bool(self._waiting or self._arrived or self._unparsed)

    def pause_writing(self) -> None:
        """The client does not fetch its answers."""
        self._busy_writing = True
        self._since = time.monotonic()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It has fetched them."""
        self._busy_writing = False
        self._read_on()

    # From the parser.

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._waiting:
            self._since = time.monotonic()
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Part of its target."""
        self._url += url
        if len(self._url) > MOST_HEAD:
            self._too_long()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of its head."""
        self._head += len(name) + len(value) + 4
        self._fields += 1
        if self._head > MOST_HEAD or self._fields > MOST_FIELDS:
            self._too_long()
        self._headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Its head is complete."""
        if self._headers.get("expect", "").lower() == "100-continue" and not self._waiting and not self._arrived:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of its body."""
        if len(self._body) + len(body) > MOST_BODY:
            self._trouble = (413, f"A request's body may have {MOST_BODY} bytes.")
            raise ValueError
        self._body += body

    def on_message_complete(self) -> None:
        """It is there."""
        if self._parser.should_upgrade():
            return  # what is read has an end with this, and the parser says so
        method = self._parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        request = Request(self, method, path, self._headers, bytes(self._body))
        self._arrived.append((request, self._parser.should_keep_alive()))
        self._requests += 1
        self._begin()  # nothing of it is kept: a token takes more than a kilobyte
        self._complete = True

    # For handlers.

    def keep(self, kept: Kept) -> None:
        """For the next request of the same bytes; ``MOST_KEPT`` of them, the older ones go."""
        others = [each for each in self._kept if each.digest != kept.digest]
        self._kept = [kept, *others[: MOST_KEPT - 1]]

    def trust(self) -> None:
        """It has shown who it is: it may stay, and counts no more against its address."""
        self._server.trust(self)

    # Inside.

    _requests = 0
    _fed = 0
    _whole = b""  # what was read last, if no request was under way then
    _before = 0  # how many there had been
    _ended = False  # the client sends no more
    _lingers = False  # it has its last answer, and may fetch it
    _trouble: tuple[int, str] | None = None

    def _too_long(self) -> None:
        self._trouble = (431, f"A request's head may have {MOST_HEAD} bytes and {MOST_FIELDS} fields.")
        raise ValueError

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head = self._fields = 0
        self._body = bytearray()
        self._complete = False

    @property
    def _between(self) -> bool:
        """Whether one request is over, and no other has begun."""
        return self._complete and not self._fed and self._trouble is None

    def _known(self, data: bytes) -> Request | None:
        """The request that these bytes are, if what it means was kept and is still true."""
        digest = sha256(data).digest()
        for kept in self._kept:
            if kept.digest == digest and kept.holds():
                return Request(self, kept.method, kept.path, {}, meaning=kept.meaning)
        return None

    def _parse(self) -> None:
        """Until there is a request, or trouble, or nothing left."""
        while self._unparsed and not self._arrived and self._trouble is None:
            piece, self._unparsed = self._unparsed[:_PIECE], self._unparsed[_PIECE:]
            before = self._requests
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                self._trouble = self._trouble or (400, "There is nothing to upgrade to here.")
            except httptools.HttpParserError as reason:
                self._trouble = self._trouble or (400, f"This is not HTTP/1.1 as RFC 9112 has it: {reason}.")
            # One line without an end is kept by the parser itself, so what it was given counts.
            self._fed = self._fed + len(piece) if self._requests == before else 0
            if self._whole and self._arrived:
                if self._requests == self._before + 1 and self._between and not self._unparsed:
                    self._arrived[0][0].came_as(self._whole)
                self._whole = b""
            if self._fed > MOST_HEAD + MOST_BODY:
                self._trouble = self._trouble or (431, f"A request's head may have {MOST_HEAD} bytes.")

    def _take(self) -> None:
        """Hand on what has arrived, in turns with other connections."""
        self._turn = None
        for _ in range(AT_ONCE if self.trusted else 1):
            self._parse()
            if not self._arrived or len(self._waiting) >= MOST_WAITING or self._last or self.closed:
                break
            request, keep = self._arrived.pop(0)
            self._last = not keep
            self._hand_on(request, keep)
        if self._last:
            self._drop()
        elif self._arrived or (self._unparsed and self._trouble is None):
            if len(self._waiting) < MOST_WAITING and self._turn is None and not self.closed:
                self._turn = asyncio.get_running_loop().call_soon(self._take)
            self._transport.pause_reading()
        elif self._trouble is not None and not self.closed:
            self._refuse(*self._trouble)
        else:
            self._go_on()

    def _drop(self) -> None:
        """Whatever has not been handed on."""
        self._unparsed = b""
        self._arrived.clear()

    @property
    def _more(self) -> bool:
        """Whether there is something to be handed on."""
        return bool(self._arrived or self._unparsed)

    def _go_on(self) -> None:
        if self._lingers:
            return
        if (self._last or self._ended) and not self._waiting and not self._more:
            self._transport.close()
        else:
            self._read_on()

    def _read_on(self) -> None:
        enough = self._busy_writing or self._more or self._last or self._ended or len(self._waiting) >= MOST_WAITING
        if not enough and not self.closed:
            self._transport.resume_reading()

    def _hand_on(self, request: Request, keep: bool) -> None:
        with_body = request.method != "HEAD"
        work = self._server.handler.answer(request)
        try:
            yielded = work.send(None)
        except StopIteration as done:
            self._put(done.value, keep, with_body)
        except Exception:
            _log.exception("a request could not be answered", extra={"facts": {"path": request.path}})
            self._put(_failure(), keep, with_body)
        else:
            slot = _Slot(keep, with_body)
            self._waiting.append(slot)
            self._server.finish(resumed(work, yielded), self, slot)

    def _put(self, answer: Answer, keep: bool, with_body: bool) -> None:
        if self._waiting:
            self._waiting.append(_Slot(keep, with_body, answer))
        else:
            self._send(answer.encoded(keep, with_body), keep)

    def answered(self, slot: "_Slot", result: Answer) -> None:
        """One that took time has its answer; send what is next."""
        slot.answer = result
        while self._waiting and (ready := self._waiting[0].answer) is not None:
            first = self._waiting.pop(0)
            self._send(ready.encoded(first.keep, first.with_body), first.keep)
        if self._more and self._turn is None and not self._last:
            self._take()
        elif not self.closed:
            self._go_on()

    def _send(self, data: bytes, keep: bool) -> None:
        self._since = time.monotonic()
        if not self._transport.is_closing():
            self._transport.write(data)
            if not keep and self._trouble is not None and not self._ended:
                self._lingers = True
                self._transport.write_eof()
                self._transport.resume_reading()
            elif not keep:
                self._transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        """The last that this client hears; what waits before it goes first."""
        self._last = True
        self._drop()
        if not self.closed:
            self._put(error(status, sentence), False, True)

    def look(self, now: float) -> None:
        """Called now and then: end what takes too long."""
        if self.closed or now - self._since < (LINGER if self._lingers else PATIENCE):
            return
        begun = bool(self._url or self._headers or self._fed) and not self._complete
        if self._busy_writing or self._lingers or self._transport.is_closing():
            self._transport.abort()
        elif not self._waiting and not self._more and (begun or not self.trusted):
            self._refuse(408, f"A request must be complete within {PATIENCE:g} seconds.")


@coroutine
def resumed(work: Coroutine[Any, Any, T], yielded: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has been started without a task, and waits for ``yielded``."""
    try:
        while True:
            try:
                value = yield yielded
            except BaseException as error:  # a cancellation, say: it is the coroutine's own business
                yielded = work.throw(error)
            else:
                yielded = work.send(value)
    except StopIteration as done:
        result: T = done.value
        return result


class _Slot:
    """An answer's place in the order."""

    __slots__ = ("answer", "keep", "with_body")

    def __init__(self, keep: bool, with_body: bool, answer: Answer | None = None) -> None:
        self.answer = answer
        self.keep = keep
        self.with_body = with_body


def _failure() -> Answer:
    return error(500, "freeze-proxy has made a mistake; its log has the details. Nothing was changed by this request.")


class Server:
    """Listens, and keeps the connections."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self.buffer = memoryview(bytearray(READ_SIZE))
        self._peers: Counter[str] = Counter()
        self._listening: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Returns the address; raises ``OSError``."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._sweeping = asyncio.create_task(self._sweep())
        name = self._listening.sockets[0].getsockname()
        return name[0], name[1]

    def stop_listening(self) -> None:
        """No new connections."""
        if self._listening is not None:
            self._listening.close()

    async def close(self) -> None:
        """Ends all connections and what is still being done for them."""
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self.connections):
            connection._transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for it."""
        untrusted = self._peers[connection.peer]
        self.connections.add(connection)
        self._peers[connection.peer] += 1
        return untrusted < MOST_UNTRUSTED and len(self.connections) <= MOST_CONNECTIONS

    def trust(self, connection: Connection) -> None:
        """Counts it no more against its address."""
        if not connection.trusted and not connection.closed:
            connection.trusted = True
            self._leave(connection.peer)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        if not connection.trusted:
            self._leave(connection.peer)
        try:
            self.handler.closed(connection)
        except Exception:
            _log.exception("a connection's end could not be dealt with")

    def _leave(self, peer: str) -> None:
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]

    def finish(self, work: Coroutine[Any, Any, Answer], connection: Connection, slot: _Slot) -> None:
        """Have an answer come when it is there."""

        async def wait() -> None:
            try:
                result = await work
            except Exception:
                _log.exception("a request could not be answered")
                result = _failure()
            connection.answered(slot, result)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await next_beat(PATIENCE / 10)
                now = time.monotonic()
                for connection in list(self.connections):
                    connection.look(now)
