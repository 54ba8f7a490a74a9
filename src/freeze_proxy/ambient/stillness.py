"""What is looked at while a server stands still, beside its packets: who dies, who listens, what waits in its sockets.

A packet wakes a server, if there is somebody to whom it is for, and if it comes after the freeze. So the look is
level-triggered: it asks how things are, whatever was told of them before.

- *One of its processes dies*, killed by somebody: the others are woken to see to it.
- *Nobody listens*: no packet would reach it. It is woken, and not frozen again before somebody does.
- *Bytes, datagrams or connections wait* for it: it had not got round to them. It is woken for them, three times, for
  longer each time. What waits on after that is not wanted.
- *A connection is open* in which nothing is in flight: the server ends such connections after a time of its own. Were
  it frozen then, it would find that time over at the thaw, and reset the very connection on which a request has come.
  So it is let run for a grace every now and then: ``breaths``.
"""

import os
import time
from collections.abc import Collection, Sequence
from functools import partial

from freeze_proxy.ambient.breaths import Breaths
from freeze_proxy.ambient.sockets import Seen, Sockets
from freeze_proxy.freezers import cgroup
from freeze_proxy.gate import FROZEN
from freeze_proxy.keeper import Keeper
from freeze_proxy.loop import READ, Loop, Timer

WAITS = (0.0, 0.1, 1.0)
"""Seconds that the server is awake, and a grace each time, for what has waited in its sockets through a freeze."""
TRUSTED_FOR = 300.0
"""Seconds for which a look holds, of one in whose sockets nothing can have changed since."""
LISTENER_PERIOD, LONGEST_PERIOD = 0.1, 2.0
"""Seconds to the first look whether a server listens again that had stopped to, and at most between two."""
MOST_WATCHED = 256
"""How many processes of a server, the oldest first, are watched for their end while it is frozen."""


class Stillness:
    """Of the server that ``keeper`` keeps, whose processes are in ``cgroups``.

    With ``later`` the sockets of one that has stood still for less than so many seconds are not looked at, unless there
    is a reason to.
    """

    def __init__(
        self, loop: Loop, keeper: Keeper, cgroups: Sequence[str], later: float = 0.0, most_watched: int = MOST_WATCHED
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._cgroups = cgroups
        self._later = later
        self._most_watched = most_watched
        self._sockets: Sockets | None = None
        self._round = 0  # of standing still: what is asked in one is of no use in the next
        self._timer: Timer | None = None
        self._breaths = Breaths()
        self._quiet_since = self._ran_until = 0.0
        self._kept: bool | None = False
        self._new: Collection[bytes] = ()
        self._last: Seen | None = None  # the last look, as long as it holds
        self._last_until = 0.0
        self._waiting: frozenset[tuple[bytes, int]] = frozenset()
        self._waited = 0  # how often for the same
        self._pinned = False
        self._processes: dict[int, int] = {}  # PID to pidfd

    def start(self, sockets: Sockets) -> None:
        """``sockets`` knows the server's, and is closed with this."""
        self._sockets = sockets

    def close(self) -> None:
        """Look no longer."""
        self.over()
        for pid in list(self._processes):
            self._forget_process(pid)
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        self._unpin()

    def begun(self, quiet_since: float, kept: bool | None, reason: bool = False, new: Collection[bytes] = ()) -> None:
        """The freeze is done. ``quiet_since``: when a packet came last that wakes, but on one of ``new`` connections.

        ``kept``: whether a connection is open in which nothing is in flight; ``None``: the sockets tell, and whoever
        says so also calls ``changed`` where they have. ``reason``: whether something may wait in the sockets.
        """
        self.over()
        if self._sockets is None or self._keeper.gate.state != FROZEN:
            return
        self._quiet_since, self._ran_until, self._kept, self._new = quiet_since, self._loop.now, kept, new
        if self._watch_processes():
            self._last = None
        if kept is None and not new and self._last is not None and self._loop.now < self._last_until:
            self._rest(self._last)  # to list the sockets takes milliseconds
        elif reason or not self._later:
            self._look()
        else:
            self._timer = self._loop.at(self._loop.now + self._later, self._look)

    def changed(self) -> None:
        """The sockets are not what they were at the last look."""
        self._last = None

    def over(self) -> None:
        """It runs."""
        self._round += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._sockets is not None:
            self._sockets.ask(partial(self._seen, self._round))

    def _seen(self, number: int, seen: Seen) -> None:
        if number != self._round or self._sockets is None or self._keeper.gate.state != FROZEN:
            return  # it has run since, and will be looked at again
        if not seen.listens:
            self._await_listener()
        elif seen.waiting and (seconds := self._waits_for(seen.waiting)) is not None:
            self._wake()
            self._keeper.held()
            self._loop.at(time.monotonic() + seconds, self._keeper.ended)
        else:
            self._last, self._last_until = seen, self._loop.now + TRUSTED_FOR
            self._rest(seen)
        self._waiting = seen.waiting

    def _rest(self, seen: Seen) -> None:
        """Nothing waits."""
        if self._kept or seen.connections.difference(self._new):
            self._breaths.kept(self._ran_until - self._quiet_since)
        if bool(seen.connections) or not seen.known if self._kept is None else self._kept:
            after = self._breaths.after(self._loop.now - self._quiet_since)
            self._timer = self._loop.at(self._loop.now + after, self._breathe)

    def _waits_for(self, waiting: frozenset[tuple[bytes, int]]) -> float | None:
        """How long to have it awake for what waits in its sockets; ``None``: it has had its time."""
        if waiting - self._waiting:
            self._waited = 0
        else:
            self._waited += 1
        return WAITS[self._waited] if self._waited < len(WAITS) else None

    def _breathe(self) -> None:
        self._timer = None
        self._wake()

    def _wake(self) -> None:
        """No request waits for this. One that has just come does, and its wait is counted: it is told of before."""
        self._keeper.gated.catch_up()
        self._keeper.wake()

    def _touch(self) -> None:
        """Have it awake for a grace."""
        self._wake()
        self._keeper.held()
        self._keeper.ended()

    # Nobody listens.

    def _await_listener(self) -> None:
        if not self._pinned:
            self._pinned = True
            self._keeper.pin()
        self._wake()
        self._listener_later(LISTENER_PERIOD)

    def _listener_later(self, period: float) -> None:
        self._loop.at(time.monotonic() + period, partial(self._look_for_listener, period))

    def _look_for_listener(self, period: float) -> None:
        if self._sockets is not None:
            self._sockets.ask(partial(self._seen_listener, period))

    def _seen_listener(self, period: float, seen: Seen) -> None:
        if seen.listens and seen.known:
            if self._pinned:
                self._touch()
            self._unpin()
        elif self._sockets is not None:
            self._listener_later(min(period * 2, LONGEST_PERIOD))

    def _unpin(self) -> None:
        if self._pinned:
            self._pinned = False
            self._keeper.unpin()

    # Somebody dies.

    def _watch_processes(self) -> bool:
        """Who ends while all stand still may have been the one that listens. Tells whether some have, while it ran."""
        there = {pid for each in self._cgroups for pid in sorted(cgroup.members(each))[: self._most_watched]}
        gone = self._processes.keys() - there
        for pid in gone:
            self._forget_process(pid)
        for pid in there - self._processes.keys():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._touch()  # It has ended just now.
                continue
            except OSError:  # there are no descriptors left; it is not watched
                continue
            self._processes[pid] = pidfd
            self._loop.watch(pidfd, READ, partial(self._process_ended, pid))
        return bool(gone)

    def _process_ended(self, pid: int, _events: int) -> None:
        self._forget_process(pid)
        self._last = None
        if not self._keeper.gate.open:
            self._touch()

    def _forget_process(self, pid: int) -> None:
        pidfd = self._processes.pop(pid)
        self._loop.forget(pidfd)
        os.close(pidfd)
