"""A relay in a thread of this process, whose freezes and thaws the test carries out by hand.

``House`` is loop, gate, keeper and relay; ``Hand`` is the driver, unless the test brings another. What the test wants
to see or do of theirs happens on their thread, through ``House.on_loop``.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from freeze_proxy.gate import AWAKE, FROZEN, Gate, Settings
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import READ, Loop
from freeze_proxy.relay import Relay
from freeze_proxy.tcp import listen
from tests.support.ports import LOOPBACK
from tests.support.wait import PATIENCE, until

T = TypeVar("T")


class Hand(Driver):
    """Answers freezes ``freeze_after`` and thaws ``thaw_after`` so many seconds; ``None``: when the test says so."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.freeze_after: float | None = 0.0
        self.thaw_after: float | None = 0.0
        self.unanswered: list[int] = []
        self.freezes = 0
        self.thaws = 0

    def freeze(self, ticket: int) -> None:
        self.freezes += 1
        self._answer(ticket, self.freeze_after)

    def thaw(self, ticket: int) -> None:
        self.thaws += 1
        self._answer(ticket, self.thaw_after)

    def _answer(self, ticket: int, after: float | None) -> None:
        if after is None:
            self.unanswered.append(ticket)
        else:
            self.loop.at(time.monotonic() + after, lambda: self.keeper.done(ticket))


class Notes(Witness):
    """What a user would have been told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def frozen(self, at: float, took: float) -> None:
        self.told.append(("frozen", took))

    def thawed(self, at: float, waited: float | None) -> None:
        self.told.append(("thawed", waited))

    def failed(self, what: str, reason: str) -> None:
        self.told.append(("failed", what))

    def refused(self, exchanges: int) -> None:
        self.told.append(("refused", exchanges))


class House:
    """To be used in a ``with``. Leaving it fails if the loop died, or if anything is still counted as in flight."""

    def __init__(
        self,
        target: int,
        settings: Settings | None = None,
        *,
        ready: bool = True,
        idle_stream: float | None = None,
        driver: Callable[[Loop], Driver] | None = None,
    ) -> None:
        self.loop = Loop()
        self.hand = Hand(self.loop)
        self.notes = Notes()
        self.gate = Gate(settings or Settings(grace=0.02))
        self.driver = self.hand if driver is None else driver(self.loop)
        self.keeper = Keeper(self.loop, self.gate, self.driver, self.notes)
        self.relay = Relay(self.loop, self.keeper, listen((LOOPBACK, 0)), (LOOPBACK, target))
        self.port: int = self.relay.listener.getsockname()[1]
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._ready = ready
        self._idle_stream = idle_stream
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as death:  # kept for the test's own thread, which raises it
            self._death = death

    def _rung(self, _events: int) -> None:
        os.eventfd_read(self._bell)
        while not self._calls.empty():
            self._calls.get()()

    def on_loop(self, call: Callable[[], T]) -> T:
        """Call it on the relay's thread, and return what it returned."""
        answers: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._calls.put(lambda: answers.put(call()))
        os.eventfd_write(self._bell, 1)
        try:
            return answers.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("The relay's loop does not come round any more.") from self._death

    def __enter__(self) -> Self:
        self.loop.watch(self._bell, READ, self._rung)
        self._thread.start()

        def begin() -> None:
            self.relay.start(self._idle_stream)
            if self._ready:
                self.keeper.ready()

        self.on_loop(begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._death is None:
                self.on_loop(self._cut)
                in_flight = self.on_loop(lambda: self.gate.in_flight)
                self.on_loop(self.loop.stop)
                self._thread.join(PATIENCE)
                if kind is None:
                    assert in_flight == 0, f"{in_flight} in flight though every connection is closed"
        finally:
            if not self._thread.is_alive():
                self.loop.close()
            os.close(self._bell)
        if self._death is not None:
            raise AssertionError("The relay's loop has died.") from self._death

    def _cut(self) -> None:
        self.relay.stop_accepting()
        for connection in list(self.relay.connections.all):
            connection.close()

    # What a test asks for.

    def client(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection to the relay."""
        client = socket.socket()
        client.settimeout(PATIENCE)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect((LOOPBACK, self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def state(self) -> str:
        return self.on_loop(lambda: self.gate.state)

    def in_flight(self) -> int:
        return self.on_loop(lambda: self.gate.in_flight)

    def connections(self) -> int:
        return self.on_loop(lambda: len(self.relay.connections.all))

    def await_state(self, state: str, within: float = PATIENCE) -> None:
        until(lambda: self.state() == state, f"the gate is {state}", within)

    def await_frozen(self) -> None:
        self.await_state(FROZEN)

    def await_awake(self) -> None:
        self.await_state(AWAKE)

    def hold_thaws(self) -> None:
        """From now on thaws are answered by ``answer`` or ``fail`` alone."""
        self.hand.thaw_after = None

    def await_order(self) -> None:
        until(lambda: self.on_loop(lambda: bool(self.hand.unanswered)), "there is an order without an answer")

    def answer(self) -> None:
        """The oldest order without an answer has been carried out."""
        self.await_order()
        self.on_loop(lambda: self.keeper.done(self.hand.unanswered.pop(0)))

    def fail(self) -> None:
        """The oldest order without an answer could not be carried out."""
        self.await_order()
        self.on_loop(lambda: self.keeper.failed(self.hand.unanswered.pop(0), "as the test wanted"))

    def tails(self) -> int:
        """Bytes that the relay keeps for anybody."""

        def count() -> int:
            return sum(
                len(connection.held)
                + len(connection.client.tail)
                + len(connection.server.tail if connection.server else b"")
                for connection in self.relay.connections.all
            )

        return self.on_loop(count)


class Upstream:
    """A server that the test plays itself: it accepts when told to, and says what the test says."""

    def __init__(self) -> None:
        self.listener = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.listener.settimeout(PATIENCE)
        self.port: int = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self._early: list[socket.socket] = []

    def accept(self, receive_buffer: int | None = None) -> socket.socket:
        if receive_buffer is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection = self._early.pop(0) if self._early else self.listener.accept()[0]
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted.append(connection)
        return connection

    def nobody_comes(self, within: float = 0.05) -> bool:
        """Whether no connection arrives for a while."""
        return self._comes(within) is None

    def hears_nothing(self, within: float = 0.05) -> bool:
        """Whether no byte arrives for a while. A connection may, ahead of them: ``accept`` returns it if it stays."""
        early = self._comes(within)
        if early is None:
            return True
        try:
            early.settimeout(within)
            return not early.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            early.settimeout(PATIENCE)
            self._early.append(early)
            return True

    def _comes(self, within: float) -> socket.socket | None:
        self.listener.settimeout(within)
        try:
            self.accepted.append(self.listener.accept()[0])
        except TimeoutError:
            return None
        finally:
            self.listener.settimeout(PATIENCE)
        return self.accepted[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.accepted:
            connection.close()
        self.listener.close()


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or an ``AssertionError`` if the other side ends before."""
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 18))
        assert part, f"The connection ended {size} bytes early, after {b''.join(parts)[-200:]!r}."
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """All up to and including ``mark``."""
    data = b""
    while not data.endswith(mark):
        data += read_exactly(connection, 1)
    return data


def read_to_end(connection: socket.socket) -> bytes:
    """All up to the other side's FIN."""
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def quiet(connection: socket.socket, within: float = 0.05) -> bool:
    """Whether nothing at all, not even an end, comes for a while."""
    connection.settimeout(within)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(PATIENCE)
    return False
