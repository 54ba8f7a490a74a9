"""The keeper drives one gate: it adds the time to the facts, has the orders carried out, and keeps the gate's timer.

It stands between the relay, which tells it of exchanges (it is the observers' ``Tally``), and a ``Driver``, which
freezes and thaws and answers with the order's ticket: at once, or later from the loop. A ``Witness`` is told of all
that a user may want to see or count.
"""

import time

from freeze_proxy.gate import AWAKE, FOREVER, FREEZE, FREEZING, FROZEN, THAW, THAWING, Gate, Order
from freeze_proxy.loop import Loop, Timer
from freeze_proxy.observe.tally import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Driver:
    """Carries out orders. Each call is answered by ``keeper.done(ticket)`` or ``keeper.failed(ticket, reason)``.

    Orders are carried out one after another: a new one may come before the answer to the last, which it replaces. Who
    can let the target run within microseconds says with each freeze how: ``keeper.haste``.
    """

    __slots__ = ("keeper",)

    keeper: "Keeper"

    def freeze(self, ticket: int) -> None:
        """Stop the target. If it fails, the target runs when ``failed`` is called."""
        raise NotImplementedError

    def thaw(self, ticket: int) -> None:
        """Let the target run, whatever became of the order before."""
        raise NotImplementedError


class Gated:
    """What obeys the gate: the relay."""

    __slots__ = ()

    def catch_up(self) -> None:
        """Time has passed, and the gate is about to decide: tell of all that has happened until now."""

    def before_freeze(self) -> None:
        """The target is about to stand still."""

    def release(self) -> None:
        """Bytes may pass: send on all that was held."""

    def refuse(self) -> None:
        """The thaw has taken too long: answer 503 to all that wait."""


class Witness:
    """Is told what happens, after it has happened; times are seconds of the monotonic clock. Does nothing itself."""

    __slots__ = ()

    def frozen(self, at: float, took: float) -> None:
        """The target stands still since ``at``, ``took`` seconds after that was ordered."""

    def thawing(self) -> None:
        """The target is about to be thawed. Unlike the others this is told before, and somebody waits: be quick."""

    def thawed(self, at: float, waited: float | None) -> None:
        """The target runs; it stood still until ``at``, when the thaw was ordered.

        ``waited``: from the first byte that was held until it might pass, or from the packet that came first until the
        target ran; ``None``: nobody did.
        """

    def failed(self, what: str, reason: str) -> None:
        """An order (``freeze`` or ``thaw``) failed; it will be tried again."""

    def refused(self, exchanges: int) -> None:
        """So many exchanges are being answered 503."""


class Keeper(Tally):
    """Counts ``requests`` and keeps ``gate``."""

    __slots__ = (
        "_alarm",
        "_area",
        "_area_until",
        "_arrived_at",
        "_driver",
        "_hurried_at",
        "_loop",
        "_ordered_at",
        "_runs_since",
        "_waiting_since",
        "gate",
        "gated",
        "haste",
        "requests",
        "witness",
    )

    def __init__(self, loop: Loop, gate: Gate, driver: Driver, witness: Witness) -> None:
        driver.keeper = self
        self._loop = loop
        self._driver = driver
        self._alarm: Timer | None = None
        self._area = 0.0  # of in flight over time
        self._area_until = 0.0
        self._arrived_at: float | None = None  # since the last freeze
        self._hurried_at = 0.0  # since the last freeze; 0: not at all
        self._ordered_at = 0.0
        self._runs_since = 0.0  # where it was hurried, and no freeze that was under way can undo that; 0: not known
        self._waiting_since: float | None = None
        self.gate = gate
        self.gated = Gated()
        self.haste: Callable[[], object] | None = None  # lets the target run, while it may stand still
        self.requests = 0
        self.witness = witness

    # From the observers.

    def began(self) -> None:
        """An exchange has begun."""
        self.requests += 1
        now = self._loop.now
        self._area += self.gate.in_flight * (now - self._area_until)
        self._area_until = now
        order = self.gate.began(now)
        if not self.gate.open:
            self._wait(order)

    def held(self) -> None:
        """Something that is no new exchange needs the server awake."""
        now = self._loop.now
        self._area += self.gate.in_flight * (now - self._area_until)
        self._area_until = now
        order = self.gate.began(now)
        if not self.gate.open:
            self._wait(order)

    def ended(self) -> None:
        """What had begun, or was held, has ended."""
        now = self._loop.now
        self._area += self.gate.in_flight * (now - self._area_until)
        self._area_until = now
        self.gate.ended(now)
        if self._alarm is None or self._alarm.when > self.gate.deadline:
            self._set_alarm()

    def in_flight_seconds(self) -> float:
        """The sum of the times for which exchanges have been in flight; two at once count twice."""
        return self._area + self.gate.in_flight * max(0.0, self._loop.now - self._area_until)

    # From whoever knows the server, and from the driver.

    def ready(self) -> None:
        """The server answers."""
        self.gate.ready(self._loop.now)
        self._set_alarm()

    def unready(self) -> None:
        """The server does not answer as it should: it stays awake until it is ``ready`` again."""
        self._carry_out(self.gate.unready(self._loop.now))

    def pin(self) -> None:
        """Begin no freeze until ``unpin``, for something that is no exchange and does not renew the grace."""
        self.gate.pin()

    def unpin(self) -> None:
        """It is over."""
        self.gate.unpin(self._loop.now)
        self._set_alarm()

    def hopeful(self) -> None:
        """Whoever carries out orders can be reached again: what has failed for that may be tried at once."""
        self.gate.hopeful(self._loop.now)
        self._set_alarm()

    def disarm(self) -> None:
        """Thaw, and freeze no more."""
        self._carry_out(self.gate.disarm(self._loop.now))

    def hurry(self) -> bool:
        """What is told soon will lead to a thaw, for which somebody waits: let the target run before it is thought of.

        Returns whether it runs; if not, the thaw is to be ordered without delay.
        """
        haste, self.haste = self.haste, None
        if haste is None:
            return self.gate.open or self._hurried_at > 0
        self._hurried_at = time.monotonic()  # before: it may be a while until this process is run again
        self._runs_since = self._hurried_at if self.gate.state == FROZEN else 0.0
        try:
            haste()
        except OSError:
            self._hurried_at = 0.0
            return False
        return True

    def arrived(self, at: float) -> None:
        """At ``at`` a packet has come for which the target is thawed. Where it does not run, the packet waits."""
        if not self.gate.open and self._arrived_at is None:
            self._arrived_at = at

    def wake(self) -> None:
        """Have the server awake for something that nobody waits for; ``held`` keeps it so until ``ended``."""
        self._carry_out(self.gate.wake(self._loop.now))

    def lost(self) -> None:
        """The driver has lost sight of the target."""
        self._carry_out(self.gate.lost(self._loop.now))

    def done(self, ticket: int) -> None:
        """The order with this ticket has been carried out."""
        before, now = self.gate.state, time.monotonic()
        self.gate.done(ticket, now)
        self._compare(before, now)

    def failed(self, ticket: int, reason: str) -> None:
        """The order with this ticket has failed, for a reason to show to the user."""
        before, now = self.gate.state, time.monotonic()
        if self.gate.failed(ticket, now):
            self.haste = None
            what = THAW if before == THAWING else FREEZE
            self._hurried_at = self._runs_since = 0.0  # whatever that was, it did not last
            self._loop.soon(lambda: self.witness.failed(what, reason))
            self._compare(before, now)

    # Inside.

    def _wait(self, order: Order | None) -> None:
        if self._waiting_since is None or self.gate.in_flight == 1:  # those before it have given up
            self._waiting_since = self._loop.now
        self._carry_out(order)

    def _compare(self, before: str, now: float) -> None:
        """Draw the consequences of an answer that moved the gate."""
        state = self.gate.state
        if before == FREEZING and state == FROZEN:
            ordered = self._ordered_at
            self._loop.soon(lambda: self.witness.frozen(now, now - ordered))
        elif before == THAWING and state == AWAKE:
            since, runs_since = self._waiting_since if self.gate.in_flight else None, now
            if self._arrived_at is not None:
                since, runs_since = self._arrived_at, self._runs_since or now
            self._waiting_since = self._arrived_at = None
            self.gated.release()
            at, waited = self._ordered_at, None if since is None else max(0.0, runs_since - since)
            self._loop.soon(lambda: self.witness.thawed(at, waited))
        self._set_alarm()

    def _carry_out(self, order: Order | None) -> None:
        if order is None:
            pass
        elif order.kind == FREEZE:
            self.gated.before_freeze()
            self._ordered_at, self._hurried_at, self.haste = time.monotonic(), 0.0, None
            self._runs_since, self._arrived_at = 0.0, None
            self._driver.freeze(order.ticket)
        elif order.kind == THAW:
            self.haste = None
            self.witness.thawing()
            self._ordered_at = self._hurried_at or time.monotonic()
            self._driver.thaw(order.ticket)
        else:
            self._waiting_since = None
            exchanges = self.gate.in_flight
            self._loop.soon(lambda: self.witness.refused(exchanges))
            self.gated.refuse()
        self._set_alarm()

    def _set_alarm(self) -> None:
        deadline, alarm = self.gate.deadline, self._alarm
        # An alarm that is early does no harm: it looks, and is set again. So a busy server costs no timer a request.
        if deadline == FOREVER or (alarm is not None and alarm.when <= deadline):
            return
        if alarm is not None:
            alarm.cancel()
        self._alarm = self._loop.at(deadline, self._tick)

    def _tick(self) -> None:
        self._alarm = None
        self.gated.catch_up()
        while (order := self.gate.tick(self._loop.now)) is not None:
            self._carry_out(order)
        self._set_alarm()
