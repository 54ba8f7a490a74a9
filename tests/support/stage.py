"""A client of the daemon with gate, keeper and loop, and a daemon that the test plays itself, all in one thread.

The loop runs only inside ``Stage.until`` and ``Stage.run_for``; the sockets between the two are real.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from freeze_proxy.control.client import Client
from freeze_proxy.control.token import TokenFile
from freeze_proxy.gate import Gate, Settings
from freeze_proxy.keeper import Gated, Keeper, Witness
from freeze_proxy.loop import Loop
from tests.support.ports import LOOPBACK
from tests.support.wait import PATIENCE

T = TypeVar("T")

GRACE = 0.01
TOKEN = "header.payload.signature"


class Asked(NamedTuple):
    """A request as it arrived."""

    path: str
    fields: dict[str, str]
    body: bytes


def answer(status: int, body: bytes | None = None) -> bytes:
    """The bytes of a daemon's answer."""
    if body is None:
        body = b'{"state": "awake"}' if status == 200 else json.dumps({"error": f"It is a {status}."}).encode()
    return b"HTTP/1.1 %d Some Words\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Peer:
    """The daemon's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._data = b""
        self.ended = False

    def asked(self) -> list[Asked]:
        """All requests that are there now."""
        while not self.ended:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._data += data
        found = []
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            method, path, version = first.split(" ")
            assert (method, version) == ("POST", "HTTP/1.1")
            fields = dict(line.lower().split(": ", 1) for line in lines)
            assert len(fields) == len(lines)
            length = int(fields["content-length"])
            if len(rest) < length:
                break
            self._data = rest[length:]
            found.append(Asked(path, fields, rest[:length]))
        return found

    @property
    def left(self) -> bool:
        """Whether this end is closed, or the client's FIN or RST is there to be read."""
        if self.ended:
            return True
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def send(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except OSError:
            pass  # the client has gone; a daemon would not mind

    def answer(self, status: int = 200, body: bytes | None = None) -> None:
        self.send(answer(status, body))

    def close(self) -> None:
        self.ended = True
        self.socket.close()

    def reset(self) -> None:
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close()


class Listener:
    """Where a daemon is to be found; it can go away, and come back at the same port."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = socket.create_server((LOOPBACK, 0), backlog=64)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[Peer] = []

    def accept(self) -> Peer | None:
        if self._listener is None:
            return None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers.append(Peer(connection))
        return self.peers[-1]

    def go(self) -> None:
        """As the kernel does it for a process that is killed."""
        while self.accept():
            pass
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for peer in self.peers:
            peer.reset()
        self.peers.clear()

    def come(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((LOOPBACK, self.port), backlog=64)
            self._listener.setblocking(False)


class Notes(Witness):
    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.refusals = 0

    def failed(self, what: str, reason: str) -> None:
        self.failures.append((what, reason))

    def refused(self, exchanges: int) -> None:
        self.refusals += exchanges


class Relaylike(Gated):
    """Its exchanges end when they are refused, as the relay's do."""

    keeper: Keeper

    def refuse(self) -> None:
        for _ in range(self.keeper.gate.in_flight):
            self.keeper.ended()


class Stage:
    """To be closed. ``said`` is what the client said."""

    def __init__(self, token: Path, settings: Settings | None = None, host: str = LOOPBACK, **options: object) -> None:
        self.listener = Listener()
        self.loop = Loop()
        self.said: list[str] = []
        self.token = token
        token.write_text(TOKEN)
        self.client = Client(
            self.loop,
            (host, self.listener.port),
            TokenFile(str(token)),
            self.said.append,
            **options,  # type: ignore[arg-type]
        )
        self.gate = Gate(settings or Settings(grace=GRACE))
        self.notes = Notes()
        self.keeper = Keeper(self.loop, self.gate, self.client, self.notes)
        self.keeper.gated = relay = Relaylike()
        relay.keeper = self.keeper

    def close(self) -> None:
        self.client.close()
        self.listener.go()
        self.run_for(0.0)
        self.loop.close()

    def until(self, look: Callable[[], T], what: str = "it", within: float = PATIENCE) -> T:
        """Run the loop until ``look`` answers something true, and return that."""
        deadline = time.monotonic() + within
        answers: list[T] = []

        def watch() -> None:
            if found := look():
                answers.append(found)
            if found or time.monotonic() > deadline:
                self.loop.stop()
            else:
                self.loop.at(time.monotonic() + 0.0005, watch)

        self.loop.at(0.0, watch)
        self.loop.run()
        assert answers, f"Not within {within} s: {what}; {self.gate.state}, {self.client.state}, {self.said}"
        return answers[0]

    def run_for(self, seconds: float) -> None:
        """Run the loop; for what must not happen in this time."""
        self.loop.at(time.monotonic() + seconds, self.loop.stop)
        self.loop.run()

    # What the daemon does.

    def accept(self) -> Peer:
        """The next connection."""
        peer = self.until(self.listener.accept, "the client connects")
        assert peer is not None
        return peer

    def asked(self, peer: Peer, count: int = 1) -> list[Asked]:
        """The next requests on it."""
        found: list[Asked] = []

        def look() -> bool:
            found.extend(peer.asked())
            return len(found) >= count or peer.ended

        self.until(look, f"{count} requests")
        assert len(found) == count, found
        return found

    def begin(self) -> Peer:
        """Client and gate start; returns their connection, on which the first thaw has been answered."""
        self.client.start()
        peer = self.accept()
        self.greeted(peer)
        self.keeper.ready()
        return peer

    def greeted(self, peer: Peer) -> None:
        """The daemon answers the thaw with which every connection begins."""
        assert [asked.path for asked in self.asked(peer)] == ["/thaw"]
        peer.answer()

    def await_state(self, state: str, within: float = PATIENCE) -> None:
        self.until(lambda: self.gate.state == state, f"the gate is {state}", within)

    def freeze(self, peer: Peer) -> None:
        """The daemon freezes, and the gate knows."""
        assert [asked.path for asked in self.asked(peer)] == ["/freeze"]
        peer.answer()
        self.await_state("frozen")


@contextmanager
def staged(token: Path, settings: Settings | None = None, **options: object) -> Iterator[Stage]:
    stage = Stage(token, settings, **options)  # type: ignore[arg-type]
    try:
        yield stage
    finally:
        stage.close()
