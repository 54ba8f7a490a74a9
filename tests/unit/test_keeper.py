"""The keeper between a gate, a driver that answers at once, later or never, and a real loop."""

import time
from collections.abc import Callable, Iterator

import pytest

from freeze_proxy.gate import AWAKE, FREEZING, FROZEN, THAWING, Gate, Settings
from freeze_proxy.keeper import Driver, Gated, Keeper, Witness
from freeze_proxy.loop import Loop
from tests.support.wait import PATIENCE

GRACE = 0.01


class Hand(Driver):
    """Carries orders out as ``freezes`` and ``thaws`` say: ``done`` or ``failed`` at once, or ``later``."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.freezes = self.thaws = "done"
        self.hurries = True
        self.later: list[int] = []

    def freeze(self, ticket: int) -> None:
        self.story.append("freeze")
        if self.hurries:
            self.keeper.haste = lambda: self.story.append("hurry")
        self._answer(self.freezes, ticket)

    def thaw(self, ticket: int) -> None:
        self.story.append("thaw")
        self._answer(self.thaws, ticket)

    def _answer(self, how: str, ticket: int) -> None:
        if how == "done":
            self.keeper.done(ticket)
        elif how == "failed":
            self.keeper.failed(ticket, "no luck")
        else:
            self.later.append(ticket)


class Relaylike(Gated):
    """Waits for the gate; refused, its exchanges end, as the relay's do."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.keeper: Keeper | None = None
        self.open_at_release = False

    def before_freeze(self) -> None:
        self.story.append("before freeze")

    def release(self) -> None:
        assert self.keeper is not None
        self.open_at_release = self.keeper.gate.open
        self.story.append("release")

    def refuse(self) -> None:
        self.story.append("refuse")
        assert self.keeper is not None
        for _ in range(self.keeper.gate.in_flight):
            self.keeper.ended()


class Notes(Witness):
    def __init__(self) -> None:
        self.frozen_for: list[float] = []
        self.waits: list[float | None] = []
        self.thawed_at: list[float] = []
        self.failures: list[tuple[str, str]] = []
        self.refusals: list[int] = []

    def frozen(self, at: float, took: float) -> None:
        assert at <= time.monotonic()
        self.frozen_for.append(took)

    def thawed(self, at: float, waited: float | None) -> None:
        assert at <= time.monotonic()
        self.waits.append(waited)
        self.thawed_at.append(at)

    def failed(self, what: str, reason: str) -> None:
        self.failures.append((what, reason))

    def refused(self, exchanges: int) -> None:
        self.refusals.append(exchanges)


class Stage:
    """Keeper, gate and loop, and everything they do written down in ``story``."""

    def __init__(self, settings: Settings) -> None:
        self.story: list[str] = []
        self.loop = Loop()
        self.hand = Hand(self.story)
        self.notes = Notes()
        self.gate = Gate(settings)
        self.keeper = Keeper(self.loop, self.gate, self.hand, self.notes)
        self.relay = Relaylike(self.story)
        self.relay.keeper = self.keeper
        self.keeper.gated = self.relay

    def until(self, look: Callable[[], bool], within: float = PATIENCE) -> None:
        """Run the loop until this is so."""
        deadline = time.monotonic() + within
        seen = False

        def watch() -> None:
            nonlocal seen
            seen = look()
            if seen or time.monotonic() > deadline:
                self.loop.stop()
            else:
                self.loop.at(self.loop.now + 0.001, watch)

        self.loop.at(0.0, watch)
        self.loop.run()
        assert seen, f"not within {within} s; {self.gate.state}, {self.story}"

    def until_state(self, state: str) -> None:
        self.until(lambda: self.gate.state == state)

    def run_for(self, seconds: float) -> None:
        """Run the loop; for what must not happen in this time."""
        self.loop.at(time.monotonic() + seconds, self.loop.stop)
        self.loop.run()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(Settings(grace=GRACE))
    yield stage
    stage.loop.close()


def test_a_freeze_and_a_thaw_that_are_carried_out_at_once(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    assert stage.story == ["before freeze", "freeze"]
    stage.keeper.began()
    assert stage.gate.state == AWAKE
    assert stage.story == ["before freeze", "freeze", "thaw", "release"]
    assert stage.relay.open_at_release
    stage.until(lambda: bool(stage.notes.waits))
    waited = stage.notes.waits[0]
    assert waited is not None
    assert 0 <= waited < 1
    assert 0 <= stage.notes.frozen_for[0] < 1
    assert stage.keeper.requests == 1
    stage.run_for(5 * GRACE)
    assert stage.gate.state == AWAKE  # it is still in flight
    stage.keeper.ended()
    stage.until_state(FROZEN)


def test_a_thaw_is_hurried_once_and_only_where_there_is_one_to_come(stage: Stage) -> None:
    assert stage.keeper.hurry(), "it runs"
    stage.keeper.ready()
    stage.until_state(FROZEN)
    assert stage.keeper.hurry()
    assert stage.keeper.hurry()
    assert stage.gate.state == FROZEN  # that is for the order to change
    stage.keeper.began()
    assert stage.keeper.hurry()
    assert stage.story == ["before freeze", "freeze", "hurry", "thaw", "release"]


def test_what_is_awake_needs_no_hurry(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.began()
    assert stage.keeper.haste is None, "it was thawed in time"
    stage.keeper.ended()
    stage.hand.freezes = "failed"
    stage.until(lambda: stage.story.count("freeze") == 2)
    assert stage.keeper.haste is None, "it has not been frozen"


def test_what_cannot_be_hurried_does_not_run_before_it_is_thawed(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.haste, stage.hand.thaws = None, "later"
    assert not stage.keeper.hurry()
    stage.keeper.began()
    assert not stage.keeper.hurry()
    stage.keeper.done(stage.hand.later.pop())
    assert stage.keeper.hurry()


def test_a_hurry_that_fails_leaves_it_to_the_thaw(stage: Stage) -> None:
    def fail() -> None:
        raise OSError

    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.haste = fail
    assert not stage.keeper.hurry()
    stage.keeper.began()
    assert stage.story == ["before freeze", "freeze", "thaw", "release"]


def test_it_stood_still_until_the_thaw_was_hurried(stage: Stage) -> None:
    stage.keeper.ready()
    for number in range(2):
        stage.until_state(FROZEN)
        before = time.monotonic()
        stage.keeper.hurry()
        after = time.monotonic()
        stage.keeper.hurry()
        stage.keeper.began()
        stage.until(lambda number=number: len(stage.notes.thawed_at) > number)  # type: ignore[misc]
        assert before <= stage.notes.thawed_at[number] <= after
        stage.keeper.ended()


@pytest.mark.parametrize(
    ("hurries", "thaws", "during", "ends_with"),
    [
        (True, "done", FROZEN, "hurry"),
        (False, "done", FROZEN, "order"),
        (True, "later", FROZEN, "hurry"),
        (False, "later", FROZEN, "answer"),
        (True, "failed", FROZEN, "answer"),  # it seemed to run
        (True, "later", FREEZING, "answer"),  # the freeze may have undone it
        (False, "later", THAWING, "answer"),  # a thaw that nobody waited for was under way
    ],
)
def test_a_packet_waits_from_when_it_came_until_the_target_runs(
    stage: Stage, hurries: bool, thaws: str, during: str, ends_with: str
) -> None:
    """Whatever is in flight: what a SYN is for is not known yet."""
    stage.hand.freezes = "later" if during == FREEZING else "done"
    stage.hand.hurries, stage.hand.thaws = hurries, thaws
    stage.keeper.ready()
    stage.until_state(FREEZING if during == FREEZING else FROZEN)
    if during == THAWING:
        stage.keeper.wake()
    came = time.monotonic() - 0.1
    moments: dict[str, tuple[float, float]] = {}

    def do(what: str, *calls: Callable[[], object]) -> None:
        before = time.monotonic()
        for call in calls:
            call()
        moments[what] = before, time.monotonic()
        stage.run_for(0.002)

    do("hurry", stage.keeper.hurry)
    do("told", lambda: stage.keeper.arrived(came), lambda: stage.keeper.arrived(came + 0.05))
    do("order", stage.keeper.wake, stage.keeper.held, stage.keeper.ended)
    if thaws == "failed":
        stage.hand.thaws = "done"
        do("answer", lambda: stage.until_state(AWAKE))
    elif thaws == "later":
        do("answer", lambda: stage.keeper.done(stage.hand.later.pop()))
    assert stage.gate.state == AWAKE
    stage.until(lambda: bool(stage.notes.waits))
    waited, (least, most) = stage.notes.waits[0], moments[ends_with]
    assert waited is not None
    assert least - came <= waited <= most - came


def test_a_packets_wait_is_its_own_thaws_alone(stage: Stage) -> None:
    stage.keeper.arrived(stage.loop.now)  # awake, it does not wait
    stage.keeper.ready()
    for number in range(4):
        stage.until_state(FROZEN)
        if number % 2:
            stage.keeper.arrived(time.monotonic())
        stage.keeper.wake()
        stage.until(lambda number=number: len(stage.notes.waits) > number)  # type: ignore[misc]
    assert [waited is None for waited in stage.notes.waits] == [True, False, True, False]


def test_nothing_happens_before_the_server_is_ready(stage: Stage) -> None:
    stage.keeper.began()
    stage.keeper.ended()
    stage.run_for(5 * GRACE)
    assert stage.story == []


def test_a_hold_is_no_request(stage: Stage) -> None:
    stage.keeper.held()
    stage.keeper.began()
    assert (stage.keeper.requests, stage.gate.in_flight) == (1, 2)
    stage.keeper.ended()
    stage.keeper.ended()
    assert stage.gate.in_flight == 0


def test_a_freeze_that_is_answered_later(stage: Stage) -> None:
    stage.hand.freezes = "later"
    stage.keeper.ready()
    stage.until_state(FREEZING)
    assert not stage.gate.open
    stage.keeper.done(stage.hand.later.pop())
    assert stage.gate.state == FROZEN


def test_an_exchange_during_a_freeze_is_thawed_for_at_once(stage: Stage) -> None:
    stage.hand.freezes = "later"
    stage.keeper.ready()
    stage.until_state(FREEZING)
    stage.keeper.began()
    assert stage.gate.open
    assert stage.story == ["before freeze", "freeze", "thaw", "release"]
    stage.keeper.done(stage.hand.later.pop())
    assert stage.gate.open
    stage.until(lambda: bool(stage.notes.waits))
    assert stage.notes.frozen_for == []


def test_all_that_wait_are_released_once(stage: Stage) -> None:
    stage.hand.thaws = "later"
    stage.keeper.ready()
    stage.until_state(FROZEN)
    for _ in range(3):
        stage.keeper.began()
    stage.keeper.held()
    assert stage.story[2:] == ["thaw"]
    stage.run_for(0.02)
    stage.keeper.done(stage.hand.later.pop())
    assert stage.story[2:] == ["thaw", "release"]
    stage.until(lambda: bool(stage.notes.waits))
    waited = stage.notes.waits[0]
    assert waited is not None
    assert waited >= 0.02


@pytest.mark.parametrize("answer", ["done", "later"])
def test_it_freezes_a_grace_after_the_last_exchange_and_not_only_when_an_older_alarm_rings(
    stage: Stage, answer: str
) -> None:
    stage.hand.freezes = stage.hand.thaws = answer
    stage.keeper.ready()
    for _ in range(3):
        stage.until_state(FROZEN if answer == "done" else FREEZING)
        if answer == "later":
            stage.keeper.done(stage.hand.later.pop())
        stage.keeper.began()
        if answer == "later":
            stage.keeper.done(stage.hand.later.pop())
        ended = time.monotonic()
        stage.keeper.ended()
        stage.until(lambda: stage.gate.state != AWAKE)
        assert time.monotonic() - ended < 2  # a thaw_timeout is 5 s


def test_many_exchanges_set_few_timers(stage: Stage) -> None:
    stage.keeper.ready()
    for _ in range(1000):
        stage.keeper.began()
        stage.keeper.ended()
    assert len(stage.loop._timers) < 5


def test_a_freeze_that_fails_is_told_and_tried_again_later(stage: Stage) -> None:
    stage.hand.freezes = "failed"
    stage.keeper.ready()
    stage.until(lambda: bool(stage.notes.failures))
    assert stage.notes.failures == [("freeze", "no luck")]
    assert stage.gate.open
    stage.run_for(0.05)
    assert stage.story.count("freeze") == 1
    stage.hand.freezes = "done"
    stage.until_state(FROZEN)
    assert stage.story.count("freeze") == 2


def test_a_thaw_that_fails_is_told_and_tried_until_it_succeeds(stage: Stage) -> None:
    stage.hand.thaws = "failed"
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.began()
    stage.until(lambda: len(stage.notes.failures) >= 3)
    assert set(stage.notes.failures) == {("thaw", "no luck")}
    assert not stage.gate.open
    stage.hand.thaws = "done"
    stage.until_state(AWAKE)
    assert stage.story[-1] == "release"


@pytest.mark.parametrize("thaws", ["failed", "later"])
def test_who_waits_too_long_is_refused_and_the_next_one_is_not(thaws: str) -> None:
    stage = Stage(Settings(grace=GRACE, thaw_timeout=0.05))
    stage.hand.thaws = thaws
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.began()
    began = time.monotonic()
    stage.keeper.began()
    stage.until(lambda: "refuse" in stage.story)
    assert time.monotonic() - began >= 0.045
    stage.until(lambda: stage.notes.refusals == [2])
    assert stage.gate.in_flight == 0
    stage.hand.thaws = "done"
    stage.keeper.began()
    stage.until_state(AWAKE)
    assert stage.story.count("refuse") == 1
    stage.loop.close()


def test_breathing_keeps_on_without_anybody_waiting() -> None:
    stage = Stage(Settings(grace=GRACE, breathe=(0.02, 0.01)))
    stage.keeper.ready()
    stage.until(lambda: len(stage.notes.waits) >= 3)
    assert set(stage.notes.waits) == {None}
    assert stage.notes.refusals == []
    stage.loop.close()


def test_a_wait_that_was_given_up_is_nobodys_wait() -> None:
    """A client that leaves while the server is thawed for it, and then a breath: nobody waited for that."""
    stage = Stage(Settings(grace=GRACE, breathe=(0.02, 0.01)))
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.hand.thaws = "later"
    stage.keeper.began()
    stage.keeper.ended()
    stage.run_for(0.02)
    stage.keeper.done(stage.hand.later.pop())
    stage.until(lambda: bool(stage.notes.waits))
    assert stage.notes.waits == [None]
    stage.loop.close()


def test_a_wait_that_was_given_up_is_not_part_of_the_next_ones(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.hand.thaws = "later"
    stage.keeper.began()
    stage.keeper.ended()
    stage.run_for(0.05)
    began = stage.loop.now
    stage.keeper.began()
    stage.keeper.done(stage.hand.later.pop())
    took = time.monotonic() - began
    stage.until(lambda: bool(stage.notes.waits))
    waited = stage.notes.waits[0]
    assert waited is not None
    assert waited <= took


@pytest.mark.parametrize("answer", ["done", "later"])
def test_disarm_thaws_and_stays_awake(stage: Stage, answer: str) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.hand.thaws = answer
    stage.keeper.disarm()
    if answer == "later":
        assert stage.gate.state == THAWING
        stage.keeper.done(stage.hand.later.pop())
    assert stage.gate.state == AWAKE
    stage.keeper.began()
    stage.keeper.ended()
    stage.keeper.ready()
    stage.run_for(5 * GRACE)
    assert stage.gate.state == AWAKE
    assert stage.story.count("freeze") == 1


def test_it_is_woken_for_what_is_no_request(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.keeper.wake()
    stage.keeper.held()
    assert stage.gate.state == AWAKE
    stage.until(lambda: stage.notes.waits == [None])
    stage.keeper.wake()
    stage.run_for(5 * GRACE)
    assert stage.story == ["before freeze", "freeze", "thaw", "release"]
    assert stage.keeper.requests == 0
    stage.keeper.ended()
    stage.until_state(FROZEN)


def test_it_is_woken_once(stage: Stage) -> None:
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.hand.thaws = "later"
    stage.keeper.wake()
    stage.keeper.wake()
    assert stage.story[2:] == ["thaw"]
    stage.keeper.done(stage.hand.later[0])
    assert stage.gate.state == AWAKE


def test_a_lost_driver_thaws_anew(stage: Stage) -> None:
    stage.keeper.lost()
    assert stage.story == []
    stage.keeper.ready()
    stage.until_state(FROZEN)
    stage.hand.thaws = "later"
    stage.keeper.lost()
    stage.keeper.lost()
    assert stage.story[2:] == ["thaw", "thaw"]
    stage.keeper.done(stage.hand.later[0])
    assert stage.gate.state == THAWING
    stage.keeper.done(stage.hand.later[1])
    assert stage.gate.state == AWAKE


def test_a_failure_of_an_order_that_was_replaced_is_not_told_as_another_ones(stage: Stage) -> None:
    stage.hand.freezes = "later"
    stage.keeper.ready()
    stage.until_state(FREEZING)
    stage.hand.thaws = "later"
    stage.keeper.began()
    freeze, thaw = stage.hand.later
    stage.keeper.failed(freeze, "too late")
    assert stage.gate.state == THAWING
    stage.run_for(0.01)
    assert ("thaw", "too late") not in stage.notes.failures
    stage.keeper.done(thaw)
    assert stage.gate.state == AWAKE


def test_the_first_gated_and_witness_do_nothing() -> None:
    """They stand in until the relay and a reporter come."""
    loop = Loop()
    gate = Gate(Settings(grace=0.0))
    hand = Hand([])
    keeper = Keeper(loop, gate, hand, Witness())
    keeper.ready()
    loop.at(time.monotonic() + 0.02, loop.stop)
    loop.run()
    assert gate.state == FROZEN
    keeper.began()
    assert gate.open
    loop.close()


def test_a_driver_must_do_its_work() -> None:
    for order in (Driver.freeze, Driver.thaw):
        with pytest.raises(NotImplementedError):
            order(Driver(), 1)
