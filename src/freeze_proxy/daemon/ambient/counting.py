"""Keeping a pod of Knative's: its packets are only counted, and queue-proxy says when nothing is in flight.

Nothing at all happens here for a request of a server that runs. A look now and then compares a number in memory; only
when it has not changed since the last look is queue-proxy asked. While the pod is frozen it is not asked either.

A SYN wakes a frozen pod, but nothing is in flight by that: no byte has come. So it is awake for the grace, while the
next packet is waited for, and unless that comes it is frozen again. That is all that a TCP probe costs. Other probes,
of which queue-proxy knows nothing, are known by their connections: ``visits``.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from freeze_proxy.ambient import Watch
from freeze_proxy.ambient.conversations import FIELDS, FIELDS_AT, KEY
from freeze_proxy.ambient.program import ENDS, KIND_AT, SYN, WAKES, came_at
from freeze_proxy.ambient.sockets import Sockets
from freeze_proxy.ambient.stillness import Stillness
from freeze_proxy.daemon.ambient.idle import Proof
from freeze_proxy.daemon.ambient.statistics import Silent, Statistics
from freeze_proxy.daemon.ambient.turns import Turns
from freeze_proxy.daemon.ambient.visits import Visits
from freeze_proxy.keeper import Gated, Keeper
from freeze_proxy.loop import Timer

LOOK_EVERY = 0.5
"""Seconds; reports come once a second, and every one is to be heard of."""
LOOK_AT_VISITS_EVERY, LONGEST_VISIT = 0.05, 0.5
"""Seconds: what takes longer is for queue-proxy to judge."""
_FIRST_REST, _LAST_REST = 0.5, 30.0
"""Seconds for which a queue-proxy that did not answer is not asked again."""
_SAY_AFTER = 3
"""Failures in a row: it may start later than the server."""

_log = logging.getLogger(__name__)


class Counting(Gated):
    """What ``watches`` count, and what the queue-proxy at ``ip`` says, told to ``keeper`` as one exchange or none."""

    def __init__(
        self,
        turns: Turns,
        keeper: Keeper,
        statistics: Statistics,
        ip: Callable[[], str],
        said: str,
        served: Callable[[], None],
        stillness: Stillness,
        read: Callable[[], object],
    ) -> None:
        """``said``: the pod's name for the log. ``served`` is told when requests are seen to have been there.

        ``read`` has all records handed out that there are until now.

        ``stillness`` looks at the server while it stands still, and is closed with this.
        """
        self._turns = turns
        self._keeper = keeper
        self._statistics = statistics
        self._ip = ip
        self._said = said
        self._served = served
        self._stillness = stillness
        self._read = read
        self._visits = Visits()
        self._visits_end = 0.0  # at the latest
        self._visit: Timer | None = None
        self._active_at = turns.now  # when a packet came last
        self._watches: list[Watch] = []
        self._proof = Proof()
        self._seen = 0  # the count when nothing was in flight, and since then of what visitors send
        self._looked = 0  # the count at the last look
        self._held = False
        self._asking: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._failures = 0
        keeper.gated = self

    def start(self, watches: list[Watch], sockets: Sockets) -> None:
        """These count from now on; what was in flight before is not known."""
        self._watches = watches
        self._stillness.start(sockets)
        self._hold()

    def close(self) -> None:
        """Look no longer, and take the programs away."""
        self._stillness.close()
        self._visits.forget()
        for timer in (self._timer, self._visit):
            if timer is not None:
                timer.cancel()
        self._timer = self._visit = None
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        for watch in self._watches:
            watch.close()
        self._watches = []
        if self._held:
            self._held = False
            self._keeper.ended()

    def told(self, record: bytes | None) -> None:
        """A packet that wakes, or the end of a connection; or some that were not told of, which may have woken."""
        if record is not None and record[KIND_AT] & ENDS:
            if not self._visits.closed(record[KEY]):
                self._stillness.changed()  # one that was kept
            self._look_at_visits()
            return
        if self._in_doubt():
            return
        self._turns.begin()
        if record is not None:
            at = came_at(record)
            self._keeper.arrived(at)
            if _only_opens(record):
                # Nothing can be in flight by that alone. What may come on it is told of, too: see `release`.
                self._visits.opened(record[KEY])
                self._seen += 1
                self._keeper.wake()
                return
            self._turns.now = at  # graces begin then
            if self._visits.visited(record[KEY]):
                self._seen += 1
                self._hold_for_visits()
                return
        self._hold()

    # What the gate wants.

    def catch_up(self) -> None:
        """Whether anything has come since nothing was in flight."""
        self._read()
        if self._packets() != self._seen:
            self._hold()

    def before_freeze(self) -> None:
        """From now on a packet wakes."""
        for watch in self._watches:
            watch.arm()

    def stands_still(self) -> None:
        """The freeze is done: what was counted before the watch was armed has woken nobody."""
        self._read()
        if self._packets() != self._seen:
            self.told(None)
        elif self._watches:
            # Once a request has been there, what it has not read is looked for, and who keeps a connection.
            self._stillness.begun(self._active_at, None, new=self._visits.connections)

    def release(self) -> None:
        """It runs. Where nothing but visitors have woken it, the next packet is waited for still."""
        self._stillness.over()
        if self._in_doubt():
            self._disarm()
        self._looked = self._packets()
        self._look_later()

    # Inside.

    def _packets(self) -> int:
        return sum(watch.packets for watch in self._watches)

    def _in_doubt(self) -> bool:
        """Whether it is for queue-proxy to say that nothing is in flight."""
        return self._held and not self._visits.under_way

    def _hold(self) -> None:
        if not self._in_doubt():
            self._visits.forget()
            self._stillness.changed()
            self._active_at = self._turns.now
            self._proof.again()
            self._look_later()
            if not self._held:
                self._held = True
                self._keeper.held()
            if self._keeper.gate.open:
                self._disarm()

    def _hold_for_visits(self) -> None:
        if not self._held:
            self._held = True
            self._visits_end = time.monotonic() + LONGEST_VISIT
            self._keeper.held()
            self._look_at_visits_later()

    def _look_at_visits_later(self) -> None:
        if self._visit is None:
            self._visit = self._turns.at(time.monotonic() + LOOK_AT_VISITS_EVERY, self._look_at_visits_again)

    def _look_at_visits_again(self) -> None:
        self._visit = None
        self._read()
        self._look_at_visits()

    def _look_at_visits(self) -> None:
        if not self._visits.under_way:
            return
        self._turns.begin()
        if self._visits.over and self._packets() == self._seen:
            self._visits.leave()
            self._held = False
            self._keeper.ended()
        elif self._turns.now > self._visits_end:
            self._hold()
        else:
            self._look_at_visits_later()

    def _disarm(self) -> None:
        for watch in self._watches:
            watch.disarm()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._turns.at(time.monotonic() + LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._watches or not self._keeper.gate.open:
            return  # `release` looks again
        packets = self._packets()
        if not self._in_doubt():
            self.catch_up()
        elif packets != self._looked:
            self._active_at = self._turns.now
        elif self._asking is None and self._ip():
            self._asking = asyncio.create_task(self._ask())
        self._looked = packets
        self._look_later()

    async def _ask(self) -> None:
        self._proof.asking(self._packets())
        try:
            report = await self._statistics.of(self._ip())
        except Silent as reason:
            self._proof.again()
            self._failures += 1
            if self._failures == _SAY_AFTER:
                facts = {"pod": self._said, "why": str(reason)}
                _log.warning("queue-proxy tells no statistics, and the pod stays awake", extra={"facts": facts})
            await asyncio.sleep(min(_FIRST_REST * 2 ** min(self._failures - 1, 8), _LAST_REST))
        else:
            if self._failures >= _SAY_AFTER:
                _log.info("queue-proxy tells its statistics again", extra={"facts": {"pod": self._said}})
            self._failures = 0
            self._proof.heard(report)
            if not report.clean:
                self._served()
            if self._in_doubt() and self._proof.holds(packets := self._packets()):
                self._seen = packets
                self._held = False
                self._turns.begin()
                self._keeper.ended()
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None


def _only_opens(record: bytes) -> bool:
    """Whether it is of a SYN without data, all that a TCP probe sends."""
    _, length, _, kind, flags = FIELDS.unpack_from(record, FIELDS_AT)
    return bool(flags & SYN) and not length and kind == WAKES
