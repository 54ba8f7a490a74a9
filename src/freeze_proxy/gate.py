"""The gate: when to freeze, when to thaw, and whether bytes may pass.

Pure: it is told facts together with the time at which they became known, and answers with orders. It reads no clock
and does no I/O; whoever drives it carries the orders out and tells it how they went.

The states, and what leads from one to the next::

    AWAKE ──quiet for the grace──▶ FREEZING ──done──▶ FROZEN
      ▲  ◀──────failed────────────────┘ │               │ exchange begins, or time to breathe
      │                                 │ exchange begins, or it takes too long
      └──────────done──────────── THAWING ◀─────────────┘ ──failed──▶ THAWING, a new try

The rules it keeps:

1. Bytes may pass (``open``) in AWAKE and in no other state, and AWAKE means: the last order that could have stopped
   the target has failed or has been undone, and the answer to that has arrived.
2. A freeze is ordered only while no exchange is in flight and nothing is pinned, only after ``ready`` and not after
   ``unready``, never after ``disarm``.
3. An exchange that begins in any state but AWAKE leads to a thaw at once; those that begin meanwhile wait together
   and go together.
4. Every order has a ticket of its own, and an answer counts only if it bears the ticket of the newest order: an
   answer that comes late cannot move the gate. Only a thaw that has merely been repeated since counts as well: nothing
   that could stop the target was ordered in between, and a driver slower than the repetition is to be believed, too.
5. A thaw is tried until it succeeds. Exchanges wait for it for ``thaw_timeout`` at most; then they are refused, and
   the trying goes on.

Times are seconds of one monotonic clock, as floats. The relay of a sidecar runs from this file in a few MiB, so it
imports nothing: no ``enum``, no ``dataclasses``.
"""

FREEZE = "freeze"
THAW = "thaw"
REFUSE = "refuse"

AWAKE = "awake"
FREEZING = "freezing"
FROZEN = "frozen"
THAWING = "thawing"

MODES = ("freeze", "throttle", "dry-run", "off")

FOREVER = float("inf")
FREEZE_PATIENCE = 2.0
"""Seconds that a freeze may stay unanswered before it is undone: half of a target may already stand still."""
FIRST_PAUSE, LAST_PAUSE = 0.5, 60.0
"""Seconds from a failed freeze to the next try; doubled after each failure."""
FIRST_RETRY, LAST_RETRY = 0.01, 1.0
"""Seconds from a failed thaw to the next try; doubled after each failure."""


class Settings:
    """What a user can set about the gate. All times are seconds.

    ``grace``: quiet time before a freeze. ``mode``: one of ``MODES``; here only ``off`` matters, the others differ in
    what the freezer does. ``thaw_timeout``: how long an exchange waits for a thaw. ``breathe``: ``(every, span)``, or
    ``None`` for never. ``idle_stream``: how long an upgraded connection or a stream must be silent to count as idle,
    or ``None`` for never; the observers and the relay apply it.
    """

    __slots__ = ("breathe", "grace", "idle_stream", "mode", "thaw_timeout")

    def __init__(
        self,
        grace: float = 0.1,
        mode: str = "freeze",
        thaw_timeout: float = 5.0,
        breathe: tuple[float, float] | None = None,
        idle_stream: float | None = None,
    ) -> None:
        self.grace = grace
        self.mode = mode
        self.thaw_timeout = thaw_timeout
        self.breathe = breathe
        self.idle_stream = idle_stream


class Order:
    """What the gate wants done: ``kind`` is ``FREEZE``, ``THAW`` or ``REFUSE``.

    A freeze or a thaw is answered with ``done`` or ``failed`` and its ``ticket``. A refusal has none: whoever waits
    gets its 503 and ends.
    """

    __slots__ = ("kind", "ticket")

    def __init__(self, kind: str, ticket: int) -> None:
        self.kind = kind
        self.ticket = ticket

    def __repr__(self) -> str:
        return f"Order({self.kind!r}, {self.ticket})"


class Gate:
    """One target's gate. Read ``open``, ``state``, ``in_flight`` and ``deadline``; change them only by the methods.

    ``deadline`` is the next moment at which ``tick`` has something to say (``FOREVER``: none). It may move later
    without notice, so a timer that fires early just ticks and looks again.
    """

    __slots__ = (
        "_armed",
        "_breathing",
        "_disarmed",
        "_first_thaw",
        "_freeze_pause",
        "_not_before",
        "_pins",
        "_quiet_until",
        "_refuse_at",
        "_retry_at",
        "_retry_pause",
        "_settings",
        "_ticket",
        "deadline",
        "in_flight",
        "open",
        "state",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.state = AWAKE
        self.open = True
        self.in_flight = 0
        self.deadline = FOREVER
        self._armed = False
        self._disarmed = settings.mode == "off"
        self._breathing = False
        self._ticket = 0
        self._first_thaw = 0  # the first order since which nothing but thaws was ordered
        self._not_before = 0.0
        self._quiet_until = 0.0  # the end of the grace
        self._pins = 0
        self._freeze_pause = FIRST_PAUSE
        self._retry_at = FOREVER
        self._retry_pause = FIRST_RETRY
        self._refuse_at = FOREVER

    # Facts about the exchanges: the two calls of every request.

    def began(self, now: float) -> Order | None:
        """An exchange has begun; in every state but AWAKE it waits, and the answer may be the order to thaw."""
        self.in_flight += 1
        if self.open:
            self.deadline = FOREVER
            return None
        if self._refuse_at == FOREVER:
            self._refuse_at = now + self._settings.thaw_timeout
        if self.state != THAWING:
            return self._thaw(now)
        self.deadline = min(self._retry_at, self._refuse_at)
        return None

    def ended(self, now: float) -> None:
        """An exchange has ended, or the client that waited with it has left."""
        self.in_flight -= 1
        if not self.in_flight:
            if self.open:
                if self._armed:
                    self._plan_freeze(now + self._settings.grace)
            else:
                self._refuse_at = FOREVER
                self.deadline = self._retry_at

    # Facts about the target.

    def ready(self, now: float) -> None:
        """The server answers: from now on it may be frozen."""
        if not self._armed and not self._disarmed:
            self._armed = True
            if self.open and not self.in_flight:
                self._plan_freeze(now + self._settings.grace)

    def unready(self, now: float) -> Order | None:
        """The server does not answer as it should: it is not to be frozen until it is ``ready`` again."""
        self._armed = False
        if self.open:
            self.deadline = FOREVER
        return self.wake(now)

    def pin(self) -> None:
        """Something is under way that is no exchange, and that a freeze is to wait for; the grace runs on."""
        self._pins += 1
        if self.open:
            self.deadline = FOREVER

    def unpin(self, now: float) -> None:
        """It is over."""
        self._pins -= 1
        if self.open and self._armed and not self.in_flight:
            self._plan_freeze(max(self._quiet_until, now))

    def hopeful(self, now: float) -> None:
        """What made freezes fail may be over: the next one need not wait for that."""
        self._freeze_pause = FIRST_PAUSE
        self._not_before = 0.0
        if self.open and self._armed and not self.in_flight:
            self._plan_freeze(max(self._quiet_until, now))

    def disarm(self, now: float) -> Order | None:
        """Thaw, and never freeze again. A ``ready`` after this has no effect."""
        self._armed = False
        self._disarmed = True
        if self.open:
            self.deadline = FOREVER
        return self.wake(now)

    def wake(self, now: float) -> Order | None:
        """Thaw, for something that is no exchange; ``began`` keeps it awake from then on."""
        return None if self.open or self.state == THAWING else self._thaw(now)

    def lost(self, now: float) -> Order | None:
        """Whatever carries out the orders has lost sight of the target: unless it is awake, thaw it anew."""
        if self.open:
            return None
        order = self._thaw(now)
        self._first_thaw = order.ticket
        return order

    # Answers to orders.

    def done(self, ticket: int, now: float) -> None:
        """The order with this ticket has been carried out."""
        if self.state == THAWING:
            if self._first_thaw <= ticket <= self._ticket:
                self._wake(now)
        elif self.state == FREEZING and ticket == self._ticket:
            self.state = FROZEN
            self._freeze_pause = FIRST_PAUSE
            breathe = self._settings.breathe
            self.deadline = now + breathe[0] if breathe else FOREVER

    def failed(self, ticket: int, now: float) -> bool:
        """The order with this ticket could not be carried out; after a failed freeze the target runs.

        Returns whether that counts; if so, it will be tried again.
        """
        if ticket != self._ticket or self.open:
            return False
        if self.state == FREEZING:
            self._postpone(now)
            self._wake(now)
        elif self.state == THAWING:
            self._retry_at = now + self._retry_pause
            self._retry_pause = min(self._retry_pause * 2, LAST_RETRY)
            self.deadline = min(self._retry_at, self._refuse_at)
        else:
            return False
        return True

    # Time.

    def tick(self, now: float) -> Order | None:
        """Says what is due; ask again until it is ``None``."""
        if now < self.deadline:
            return None
        if self.state == AWAKE:
            return self._freeze(now)
        if self.state == FREEZING:
            self._postpone(now)
            return self._thaw(now)
        if self.state == FROZEN:
            self._breathing = True
            return self._thaw(now)
        if now >= self._refuse_at:
            self._refuse_at = FOREVER
            self.deadline = self._retry_at
            return Order(REFUSE, 0)
        return self._thaw(now)

    # The moves between the states.

    def _freeze(self, now: float) -> Order:
        self.state = FREEZING
        self.open = False
        self.deadline = now + FREEZE_PATIENCE
        return self._order(FREEZE)

    def _thaw(self, now: float) -> Order:
        if self.state != THAWING:
            self.state = THAWING
            self._retry_pause = FIRST_RETRY
            self._first_thaw = self._ticket + 1
        # An order without an answer is repeated after half the time that an exchange would wait for it: none is to be
        # refused because one answer was lost.
        self._retry_at = now + max(self._settings.thaw_timeout / 2, FIRST_RETRY)
        self.deadline = min(self._retry_at, self._refuse_at)
        return self._order(THAW)

    def _wake(self, now: float) -> None:
        self.state = AWAKE
        self.open = True
        self._ticket += 1
        self._refuse_at = FOREVER
        self.deadline = FOREVER
        quiet = self._settings.grace
        if self._breathing and self._settings.breathe:
            quiet = self._settings.breathe[1]
        self._breathing = False
        if self._armed and not self.in_flight:
            self._plan_freeze(now + quiet)

    def _plan_freeze(self, at: float) -> None:
        self._quiet_until = at
        self.deadline = FOREVER if self._pins else max(at, self._not_before)

    def _postpone(self, now: float) -> None:
        self._not_before = now + self._freeze_pause
        self._freeze_pause = min(self._freeze_pause * 2, LAST_PAUSE)

    def _order(self, kind: str) -> Order:
        self._ticket += 1
        return Order(kind, self._ticket)
