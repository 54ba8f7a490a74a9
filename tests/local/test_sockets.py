"""A server's sockets, looked at beside the loop."""

import socket
import threading
from collections.abc import Iterator

import pytest

from freeze_proxy.ambient.sockets import Seen
from freeze_proxy.local.sockets import SocketsAside
from freeze_proxy.loop import Loop
from tests.support.ports import LOOPBACK


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_who_asks_is_told_on_the_loop_and_never_at_once(loop: Loop) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener, socket.create_connection(listener.getsockname()):
        sockets = SocketsAside(loop, (listener.getsockname()[1],))
        told: list[tuple[Seen, int]] = []

        def tell(seen: Seen) -> None:
            told.append((seen, threading.get_ident()))
            if len(told) == 2:
                loop.stop()

        sockets.ask(tell)
        sockets.ask(tell)
        assert not told
        loop.run()
        assert told == [(sockets.look(), threading.get_ident())] * 2
        assert told[0][0].listens
        assert told[0][0].waiting  # to be accepted
        sockets.close()


def test_when_it_is_closed_nobody_is_told(loop: Loop) -> None:
    sockets = SocketsAside(loop, (9,))
    told: list[Seen] = []
    sockets.ask(told.append)
    sockets.close()
    loop.soon(loop.stop)
    loop.run()
    assert not told
