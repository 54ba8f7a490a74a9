"""``sidecar/drain.py``: the way out, by its parts: who begins it, when no request will come, when it is over."""

import socket
from collections.abc import Callable, Iterator

import pytest

from freeze_proxy.gate import AWAKE, FROZEN, Gate, Settings
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import Loop
from freeze_proxy.sidecar.drain import Drain
from freeze_proxy.sidecar.probes import Probe
from tests.support.loops import turn_for, turn_until
from tests.support.ports import LOOPBACK, free_port

QUIET = 0.15


class Obedient(Driver):
    def freeze(self, ticket: int) -> None:
        self.keeper.done(ticket)

    def thaw(self, ticket: int) -> None:
        self.keeper.done(ticket)


class Relay:
    """Whose connections are closed when the test says so."""

    empty = True

    def drained(self) -> bool:
        return self.empty


class Scene:
    def __init__(self, url: Probe | None = None, quiet: float = QUIET, grace: float = 60.0) -> None:
        self.loop = Loop()
        self.keeper = Keeper(self.loop, Gate(Settings(grace=0.01)), Obedient(), Witness())
        self.relay = Relay()
        self.ended: list[bool] = []
        self.said: list[str] = []
        self.drain = Drain(
            self.loop,
            self.keeper,
            self.relay,  # type: ignore[arg-type]
            url=url,
            quiet=quiet,
            grace=grace,
            ended=lambda: self.ended.append(True),
            say=self.said.append,
        )
        self.keeper.ready()
        turn_until(self.loop, lambda: self.keeper.gate.state == FROZEN, "it is frozen")

    def until(self, look: Callable[[], object], what: str, within: float = 5.0) -> None:
        turn_until(self.loop, look, what, within)


@pytest.fixture
def make() -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def made(**how: object) -> Scene:
        scenes.append(Scene(**how))  # type: ignore[arg-type]
        return scenes[-1]

    yield made
    for scene in scenes:
        scene.loop.close()


Make = Callable[..., Scene]


@pytest.fixture
def queue_proxy() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as made:
        yield made


def waits(of: socket.socket) -> Probe:
    probe = Probe("http", of.getsockname()[1], timeout=60.0)
    probe.path = "/wait-for-drain"
    return probe


def test_it_thaws_at_once_and_nothing_is_frozen_after_it(make: Make) -> None:
    scene = make()
    scene.drain.begin(leave=False)
    assert scene.keeper.gate.state == AWAKE
    turn_for(scene.loop, 0.1)
    assert scene.keeper.gate.state == AWAKE


def test_all_who_call_the_hook_are_answered_when_it_has_been_quiet(make: Make) -> None:
    scene = make()
    told: list[int] = []
    began = scene.loop.now
    for number in range(3):
        scene.drain.on_drained(lambda number=number: told.append(number))  # type: ignore[misc]
    scene.until(lambda: len(told) == 3, "all are told")
    assert scene.loop.now - began >= QUIET
    scene.drain.on_drained(lambda: told.append(3))
    assert told == [0, 1, 2, 3], "who comes later is told at once"
    turn_for(scene.loop, 0.1)
    assert scene.ended == [], "the hook alone ends nothing"
    scene.drain.begin(leave=True)
    scene.until(lambda: scene.ended, "it ends by SIGTERM")
    assert scene.ended == [True]


def test_each_request_begins_the_quiet_anew(make: Make) -> None:
    quiet = 0.8  # long enough for a busy machine to be late
    scene = make(quiet=quiet)
    told: list[bool] = []
    scene.drain.on_drained(lambda: told.append(True))
    for _ in range(3):
        turn_for(scene.loop, quiet * 0.4)
        scene.keeper.began()
        scene.keeper.ended()
    assert not told
    scene.keeper.began()
    turn_for(scene.loop, quiet * 1.2)
    assert not told, "one is in flight"
    last = scene.loop.now
    scene.keeper.ended()
    scene.until(lambda: told, "it is drained")
    assert scene.loop.now - last >= quiet * 0.9


def test_it_ends_when_the_last_exchange_has_and_the_last_connection_is_closed(make: Make) -> None:
    scene = make(quiet=0.0)
    scene.keeper.began()
    scene.relay.empty = False
    scene.drain.begin(leave=True)
    turn_for(scene.loop, 0.15)
    scene.keeper.ended()
    turn_for(scene.loop, 0.15)
    assert not scene.ended
    scene.relay.empty = True
    scene.until(lambda: scene.ended, "it ends")


def test_queue_proxy_says_when_no_request_will_come(make: Make, queue_proxy: socket.socket) -> None:
    scene = make(url=waits(queue_proxy), quiet=0.0)
    scene.drain.begin(leave=True)
    turn_for(scene.loop, 0.1)
    asked, _ = queue_proxy.accept()
    with asked:
        assert asked.recv(4096).startswith(b"GET /wait-for-drain HTTP/1.1\r\n")
        turn_for(scene.loop, 0.2)
        assert not scene.drain.drained
        asked.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        scene.until(lambda: scene.ended, "it ends")


def test_a_queue_proxy_that_dies_before_it_answers_may_be_followed_by_requests(
    make: Make, queue_proxy: socket.socket
) -> None:
    scene = make(url=waits(queue_proxy))
    scene.drain.begin(leave=True)
    turn_for(scene.loop, 0.05)
    queue_proxy.accept()[0].close()
    began = scene.loop.now
    scene.until(lambda: scene.ended, "it ends")
    assert scene.loop.now - began >= QUIET / 2


def test_one_that_is_gone_sends_nothing(make: Make) -> None:
    scene = make(url=Probe("http", free_port(), timeout=60.0), quiet=60.0)
    scene.drain.begin(leave=True)
    scene.until(lambda: scene.ended, "it ends", within=1.0)


def test_the_grace_ends_it_a_second_early_whatever_is_in_flight(make: Make, queue_proxy: socket.socket) -> None:
    scene = make(url=waits(queue_proxy), grace=1.2)
    scene.keeper.began()
    told: list[bool] = []
    scene.drain.on_drained(lambda: told.append(True))
    scene.until(lambda: told, "the hook is answered", within=1.0)
    assert not scene.ended
    assert scene.said == ["The pod's grace of 1.2 s is over, with 1 in flight."]
    scene.drain.begin(leave=True)
    scene.drain.begin(leave=True)
    assert scene.ended, "a second signal ends it at once"
