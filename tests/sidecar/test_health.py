"""``sidecar/health.py``: what is answered about the server, and when it may be frozen, rule by rule."""

from collections.abc import Callable, Iterator

import pytest

from freeze_proxy.gate import AWAKE, FROZEN, Gate, Settings
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import Loop
from freeze_proxy.sidecar.health import NOT_YET, Health
from freeze_proxy.sidecar.probes import Probe
from tests.support.loops import turn_for, turn_until

GRACE = 0.03


class Obedient(Driver):
    def freeze(self, ticket: int) -> None:
        self.keeper.done(ticket)

    def thaw(self, ticket: int) -> None:
        self.keeper.done(ticket)


class Run:
    def stop(self) -> None:
        pass


class Scene:
    """A server whose probes end when the test says so, or at once with ``results``, by their ports."""

    def __init__(
        self, readiness: int = 1, liveness: tuple[str, ...] = (), await_exchange: bool = False, period: float = 0.0
    ) -> None:
        self.loop = Loop()
        self.keeper = Keeper(self.loop, Gate(Settings(grace=GRACE)), Obedient(), Witness())
        self.results: dict[int, str] = {}
        self.runs: list[tuple[Probe, Callable[[str], None]]] = []
        self.by_hand = False
        self.sockets = frozenset({7})
        self.said: list[str] = []
        self.health = Health(
            self.loop,
            self.keeper,
            [Probe("tcp", port + 1, period=period) for port in range(readiness)],
            {name: [Probe("tcp", 11 + place)] for place, name in enumerate(liveness)},
            self.begin,
            lambda: self.sockets,
            await_exchange,
            self.said.append,
        )

    def begin(self, probe: Probe, done: Callable[[str], None]) -> Run:
        self.runs.append((probe, done))
        if not self.by_hand:
            self.loop.soon(lambda: done(self.results.get(probe.port, "")))
        return Run()

    def ready(self) -> str:
        return self.ask(self.health.ask_ready)

    def live(self, name: str = "") -> str:
        def ask(answer: Callable[[str], None]) -> None:
            assert self.health.ask_live(name, answer)

        return self.ask(ask)

    def ask(self, ask: Callable[[Callable[[str], None]], object]) -> str:
        told: list[str] = []
        ask(told.append)
        turn_until(self.loop, lambda: bool(told), "it is answered")
        return told[0]

    def await_state(self, state: str) -> None:
        turn_until(self.loop, lambda: self.keeper.gate.state == state, f"it is {state}")


@pytest.fixture
def make() -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def made(*arguments: object, **named: object) -> Scene:
        scenes.append(Scene(*arguments, **named))  # type: ignore[arg-type]
        return scenes[-1]

    yield made
    for scene in scenes:
        scene.loop.close()


Make = Callable[..., Scene]


def test_who_asks_during_a_run_shares_it_and_later_ones_have_their_own(make: Make) -> None:
    scene = make()
    scene.by_hand = True
    told: list[str] = []
    for _ in range(3):
        scene.health.ask_ready(told.append)
    assert len(scene.runs) == 1
    scene.runs[0][1]("is ill")
    assert told == ["is ill"] * 3
    scene.health.ask_ready(told.append)
    assert len(scene.runs) == 2


def test_all_readiness_probes_must_pass_and_all_reasons_are_told(make: Make) -> None:
    scene = make(readiness=3)
    scene.results = {1: "is ill", 3: "sleeps"}
    assert scene.ready() == "is ill; sleeps"
    scene.results = {}
    assert scene.ready() == ""


def test_no_freeze_begins_during_a_run_and_the_grace_runs_on(make: Make) -> None:
    scene = make()
    scene.health.start()
    scene.await_state(FROZEN)
    scene.keeper.began()
    scene.keeper.ended()
    scene.by_hand = True
    scene.health.ask_ready(lambda _: None)
    turn_for(scene.loop, 3 * GRACE)
    assert scene.keeper.gate.state == AWAKE
    scene.runs[-1][1]("")
    turn_for(scene.loop, GRACE / 3)  # its grace was over long ago
    assert scene.keeper.gate.state == FROZEN
    assert scene.keeper.requests == 1


def test_while_it_stands_still_the_last_result_is_the_answer(make: Make) -> None:
    scene = make(liveness=("app",))
    scene.health.start()
    scene.live()
    scene.await_state(FROZEN)
    scene.results = {1: "is ill", 11: "is dead"}
    before = len(scene.runs)
    for _ in range(5):
        assert scene.ready() == ""
        assert scene.live() == scene.live("app") == ""
    assert len(scene.runs) == before
    assert scene.keeper.gate.state == FROZEN


def test_before_it_is_ready_it_is_not_frozen_and_is_probed_by_itself(make: Make) -> None:
    scene = make()
    scene.results = {1: "is not there yet"}
    assert scene.health._readiness.last == NOT_YET
    scene.health.start()
    turn_until(scene.loop, lambda: len(scene.runs) >= 3, "it is probed again and again")
    assert scene.keeper.gate.state == AWAKE
    assert scene.said == [], "that it is not ready yet is nothing to speak of"
    scene.results = {}
    scene.await_state(FROZEN)
    before = len(scene.runs)
    turn_for(scene.loop, 0.15)
    assert len(scene.runs) == before, "nobody asks any more"


@pytest.mark.parametrize("which", ["readiness", "liveness"])
def test_one_that_fails_stays_awake_until_it_passes_again(make: Make, which: str) -> None:
    scene = make(liveness=("app",))
    scene.health.start()
    scene.await_state(FROZEN)
    scene.keeper.began()  # a request, on which it falls ill
    scene.results = {1 if which == "readiness" else 11: "is ill"}
    assert (scene.ready() if which == "readiness" else scene.live()) == "is ill"
    scene.keeper.ended()
    turn_for(scene.loop, 3 * GRACE)
    assert scene.keeper.gate.state == AWAKE
    scene.results = {}
    assert scene.live() == ""  # the readiness it asks for itself
    scene.await_state(FROZEN)
    told = ["The server is not ready any more: it is ill.", "The server is ready again."]
    assert scene.said == (told if which == "readiness" else [])


def test_where_a_request_is_awaited_the_first_freeze_comes_after_it(make: Make) -> None:
    scene = make(await_exchange=True)
    scene.health.start()
    turn_for(scene.loop, 4 * GRACE)
    assert scene.ready() == ""
    assert scene.keeper.gate.state == AWAKE
    scene.keeper.began()
    turn_for(scene.loop, 4 * GRACE)
    assert scene.ready() == ""
    scene.keeper.ended()
    scene.await_state(FROZEN)


def test_a_server_that_has_restarted_shows_anew_that_it_is_ready(make: Make) -> None:
    scene = make()
    scene.health.start()
    scene.await_state(FROZEN)
    scene.results = {1: "is not there yet"}
    scene.sockets = frozenset()
    assert scene.ready() == "is not there yet", "its sockets are gone: it is asked itself"
    assert scene.keeper.gate.state == AWAKE
    assert scene.said[0] == (
        "The server's sockets are not those that it had: it has restarted. It stays awake until it is ready."
    )
    scene.sockets, scene.results = frozenset({8}), {}
    scene.await_state(FROZEN)
    assert scene.ready() == ""
    before = len(scene.runs)
    scene.health.restarted("A container has restarted.")
    assert scene.keeper.gate.state == AWAKE
    scene.await_state(FROZEN)
    assert len(scene.runs) == before + 1
    assert "A container has restarted. It stays awake until it is ready." in scene.said


def test_liveness_is_each_containers_own(make: Make) -> None:
    scene = make(liveness=("app", "helper"))
    scene.results = {12: "is dead"}
    assert scene.live("app") == ""
    assert scene.live("helper") == "is dead"
    assert scene.live() == "is dead"
    assert not scene.health.ask_live("nobody", lambda _: pytest.fail("it is answered"))


def test_without_a_liveness_probe_it_is_alive(make: Make) -> None:
    scene = make()
    assert scene.live() == ""
    assert scene.runs == []
