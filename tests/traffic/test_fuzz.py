"""Nonsense from both sides at once, through a relay whose freezes and thaws come late, fail, or are never answered.

Nothing that a client or a server sends may stop the relay, and when all have gone nothing may be left in flight.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from freeze_proxy.connection import LINGER
from freeze_proxy.gate import Gate, Settings
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import Loop
from freeze_proxy.relay import Relay
from freeze_proxy.tcp import listen

SECONDS = 5.0
IDLE_STREAM = 0.02
_RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"

REQUESTS = (
    *[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] * 3,
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong",
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",
    b"\x00\x00\x04\x00\x01\x00\x00\x00\x01data",
    b"\r\n",
    b"P",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"x" * 100_000,
)
RESPONSES = (
    *[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"] * 6,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00",
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88",
    b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x00",
    b"y" * 300_000,
)


class Unreliable(Driver):
    """Four orders in five are done, at once or a little later; others fail or stay without an answer."""

    def __init__(self, loop: Loop, dice: random.Random) -> None:
        self._loop = loop
        self._dice = dice
        self.freezes = 0

    def freeze(self, ticket: int) -> None:
        self.freezes += 1
        self._answer(ticket)

    def thaw(self, ticket: int) -> None:
        self._answer(ticket)

    def _answer(self, ticket: int) -> None:
        fate = self._dice.random()
        answer: Callable[[], None]
        if fate < 0.8:
            answer = lambda: self.keeper.done(ticket)  # noqa: E731 - one of three, chosen here
        elif fate < 0.95:
            answer = lambda: self.keeper.failed(ticket, "by chance")  # noqa: E731
        else:
            answer = lambda: None  # noqa: E731
        if self._dice.random() < 0.5:
            answer()
        else:
            self._loop.at(self._loop.now + self._dice.random() * 0.003, answer)


def talk(connection: socket.socket, sayings: Sequence[bytes], dice: random.Random) -> None:
    """Say some of these things, cut and damaged, hear a little, and go in one way or another."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(0.05)
        for _ in range(dice.randrange(1, 8)):
            saying = bytearray(dice.choice(sayings))
            if dice.random() < 0.15:
                saying[dice.randrange(len(saying))] = dice.randrange(256)
            cut = dice.randrange(len(saying) + 1)
            connection.sendall(saying[:cut])
            if dice.random() < 0.3:
                time.sleep(dice.random() * 0.004)  # the moment at which the rest comes is left to chance
            connection.sendall(saying[cut:])
            if dice.random() < 0.6:
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(65536):
                        break
            if dice.random() < 0.05:
                connection.shutdown(socket.SHUT_WR)
        if dice.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def serve(listener: socket.socket, dice: random.Random) -> None:
    """Answer every connection with nonsense, until the listener is closed."""

    def answer(connection: socket.socket, dice: random.Random) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(0.2)
            connection.recv(65536)
        talk(connection, RESPONSES, dice)

    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection, random.Random(dice.random())), daemon=True).start()


@pytest.mark.parametrize(("seed", "clients"), [(1, 1), (2, 2), (3, 6)])
def test_nothing_stops_the_relay_and_nothing_is_left_in_flight(seed: int, clients: int) -> None:
    dice = random.Random(seed)
    loop = Loop()
    driver = Unreliable(loop, dice)
    keeper = Keeper(loop, Gate(Settings(grace=0.001, thaw_timeout=0.02)), driver, Witness())
    listener = listen(("127.0.0.1", 0))
    address = listener.getsockname()
    over = threading.Event()

    def ask(dice: random.Random) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection = socket.create_connection(address)
                if dice.random() < 0.5:
                    over.wait(dice.random() * 0.02)
                talk(connection, REQUESTS, dice)

    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(loop, keeper, listener, server.getsockname())
        relay.start(IDLE_STREAM)
        keeper.ready()
        threads = [threading.Thread(target=serve, args=(server, random.Random(seed)), daemon=True)]
        threads += [
            threading.Thread(target=ask, args=(random.Random(seed * 100 + n),), daemon=True) for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        loop.at(loop.now + SECONDS, loop.stop)
        loop.run()
        over.set()
        server.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + LINGER + 5.0

    def look() -> None:
        if relay.connections.all and time.monotonic() < deadline:
            loop.at(loop.now + 0.05, look)
        else:
            loop.stop()

    loop.at(loop.now, look)
    loop.run()
    relay.stop_accepting()
    loop.close()
    assert not relay.connections.all
    assert not relay.connections.waiting
    assert keeper.gate.in_flight == 0
    assert keeper.requests > 500
    assert driver.freezes > 0
