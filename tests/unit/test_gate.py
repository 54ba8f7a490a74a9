"""Each of the gate's moves, by itself."""

import pytest

from freeze_proxy.gate import (
    AWAKE,
    FIRST_PAUSE,
    FIRST_RETRY,
    FOREVER,
    FREEZE,
    FREEZE_PATIENCE,
    FREEZING,
    FROZEN,
    LAST_PAUSE,
    LAST_RETRY,
    REFUSE,
    THAW,
    THAWING,
    Gate,
    Order,
    Settings,
)

GRACE, TIMEOUT = 0.125, 4.0  # exact as binary fractions, so that sums of them are
START = 1000.0


def order_of(order: Order | None, kind: str) -> Order:
    assert order is not None
    assert order.kind == kind
    return order


class Moved:
    """A gate that has been brought into a state, the time, and the order that is open."""

    def __init__(self, state: str, breathe: tuple[float, float] | None = None, waiting: int = 0) -> None:
        self.now = START
        self.gate = gate = Gate(Settings(grace=GRACE, thaw_timeout=TIMEOUT, breathe=breathe))
        self.ticket = 0
        gate.ready(self.now)
        if state == AWAKE:
            return
        self.now = gate.deadline
        self.ticket = order_of(gate.tick(self.now), FREEZE).ticket
        if state == FREEZING:
            return
        gate.done(self.ticket, self.now)
        assert gate.state == FROZEN
        if state == FROZEN:
            return
        self.ticket = order_of(gate.began(self.now), THAW).ticket
        for _ in range(waiting - 1):
            assert gate.began(self.now) is None
        assert gate.state == THAWING
        if not waiting:
            gate.ended(self.now)


def test_it_begins_awake_and_stays_so_until_the_server_is_ready() -> None:
    gate = Gate(Settings(grace=GRACE))
    assert (gate.state, gate.open, gate.in_flight, gate.deadline) == (AWAKE, True, 0, FOREVER)
    assert gate.began(1.0) is None
    gate.ended(2.0)
    assert gate.deadline == FOREVER
    assert gate.tick(1e9) is None
    gate.ready(3.0)
    assert gate.deadline == 3.0 + GRACE


def test_ready_during_an_exchange_waits_for_its_end() -> None:
    gate = Gate(Settings(grace=GRACE))
    gate.began(1.0)
    gate.ready(2.0)
    assert gate.deadline == FOREVER
    gate.ended(3.0)
    assert gate.deadline == 3.0 + GRACE


def test_ready_again_changes_nothing() -> None:
    moved = Moved(AWAKE)
    moved.gate.ready(START + 0.0625)
    assert moved.gate.deadline == START + GRACE


def test_the_grace_is_kept_to_the_moment() -> None:
    moved = Moved(AWAKE)
    gate = moved.gate
    gate.began(START + 1)
    gate.began(START + 2)
    gate.ended(START + 3)
    assert gate.tick(START + 100) is None  # one is left
    gate.ended(START + 200)
    assert gate.deadline == START + 200 + GRACE
    assert gate.tick(START + 200 + GRACE - 1e-6) is None
    gate.began(START + 200 + GRACE - 1e-6)
    assert gate.tick(START + 200 + GRACE) is None
    gate.ended(START + 300)
    order_of(gate.tick(START + 300 + GRACE), FREEZE)
    assert (gate.state, gate.open, gate.deadline) == (FREEZING, False, START + 300 + GRACE + FREEZE_PATIENCE)


def test_no_grace_at_all() -> None:
    gate = Gate(Settings(grace=0.0))
    gate.ready(START)
    order_of(gate.tick(START), FREEZE)
    assert gate.tick(START) is None


def test_done_freezes_without_a_deadline() -> None:
    moved = Moved(FROZEN)
    assert (moved.gate.open, moved.gate.deadline) == (False, FOREVER)
    assert moved.gate.tick(1e9) is None


@pytest.mark.parametrize("state", [FREEZING, FROZEN])
def test_an_exchange_thaws_at_once_and_the_next_ones_wait_with_it(state: str) -> None:
    moved = Moved(state)
    gate, now = moved.gate, moved.now + 1
    thaw = order_of(gate.began(now), THAW)
    assert thaw.ticket > moved.ticket
    assert gate.began(now + 1) is None
    assert gate.began(now + 2) is None
    assert (gate.state, gate.open, gate.in_flight) == (THAWING, False, 3)
    gate.done(thaw.ticket, now + 3)
    assert (gate.state, gate.open, gate.in_flight, gate.deadline) == (AWAKE, True, 3, FOREVER)
    for _ in range(3):
        gate.ended(now + 4)
    assert gate.deadline == now + 4 + GRACE


def test_a_freeze_that_is_answered_after_an_exchange_began_does_not_move_the_gate() -> None:
    for answer in (Gate.done, Gate.failed):
        moved = Moved(FREEZING)
        order_of(moved.gate.began(moved.now), THAW)
        answer(moved.gate, moved.ticket, moved.now)
        assert (moved.gate.state, moved.gate.open) == (THAWING, False)


def test_when_there_is_hope_a_freeze_that_failed_is_tried_at_once() -> None:
    moved = Moved(AWAKE)
    gate, now = moved.gate, START + GRACE
    for _ in range(5):
        gate.failed(order_of(gate.tick(now), FREEZE).ticket, now)
        now = gate.deadline
    gate.failed(order_of(gate.tick(now), FREEZE).ticket, now)
    gate.hopeful(now + 1)
    assert gate.deadline == now + 1
    gate.failed(order_of(gate.tick(now + 1), FREEZE).ticket, now + 1)
    assert gate.deadline == now + 1 + FIRST_PAUSE
    gate.began(now + 1)
    gate.hopeful(now + 2)
    assert gate.tick(now + 100) is None, "one is in flight"


def test_a_freeze_that_fails_leaves_it_awake_and_the_pauses_grow() -> None:
    moved = Moved(AWAKE)
    gate, now, pause = moved.gate, START + GRACE, FIRST_PAUSE
    pauses = []
    for _ in range(12):
        freeze = order_of(gate.tick(now), FREEZE)
        gate.failed(freeze.ticket, now)
        assert (gate.state, gate.open) == (AWAKE, True)
        assert gate.deadline == now + pause
        assert gate.tick(now + pause - 1e-6) is None
        pauses.append(pause)
        now += pause
        pause = min(2 * pause, LAST_PAUSE)
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == LAST_PAUSE
    freeze = order_of(gate.tick(now), FREEZE)
    gate.done(freeze.ticket, now)
    # One that succeeds makes the next failure the first again.
    gate.done(order_of(gate.began(now), THAW).ticket, now)
    gate.ended(now)
    freeze = order_of(gate.tick(now + GRACE), FREEZE)
    gate.failed(freeze.ticket, now + GRACE)
    assert gate.deadline == now + GRACE + FIRST_PAUSE


def test_the_pause_after_a_failed_freeze_outlasts_exchanges() -> None:
    moved = Moved(FREEZING)
    gate, now = moved.gate, moved.now
    gate.failed(moved.ticket, now)
    gate.began(now + 0.1)
    gate.ended(now + 0.2)
    assert gate.deadline == now + FIRST_PAUSE
    gate.began(now + 0.25)
    gate.ended(now + FIRST_PAUSE)
    assert gate.deadline == now + FIRST_PAUSE + GRACE


def test_a_freeze_that_is_never_answered_is_undone() -> None:
    moved = Moved(FREEZING)
    gate, now = moved.gate, moved.now
    assert gate.tick(now + FREEZE_PATIENCE - 1e-6) is None
    now += FREEZE_PATIENCE
    thaw = order_of(gate.tick(now), THAW)
    assert gate.tick(now) is None
    gate.done(moved.ticket, now)
    assert gate.state == THAWING
    gate.done(thaw.ticket, now)
    assert (gate.state, gate.deadline) == (AWAKE, now + FIRST_PAUSE)


def test_a_failed_thaw_is_tried_again_with_growing_pauses_without_end() -> None:
    moved = Moved(THAWING)
    gate, now, ticket, pause = moved.gate, moved.now, moved.ticket, FIRST_RETRY
    for _ in range(20):
        gate.failed(ticket, now)
        assert gate.state == THAWING
        assert gate.deadline == now + pause
        assert gate.tick(now + pause - 1e-6) is None
        now += pause
        ticket = order_of(gate.tick(now), THAW).ticket
        pause = min(2 * pause, LAST_RETRY)
    assert pause == LAST_RETRY
    gate.done(ticket, now)
    assert gate.open


def test_each_thaw_begins_with_the_first_pause_and_a_whole_timeout() -> None:
    moved = Moved(THAWING, waiting=1)
    gate, now, ticket = moved.gate, moved.now, moved.ticket
    for _ in range(5):
        gate.failed(ticket, now)
        now = gate.deadline
        ticket = order_of(gate.tick(now), THAW).ticket
    gate.done(ticket, now)
    gate.ended(now)
    now = gate.deadline + TIMEOUT
    gate.done(order_of(gate.tick(now), FREEZE).ticket, now)
    thaw = order_of(gate.began(now), THAW)
    assert gate.tick(now) is None
    gate.failed(thaw.ticket, now)
    assert gate.deadline == now + FIRST_RETRY
    gate.failed(thaw.ticket, now + TIMEOUT - FIRST_RETRY / 2)
    assert gate.deadline == now + TIMEOUT
    order_of(gate.tick(now + TIMEOUT), REFUSE)


def test_who_waits_is_refused_after_the_timeout_and_the_trying_goes_on() -> None:
    moved = Moved(THAWING, waiting=2)
    gate, since = moved.gate, moved.now
    gate.began(since + 1)
    assert gate.deadline == since + TIMEOUT / 2
    gate.failed(moved.ticket, since + TIMEOUT - 0.001)
    assert gate.deadline == since + TIMEOUT
    assert gate.tick(since + TIMEOUT - 1e-6) is None
    order_of(gate.tick(since + TIMEOUT), REFUSE)
    for _ in range(3):
        gate.ended(since + TIMEOUT)
    assert gate.deadline == since + TIMEOUT - 0.001 + FIRST_RETRY
    retry = order_of(gate.tick(gate.deadline), THAW)
    # Whoever comes now has a whole timeout again.
    assert gate.began(since + 5) is None
    gate.failed(retry.ticket, since + 5)
    assert gate.deadline < since + 5 + TIMEOUT
    gate.done(order_of(gate.tick(gate.deadline), THAW).ticket, since + 6)
    assert gate.open


def test_a_refusal_and_a_retry_that_are_due_together_both_come_once() -> None:
    moved = Moved(THAWING, waiting=1)
    now = moved.now + TIMEOUT
    moved.gate.lost(moved.now + TIMEOUT / 2)
    order_of(moved.gate.tick(now), REFUSE)
    order_of(moved.gate.tick(now), THAW)
    assert moved.gate.tick(now) is None


def test_when_everybody_that_waited_has_left_nobody_is_refused() -> None:
    moved = Moved(THAWING, waiting=1)
    gate, now = moved.gate, moved.now
    for number in range(10):
        gate.failed(moved.ticket, now)
        now = gate.deadline
        moved.ticket = order_of(gate.tick(now), THAW).ticket
        if not number:
            gate.ended(now)
    gate.failed(moved.ticket, now)
    assert gate.deadline > now  # not the moment at which it would have been refused
    order_of(gate.tick(moved.now + TIMEOUT + 10), THAW)
    assert gate.tick(moved.now + TIMEOUT + 10) is None


def test_leaving_does_not_bring_the_next_try_forward() -> None:
    moved = Moved(THAWING, waiting=1)
    gate = moved.gate
    retry_at = moved.now + 3 + TIMEOUT / 2
    gate.lost(moved.now + 3)
    assert gate.deadline == moved.now + TIMEOUT
    gate.ended(moved.now + 3)
    assert gate.deadline == retry_at


def test_a_thaw_that_is_never_answered_is_ordered_again() -> None:
    moved = Moved(THAWING)
    now = moved.now + TIMEOUT / 2
    assert moved.gate.tick(now - 1e-6) is None
    again = order_of(moved.gate.tick(now), THAW)
    assert moved.gate.tick(now) is None
    assert again.ticket > moved.ticket
    moved.gate.done(again.ticket, now)
    assert moved.gate.open


def test_a_thaw_that_was_only_repeated_may_be_answered_late() -> None:
    """Or a driver that takes longer than the repetition would never be believed."""
    moved = Moved(THAWING)
    now = moved.now + TIMEOUT / 2
    order_of(moved.gate.tick(now), THAW)
    assert not moved.gate.failed(moved.ticket, now)
    assert moved.gate.deadline == now + TIMEOUT / 2  # a failure of the older one says nothing
    moved.gate.done(moved.ticket, now + 1)
    assert moved.gate.open
    assert not moved.gate.failed(moved.ticket + 1, now + 2)
    assert moved.gate.open


def test_nobody_is_refused_because_one_answer_was_lost() -> None:
    """Whenever it comes, there is a new order within its time."""
    for late in (0.0, 1e-6, TIMEOUT / 4, TIMEOUT / 2 - 1e-6):
        moved = Moved(THAWING)
        gate, now = moved.gate, moved.now + late
        gate.began(now)
        order_of(gate.tick(gate.deadline), THAW)
        assert gate.deadline <= now + TIMEOUT


def test_an_answer_from_before_the_loss_is_not_believed() -> None:
    moved = Moved(THAWING)
    anew = order_of(moved.gate.lost(moved.now), THAW)
    moved.gate.done(moved.ticket, moved.now)
    assert moved.gate.state == THAWING
    moved.gate.done(anew.ticket, moved.now)
    assert moved.gate.open


@pytest.mark.parametrize("state", [FREEZING, FROZEN, THAWING])
def test_what_is_lost_is_thawed_anew(state: str) -> None:
    moved = Moved(state)
    order = order_of(moved.gate.lost(moved.now), THAW)
    moved.gate.done(moved.ticket, moved.now)
    assert moved.gate.state == THAWING
    moved.gate.done(order.ticket, moved.now)
    assert moved.gate.state == AWAKE
    assert moved.gate.deadline == moved.now + GRACE


def test_nothing_is_lost_of_what_is_awake() -> None:
    moved = Moved(AWAKE)
    assert moved.gate.lost(START) is None
    assert (moved.gate.state, moved.gate.deadline) == (AWAKE, START + GRACE)


def test_disarm_thaws_and_it_never_freezes_again() -> None:
    for state in (FREEZING, FROZEN):
        moved = Moved(state)
        thaw = order_of(moved.gate.disarm(moved.now), THAW)
        moved.gate.done(thaw.ticket, moved.now)
        assert (moved.gate.state, moved.gate.deadline) == (AWAKE, FOREVER)
    moved = Moved(THAWING)
    assert moved.gate.disarm(moved.now) is None
    moved.gate.done(moved.ticket, moved.now)
    assert moved.gate.deadline == FOREVER
    moved = Moved(AWAKE)
    assert moved.gate.disarm(START) is None
    gate = moved.gate
    gate.ready(START)
    gate.began(START)
    gate.ended(START)
    assert gate.deadline == FOREVER
    assert gate.tick(1e9) is None
    assert gate.disarm(START) is None


def test_off_never_freezes() -> None:
    gate = Gate(Settings(mode="off", grace=0.0))
    gate.ready(START)
    gate.began(START)
    gate.ended(START)
    assert gate.deadline == FOREVER
    assert gate.tick(1e9) is None


@pytest.mark.parametrize("mode", ["freeze", "throttle", "dry-run"])
def test_the_other_modes_are_all_one_to_the_gate(mode: str) -> None:
    gate = Gate(Settings(mode=mode, grace=0.0))
    gate.ready(START)
    order_of(gate.tick(START), FREEZE)


class TestBreathe:
    EVERY, SPAN = 32.0, 0.0625

    def breathing(self) -> tuple[Gate, float]:
        """A gate that breathes since now."""
        moved = Moved(FROZEN, (self.EVERY, self.SPAN))
        gate, now = moved.gate, moved.now + self.EVERY
        assert gate.deadline == now
        assert gate.tick(now - 1e-6) is None
        thaw = order_of(gate.tick(now), THAW)
        assert gate.tick(now) is None
        gate.done(thaw.ticket, now + 1)
        assert (gate.state, gate.open) == (AWAKE, True)
        return gate, now + 1

    def test_for_a_span_again_and_again(self) -> None:
        gate, now = self.breathing()
        for _ in range(3):
            assert gate.deadline == now + self.SPAN
            assert gate.tick(now + self.SPAN - 1e-6) is None
            now += self.SPAN
            gate.done(order_of(gate.tick(now), FREEZE).ticket, now)
            now += self.EVERY
            gate.done(order_of(gate.tick(now), THAW).ticket, now)

    def test_an_exchange_in_the_span_ends_with_the_grace(self) -> None:
        gate, now = self.breathing()
        gate.began(now + 0.01)
        assert gate.tick(now + self.SPAN) is None
        gate.ended(now + 1)
        assert gate.deadline == now + 1 + GRACE

    def test_an_exchange_while_it_draws_breath(self) -> None:
        moved = Moved(FROZEN, (self.EVERY, self.SPAN))
        gate, now = moved.gate, moved.now + self.EVERY
        thaw = order_of(gate.tick(now), THAW)
        assert gate.began(now) is None
        gate.done(thaw.ticket, now)
        assert gate.deadline == FOREVER
        gate.ended(now + 1)
        assert gate.deadline == now + 1 + GRACE

    def test_an_exchange_between_two_breaths(self) -> None:
        moved = Moved(FROZEN, (self.EVERY, self.SPAN))
        gate, now = moved.gate, moved.now + 1
        gate.done(order_of(gate.began(now), THAW).ticket, now)
        gate.ended(now)
        assert gate.deadline == now + GRACE
        now += GRACE
        gate.done(order_of(gate.tick(now), FREEZE).ticket, now)
        assert gate.deadline == now + self.EVERY

    def test_only_a_breath_is_followed_by_its_span(self) -> None:
        gate, now = self.breathing()
        now += self.SPAN
        gate.done(order_of(gate.tick(now), FREEZE).ticket, now)
        thaw = order_of(gate.began(now), THAW)
        gate.ended(now)
        gate.done(thaw.ticket, now)
        assert gate.deadline == now + GRACE

    def test_a_breath_that_fails_is_tried_until_it_succeeds(self) -> None:
        moved = Moved(FROZEN, (self.EVERY, self.SPAN))
        gate, now = moved.gate, moved.now + self.EVERY
        for _ in range(5):
            gate.failed(order_of(gate.tick(now), THAW).ticket, now)
            now = gate.deadline
        gate.done(order_of(gate.tick(now), THAW).ticket, now)
        assert gate.deadline == now + self.SPAN

    def test_never_unless_it_is_set(self) -> None:
        assert Moved(FROZEN).gate.deadline == FOREVER


@pytest.mark.parametrize("state", [AWAKE, FREEZING, FROZEN, THAWING])
def test_an_answer_to_no_order_changes_nothing(state: str) -> None:
    moved = Moved(state)
    before = (moved.gate.state, moved.gate.open, moved.gate.deadline)
    for ticket in (-1, 0, 99, *([moved.ticket] if state in (AWAKE, FROZEN) else [])):
        moved.gate.done(ticket, moved.now)
        moved.gate.failed(ticket, moved.now)
        assert (moved.gate.state, moved.gate.open, moved.gate.deadline) == before


def test_a_clock_that_stands_still_or_leaps() -> None:
    gate = Gate(Settings(grace=GRACE, thaw_timeout=0.0))
    gate.ready(START)
    order_of(gate.tick(START + 1e9), FREEZE)
    thaw = order_of(gate.began(START + 1e9), THAW)
    order_of(gate.tick(START + 1e9), REFUSE)
    gate.ended(START + 1e9)
    assert gate.tick(START + 1e9) is None
    gate.done(thaw.ticket, START + 1e9)
    assert gate.open


def test_orders_tell_themselves() -> None:
    assert repr(Order(FREEZE, 3)) == "Order('freeze', 3)"
