"""The gate as a state machine: its rules hold for every order of events.

The machine plays the world: exchanges that come and go, a driver that carries orders out one after another or never,
and whose answers come late, in any order, twice or not at all, and a clock that jumps.
"""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freeze_proxy.gate import (
    AWAKE,
    FIRST_PAUSE,
    FIRST_RETRY,
    FOREVER,
    FREEZE,
    FREEZING,
    FROZEN,
    LAST_PAUSE,
    MODES,
    REFUSE,
    THAW,
    THAWING,
    Gate,
    Order,
    Settings,
)
from tests.support.examples import examples

settings_ = st.builds(
    Settings,
    grace=st.sampled_from([0.0, 0.1, 1.0]),
    mode=st.sampled_from(["freeze"] * 8 + list(MODES)),
    thaw_timeout=st.sampled_from([0.0, 0.5, 5.0]),
    breathe=st.sampled_from([None, (1.0, 0.05), (30.0, 0.2)]),
)


class World(RuleBasedStateMachine):
    """One gate, and all that it decides about."""

    @initialize(settings=settings_, now=st.sampled_from([0.0, 1e6]), ready=st.sampled_from([True, True, False]))
    def begin_world(self, settings: Settings, now: float, ready: bool) -> None:
        self.settings = settings
        self.gate = Gate(settings)
        self.now = now
        self.running = True
        self.serving = 0
        self.waiting: list[float] = []  # since when
        self.first_of_them = now
        self.orders: list[Order] = []  # not carried out yet
        self.answers: list[tuple[str, int]] = []  # on their way
        self.told: list[tuple[str, int]] = []  # have arrived
        self.tickets: set[int] = set()
        self.armed = self.disarmed = False
        self.calm_since: float | None = None
        self.calm_needed = settings.grace
        self.breath = False
        self.not_before = 0.0
        self.pause = FIRST_PAUSE
        self.pins = 0
        self.unpinned = 0.0
        if ready:
            self.the_server_is_ready()

    # What the gate wants.

    def take(self, order: Order | None) -> None:
        if order is None:
            return
        if order.kind == REFUSE:
            assert self.waiting, "nobody waits"
            assert self.now >= self.first_of_them + self.settings.thaw_timeout, "refused too early"
            assert self.gate.state == THAWING
            waiting, self.waiting = self.waiting, []
            for _ in waiting:
                self.gate.ended(self.now)
            return
        assert order.ticket not in self.tickets
        assert order.ticket > max(self.tickets, default=0)
        self.tickets.add(order.ticket)
        self.orders.append(order)
        if order.kind == FREEZE:
            assert self.gate.in_flight == 0, "a freeze with an exchange in flight"
            assert self.armed, "a freeze before the server was ready"
            assert not self.pins, "a freeze while something is pinned"
            assert not self.disarmed
            assert self.settings.mode != "off"
            assert self.calm_since is not None
            assert self.now >= self.calm_since + self.calm_needed, "a freeze before the grace was over"
            assert self.now >= self.not_before, "tried again too early"
            self.calm_since = None
        else:
            assert order.kind == THAW
            assert self.gate.state == THAWING

    def after(self, before: str) -> None:
        """Follow what an answer did."""
        state = self.gate.state
        if before == FREEZING and state == FROZEN:
            self.pause = FIRST_PAUSE
        if before != AWAKE and state == AWAKE:
            if before == FREEZING:
                self.postpone()
            self.serving += len(self.waiting)
            self.waiting.clear()
            self.calm_needed = self.settings.grace
            if self.breath and self.settings.breathe:
                self.calm_needed = self.settings.breathe[1]
            self.breath = False
            self.calm_since = self.now

    def postpone(self) -> None:
        self.not_before = self.now + self.pause
        self.pause = min(self.pause * 2, LAST_PAUSE)

    # Exchanges.

    @rule()
    def an_exchange_begins(self) -> None:
        before, was_open = self.gate.state, self.gate.open
        order = self.gate.began(self.now)
        if was_open:
            assert order is None
            assert self.gate.open
            self.serving += 1
        else:
            if not self.waiting:
                self.first_of_them = self.now  # they wait together, by the clock of the first
            self.waiting.append(self.now)
            if before == THAWING:
                assert order is None
            else:
                assert order is not None
                assert order.kind == THAW
        self.take(order)

    @precondition(lambda self: self.serving)
    @rule()
    def an_exchange_ends(self) -> None:
        self.serving -= 1
        self.gate.ended(self.now)
        if not self.serving:
            self.calm_since = self.now
            self.calm_needed = self.settings.grace

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 5))
    def a_client_that_waits_leaves(self, which: int) -> None:
        self.waiting.pop(which % len(self.waiting))
        self.gate.ended(self.now)

    # The server, and who knows of it.

    @rule()
    def the_server_is_ready(self) -> None:
        if not self.disarmed and not self.armed:
            self.armed = True
            self.calm_since = max(self.calm_since or self.now, self.now)
            self.calm_needed = self.settings.grace
        self.gate.ready(self.now)

    @rule(really=st.integers(0, 5))
    def the_server_is_not_well(self, really: int) -> None:
        if really != 3:
            return
        before = self.gate.state
        self.armed = False
        self.take(self.gate.unready(self.now))
        assert self.gate.state in (AWAKE, THAWING)
        assert (before == AWAKE) == (self.gate.state == AWAKE)

    @rule()
    def a_probe_begins(self) -> None:
        self.pins += 1
        self.gate.pin()

    @precondition(lambda self: self.pins)
    @rule()
    def a_probe_ends(self) -> None:
        self.pins -= 1
        self.unpinned = self.now
        self.gate.unpin(self.now)

    @rule(really=st.integers(0, 20))
    def disarm(self, really: int) -> None:
        if really != 7:
            return
        before = self.gate.state
        self.armed, self.disarmed = False, True
        order = self.gate.disarm(self.now)
        assert (order is not None) == (before in (FREEZING, FROZEN))
        self.take(order)

    @rule()
    def the_driver_is_back(self) -> None:
        self.pause, self.not_before = FIRST_PAUSE, 0.0
        self.unpinned = self.now
        self.gate.hopeful(self.now)

    @rule()
    def the_driver_is_lost(self) -> None:
        before = self.gate.state
        order = self.gate.lost(self.now)
        assert (order is not None) == (before != AWAKE)
        self.take(order)

    @rule()
    def it_is_woken(self) -> None:
        before = self.gate.state
        order = self.gate.wake(self.now)
        assert (order is not None) == (before in (FREEZING, FROZEN))
        self.take(order)

    # The driver.

    @precondition(lambda self: self.orders)
    @rule(outcome=st.sampled_from(["done", "done", "done", "failed", "half", "silent", "skipped"]))
    def an_order_is_carried_out(self, outcome: str) -> None:
        """The oldest, since they are carried out one after another; a newer one may replace it."""
        if outcome == "skipped" and len(self.orders) < 2:
            return
        order = self.orders.pop(0)
        if outcome == "skipped":
            return
        if order.kind == FREEZE:
            self.running = outcome == "failed"  # half of a target that stands still is no target that runs
        elif outcome in ("done", "silent"):
            self.running = True
        if outcome in ("done", "failed"):
            self.answers.append((outcome, order.ticket))

    def tell(self, answer: tuple[str, int]) -> None:
        before = self.gate.state
        what, ticket = answer
        if what == "done":
            self.gate.done(ticket, self.now)
        else:
            self.gate.failed(ticket, self.now)
        self.after(before)

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 5))
    def an_answer_arrives(self, which: int) -> None:
        answer = self.answers.pop(which % len(self.answers))
        self.told.append(answer)
        self.tell(answer)

    @precondition(lambda self: self.told)
    @rule(which=st.integers(0, 50))
    def an_answer_arrives_again(self, which: int) -> None:
        before = (self.gate.state, self.gate.open)
        answer = self.told[which % len(self.told)]
        if answer[0] == "failed" and answer[1] == max(self.tickets) and self.gate.state == THAWING:
            return  # that moves the next try, and no more
        self.tell(answer)
        assert (self.gate.state, self.gate.open) == before

    @rule(ticket=st.sampled_from([-1, 0, 10_000]), what=st.sampled_from(["done", "failed"]))
    def an_answer_to_nothing_arrives(self, ticket: int, what: str) -> None:
        before = (self.gate.state, self.gate.open, self.gate.deadline)
        self.tell((what, ticket))
        assert (self.gate.state, self.gate.open, self.gate.deadline) == before

    # Time.

    @rule(step=st.sampled_from([0.0, 1e-4, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 100.0, 1e5]))
    def time_passes(self, step: float) -> None:
        self.now += step

    @precondition(lambda self: self.gate.deadline < FOREVER)
    @rule()
    def the_deadline_comes(self) -> None:
        early = math.nextafter(self.gate.deadline, -FOREVER)
        if early > self.now:
            assert self.gate.tick(early) is None
        self.now = max(self.now, self.gate.deadline)
        self.ticks()

    @rule()
    def ticks(self) -> None:
        for _ in range(10):
            before = self.gate.state
            order = self.gate.tick(self.now)
            if order is None:
                break
            if before == FREEZING:
                self.postpone()
            if before == FROZEN:
                self.breath = True
            if before == AWAKE:
                assert order.kind == FREEZE
            self.take(order)
        else:
            raise AssertionError("tick always has something to say at the same moment")
        for since in self.waiting:
            assert self.now < since + self.settings.thaw_timeout, "waits longer than thaw_timeout"

    # All at once, as it mostly goes; by single steps the machine would seldom come round.

    @precondition(lambda self: self.gate.state == AWAKE and self.gate.deadline < FOREVER)
    @rule()
    def it_freezes(self) -> None:
        self.orders.clear()
        self.the_deadline_comes()
        self.an_order_is_carried_out("done")
        self.tell(self.answers.pop())
        assert self.gate.state == FROZEN

    @precondition(lambda self: self.gate.state == THAWING)
    @rule(after=st.sampled_from([0.0, 0.1]))
    def it_is_thawed(self, after: float) -> None:
        self.now += after
        self.orders.append(Order(THAW, max(self.tickets)))
        while self.orders:
            self.an_order_is_carried_out("done")
        self.tell(self.answers.pop())
        assert self.gate.state == AWAKE

    @precondition(lambda self: self.gate.state in (FREEZING, THAWING) and self.orders)
    @rule()
    def it_fails(self) -> None:
        self.orders = self.orders[-1:]
        self.an_order_is_carried_out("failed")
        self.tell(self.answers.pop())

    # The rules.

    @invariant()
    def no_byte_passes_unless_the_target_runs(self) -> None:
        assert self.gate.open == (self.gate.state == AWAKE)
        assert self.running or not self.gate.open

    @invariant()
    def counts_agree(self) -> None:
        assert self.gate.in_flight == self.serving + len(self.waiting)
        assert not (self.serving and self.waiting)
        assert self.gate.open or not self.serving

    @invariant()
    def who_waits_is_being_thawed_for_and_refused_in_time(self) -> None:
        if self.waiting:
            assert self.gate.state == THAWING
            assert self.gate.deadline <= min(self.waiting) + self.settings.thaw_timeout

    @invariant()
    def the_next_moment_is_known_while_anything_remains_to_be_done(self) -> None:
        gate = self.gate
        if gate.state in (FREEZING, THAWING):
            assert gate.deadline < FOREVER
        elif gate.state == FROZEN:
            assert (gate.deadline < FOREVER) == (self.settings.breathe is not None)
            assert not self.disarmed
        elif gate.in_flight or self.pins or not self.armed or self.settings.mode == "off":
            assert gate.deadline == FOREVER
        else:
            assert self.calm_since is not None
            assert gate.deadline == max(self.calm_since + self.calm_needed, self.not_before, self.unpinned)

    def teardown(self) -> None:
        """From here on thaws succeed, though slowly. Whatever has been: it ends awake, and it freezes again."""
        if not hasattr(self, "gate"):
            return
        while self.pins:
            self.a_probe_ends()
        slow = 2.5 * max(self.settings.thaw_timeout, FIRST_RETRY)
        self.an_exchange_begins()
        coming = [(self.now + slow, order) for order in self.orders[-1:]]  # which replaces all before it
        self.orders.clear()
        for _ in range(60):
            if self.gate.open:
                break  # before a tick: with no grace at all, and nobody left to wait, it would freeze again
            self.ticks()
            last = coming[-1][0] if coming else self.now
            coming += [(last + slow * number, order) for number, order in enumerate(self.orders, 1)]
            self.orders.clear()
            moments = [self.gate.deadline, *(at for at, _ in coming)]
            self.now = max(self.now, min(moments))
            while coming and coming[0][0] <= self.now and not self.gate.open:
                _, order = coming.pop(0)
                self.running = order.kind == THAW
                self.tell(("done", order.ticket))
                self.no_byte_passes_unless_the_target_runs()
        assert self.gate.open, "not awake though thaws succeed"
        while self.serving:
            self.an_exchange_ends()
        if self.armed and self.settings.mode != "off":
            self.orders.clear()
            self.the_deadline_comes()
            assert [order.kind for order in self.orders] == [FREEZE]


World.TestCase.settings = examples(200, steps=80)
TestGate = World.TestCase
