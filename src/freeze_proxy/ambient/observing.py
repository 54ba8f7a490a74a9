"""Keeping one server whose traffic goes straight to it: its packets stand for what the relay sees elsewhere.

Nothing of this is on a request's path. Records are read in batches: while there are many, every now and then; while
there are none, the watch is armed and the next one wakes the loop. Before the gate decides, all that has come is read.
"""

import time
from collections.abc import Callable
from functools import partial

from freeze_proxy.ambient.conversations import Conversations
from freeze_proxy.ambient.program import DATAGRAM, KIND_AT, WAKES, came_at
from freeze_proxy.ambient.sockets import Seen, Sockets
from freeze_proxy.ambient.stillness import Stillness
from freeze_proxy.ambient.watcher import OUT_OF_THE_WAY, Watch, Watcher
from freeze_proxy.freezers import FreezeError
from freeze_proxy.gate import FROZEN
from freeze_proxy.keeper import Gated, Keeper
from freeze_proxy.loop import EDGE, READ, Loop

RING_SIZE = 4 << 20
"""Bytes: what comes while this process does not get its turn for a while is to find room."""
LEAST_PAUSE, MOST_PAUSE = 0.0005, 0.02
"""Seconds between two looks into the ring while records keep coming; a quarter of the grace, within these bounds."""
LOOK_AT_SOCKETS_AFTER = 0.1
"""Seconds of standing still after which the server's sockets are looked at, where there is no reason to at once. A look
takes milliseconds: the kernel goes through all sockets that there are."""
MOST_LOOKS = 200
"""How often a record that was counted is looked for until it is held to be lost."""
CENSUS_PERIOD = 1.0
"""Seconds between two looks whether connections that count as in flight are still there."""


class Observing(Gated):
    """The packets of the server in the cgroup at ``path``, told to ``keeper`` as exchanges. Raises ``BpfError``.

    ``ports`` are those that it listens on. With ``any_socket`` what comes to another socket of its, such as an answer
    from a database, wakes it as well. ``on_loss`` is called when packets came faster than they could be looked at.
    Several share a ``watcher``, which somebody else has read whenever its ``fd`` is readable. ``stillness`` looks at
    the server while it stands still, if not one of its own.
    """

    def __init__(
        self,
        loop: Loop,
        keeper: Keeper,
        path: str,
        ports: tuple[int, ...],
        *,
        grace: float,
        any_socket: bool,
        on_loss: Callable[[], None],
        watcher: Watcher | None = None,
        stillness: Stillness | None = None,
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._pause = min(max(grace / 4, LEAST_PAUSE), MOST_PAUSE)
        self._poll_is_due = False
        self._census_is_due = False
        self._handed = 0
        self._looks = 0
        self._stillness = stillness or Stillness(loop, keeper, (path,), LOOK_AT_SOCKETS_AFTER)
        self._datagrams = False  # whether one has come since it stood still last
        self._active_at = loop.now  # when a packet came last that wakes
        self._sockets: Sockets | None = None
        self.conversations = Conversations(keeper, self._touch)
        self._on_loss = on_loss
        self._shared = watcher is not None
        self._turn_is_due = False
        self._closed = False
        self.watcher = watcher or Watcher(2, RING_SIZE)
        self._watches: list[Watch] = []
        try:
            self.watch = self.watcher.watch(path, ports, self._told, observe=True, hurry=keeper.hurry)
            self._watches.append(self.watch)
            if any_socket:
                self._watches.append(self.watcher.watch(path, (), self._told_of_any, hurry=keeper.hurry))
        except BaseException:
            self.close()
            raise
        if not self._shared:
            loop.watch(self.watcher.fd, READ | EDGE, self._on_packets)
        keeper.gated = self

    def start(self, sockets: Sockets, idle_stream: float | None) -> None:
        """The server listens. ``sockets`` knows its connections; those that were open before were not seen to begin."""
        self._sockets = sockets
        self._stillness.start(sockets)
        self.catch_up()
        self._look_for_unseen()
        if idle_stream is not None:
            self._sweep(idle_stream / 4)
        self._rest()

    def close(self) -> None:
        """Take the programs away."""
        self.conversations.only(set())
        self._closed = True
        self._stillness.close()
        self._sockets = None
        for watch in self._watches:
            watch.close()
        self._watches = []
        if not self._shared:
            if hasattr(self, "watch"):
                self._loop.forget(self.watcher.fd)
            self.watcher.close()

    # What the gate wants.

    def catch_up(self) -> None:
        """Read all that has been told until now."""
        if self._closed:
            return
        now = self._loop.now
        while self.watcher.read():
            pass
        self._loop.now = now

    def before_freeze(self) -> None:
        """From now on every packet that wakes counts at once."""
        for watch in self._watches:
            watch.arm(WAKES)
        # When the freeze has been ordered: what was counted before the watch was armed, and is not in the ring yet.
        self._loop.soon(self._look_again)

    def release(self) -> None:
        """It runs."""
        if self._closed:
            return
        self._stillness.over()
        self._poll_later()

    def stands_still(self) -> None:
        """The freeze is done: what it did not get round to must not wait for ever."""
        if self._closed or self._keeper.gate.state != FROZEN:
            return
        self._look_again()
        # What has begun in a connection is in flight until it ends. So nothing can wait but what says nothing yet.
        reason, self._datagrams = self._datagrams or self.conversations.opening, False
        self._stillness.begun(self._active_at, self.conversations.kept, reason)

    # Records.

    def _told(self, record: bytes | None) -> None:
        if record is None:
            self.conversations.lost()
            self._on_loss()
            self._loop.soon(self._look_for_unseen)
            return
        self._handed += 1
        kind = record[KIND_AT]
        self._loop.now = at = came_at(record)  # when it came: graces begin then
        if kind & WAKES:
            self._active_at = at
            self._keeper.arrived(at)
        if kind & DATAGRAM:
            self._datagrams = True
        self.conversations.told(record)
        if self._shared and not self._turn_is_due:
            self._turn_is_due = True
            self._loop.soon(self._take_turn)

    def _take_turn(self) -> None:
        """Others have had the ring read, in which there was something for this one."""
        self._turn_is_due = False
        self._on_records()

    def _told_of_any(self, record: bytes | None) -> None:
        if record is not None:
            self._keeper.arrived(came_at(record))
        self._touch()

    def _touch(self) -> None:
        """Have it awake for a grace. What waits for this, if anything, is a packet that has been told of."""
        self._keeper.wake()
        self._keeper.held()
        self._keeper.ended()

    def _missing(self) -> bool:
        """Whether a packet has been counted whose record has not been handed out yet."""
        return self._handed + self.watch.lost != self.watch.packets

    def _on_packets(self, _events: int) -> None:
        """One that stands still is let run. Before its packets are thought about, a server has some time to itself."""
        if self._keeper.haste is not None:
            for watch in self._watches:
                watch.disarm()
            runs = self._keeper.hurry()
            self._loop.at(time.monotonic() + (OUT_OF_THE_WAY if runs else 0.0), self._on_hastened)
        elif self._keeper.gate.open and self.watch.armed:
            self._poll_later()
        else:
            self._on_records()

    def _on_hastened(self) -> None:
        self._on_records()
        if not self._closed:
            self._keeper.wake()  # whatever has come: it runs

    def _on_records(self) -> None:
        if self._closed:
            return
        self.catch_up()
        if self._keeper.gate.open:
            self._poll_later()
        elif self._missing():
            self._look_again()

    def _look_again(self) -> None:
        """While the gate is shut: a record wakes nobody if it was counted before the watch was armed."""
        if self._closed or self._keeper.gate.open or not self._missing():
            self._looks = 0
            return
        self.catch_up()
        if not self._keeper.gate.open and self._missing():
            self._looks += 1
            if self._looks > MOST_LOOKS:
                self._handed = self.watch.packets - self.watch.lost
                self._told(None)
            self._loop.at(time.monotonic() + LEAST_PAUSE, self._look_again)

    def _poll_later(self) -> None:
        for watch in self._watches:
            watch.disarm()
        if not self._poll_is_due:
            self._poll_is_due = True
            self._loop.at(time.monotonic() + self._pause, self._poll)

    def _poll(self) -> None:
        self._poll_is_due = False
        if self._closed or not self._keeper.gate.open:
            return
        before = self._handed
        self.catch_up()
        if not self._keeper.gate.open:
            return
        if self._handed != before:
            self._poll_later()
        else:
            self._rest()

    def _rest(self) -> None:
        """Nothing comes: wait for the next record."""
        for watch in self._watches:
            watch.arm()
        if self._missing():
            self._poll_later()
        elif not self._census_is_due and self.conversations.in_flight:
            self._census_is_due = True
            self._loop.at(self._loop.now + CENSUS_PERIOD, self._census)

    # Connections that were not seen to begin, or to end.

    def _look_for_unseen(self) -> None:
        if self._sockets is not None and not self._closed:
            try:
                self.conversations.found(self._sockets.open())
            except FreezeError:
                self.conversations.found([b""])  # one that is not known holds it, until the census says that it is none

    def _census(self) -> None:
        """What counts as in flight although its connection is gone has ended unseen."""
        self._census_is_due = False
        if self._closed or self._sockets is None or not self._keeper.gate.open:
            return
        self._sockets.ask(partial(self._listed, self._handed))

    def _listed(self, before: int, seen: Seen) -> None:
        self.catch_up()
        if self._closed or not self._keeper.gate.open:
            return
        if seen.known and self._handed == before:
            self.conversations.listed(seen.connections)
        self._rest()

    def _sweep(self, period: float) -> None:
        if self._closed:
            return
        self.catch_up()
        self.conversations.sweep()
        self._loop.at(self._loop.now + period, lambda: self._sweep(period))
