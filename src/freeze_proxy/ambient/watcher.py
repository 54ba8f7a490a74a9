"""Watching the packets of servers: one ``Watcher`` for a process, one ``Watch`` for a server.

The words of a server (``program``) lie in memory that this process shares with the kernel: setting or reading one is
no system call. The order is what keeps a packet from being missed. The program counts it first and then looks whether
it is to wake somebody; here the watch is armed first, and the count is looked at when the server stands still. Between
the two lies the system call that freezes.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable

from freeze_proxy.ambient import program
from freeze_proxy.ambient.bpf import EGRESS, INGRESS, BpfError, Descriptor, LoadedProgram, SharedValue
from freeze_proxy.ambient.ring import Ring

RING_SIZE = 1 << 20
"""Bytes; a power of two. Where exchanges are counted, it takes some two thousand small packets to fill it."""

OUT_OF_THE_WAY = 0.002
"""Seconds for which a server that has just been let run has the processors to itself."""

_NUMBER = struct.Struct("=I")

Told = Callable[[bytes | None], None]
"""Takes a record, ``program.HEADER`` and what there is of the packet's bytes; ``None`` where records have been lost."""


Hurry = Callable[[], bool]
"""Lets the server run, if it takes microseconds, and returns whether it runs: ``Keeper.hurry``."""


def _nobody(_record: bytes | None) -> None:
    """Takes the records of a watch that has been closed."""


def _unhurried() -> bool:
    """Leaves it to who is told."""
    return False


class Watcher:
    """What a process has in the kernel for ``servers`` servers at most. Raises ``BpfError`` where it is not to be had.

    ``fd`` is readable when ``read`` is to be called.
    """

    def __init__(self, servers: int = 1, ring_size: int = RING_SIZE) -> None:
        self._ring = Ring(ring_size)
        self.fd = self._ring.fd
        self._shared = SharedValue((1 + servers) * program.SLOT_SIZE)
        self._words = self._shared.view.cast("Q")
        self._told: list[Told] = [_nobody] * (1 + servers)
        self._hurry: list[Hurry] = [_unhurried] * (1 + servers)
        self._aside: deque[bytes] = deque()  # records that have been taken and not been handed out
        self._free = deque(range(1, 1 + servers))  # the one that has been free for longest comes first
        self._watches: dict[int, Watch] = {}
        self._lost = 0

    def watch(
        self,
        cgroup: str,
        ports: Iterable[int],
        told: Told,
        observe: bool = False,
        ends: bool = False,
        hurry: Hurry = _unhurried,
    ) -> "Watch":
        """Watch the server in this cgroup, a directory of cgroup v2, with all below it. Raises ``BpfError``.

        ``ports``: the ports of its that matter; none means every packet for any of its sockets. ``told`` takes records:
        while the watch is armed, those of packets that wake the server; with ``ends`` also of those that show that it
        has closed a connection. With ``observe`` all that it takes to count exchanges, at any time, of both directions.
        Where records were lost because the ring was full, ``told`` takes ``None``: the server is to be thawed then.
        ``hurry`` is what ``hasten`` calls for a packet that wakes.
        """
        if not self._free:
            raise BpfError(f"More than {len(self._told) - 1} servers cannot be watched at once.")
        slot = self._free.popleft()
        words = self._words[slot * 4 : slot * 4 + 4]
        for at in range(4):
            words[at] = 0
        self._told[slot] = told
        self._hurry[slot] = hurry
        self._watches[slot] = watch = Watch(words, lambda: self._let_go(slot))
        try:
            directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            watch.close()
            raise BpfError(f"The cgroup {cgroup} cannot be opened: {error.strerror}.") from error
        try:
            for direction in (INGRESS, EGRESS) if observe else (INGRESS,):
                code = program.program(
                    direction,
                    tuple(ports),
                    slot=slot,
                    shared=self._shared.fd,
                    ring=self._ring.fd,
                    ring_size=self._ring.size,
                    observe=observe,
                    ends=ends,
                )
                loaded = LoadedProgram(code, direction, "freeze_ingress" if direction == INGRESS else "freeze_egress")
                watch.holds(loaded)
                watch.holds(loaded.attach(directory))
        except BpfError:
            watch.close()
            raise
        finally:
            os.close(directory)
        return watch

    def hasten(self) -> bool:
        """Let run at once whom a packet wakes; returns whether they all run.

        Then ``read``, which tells, had better be called ``OUT_OF_THE_WAY`` later: whoever thinks about packets takes a
        processor that their servers want now.
        """
        hurry, slot_of, run = self._hurry, _NUMBER.unpack_from, True
        records = self._ring.take()
        for record in records:
            if record[program.KIND_AT] & program.WAKES and not hurry[slot_of(record, 8)[0]]():
                run = False
        self._aside += records
        return run

    def read(self) -> int:
        """Hand out what has been told; returns how many records that were. There may be more when it returns."""
        told, slot_of, aside, count = self._told, _NUMBER.unpack_from, self._aside, 0
        aside.extend(self._ring.take())
        while aside:  # who is told may have more read: that goes on from here
            record = aside.popleft()
            told[slot_of(record, 8)[0]](record)
            count += 1
        if self._words[program.LOST_BY_ALL] != self._lost:
            self._tell_losses()
        return count

    def close(self) -> None:
        """Gives the ring and the words back; the watches must have been closed."""
        self._words.release()
        self._shared.close()
        self._ring.close()

    def _tell_losses(self) -> None:
        """A record that does not fit wakes nobody; but whoever filled the ring has woken the reader."""
        self._lost = self._words[program.LOST_BY_ALL]
        for slot, watch in list(self._watches.items()):
            if watch.has_lost():
                self._told[slot](None)

    def _let_go(self, slot: int) -> None:
        del self._watches[slot]
        self._told[slot] = _nobody
        self._hurry[slot] = _unhurried
        self._free.append(slot)


class Watch:
    """The packets of one server. Made by ``Watcher.watch``."""

    def __init__(self, words: memoryview, let_go: Callable[[], None]) -> None:
        self._words = words
        self._let_go: Callable[[], None] | None = let_go
        self._held: list[Descriptor] = []
        self._lost = 0

    def holds(self, held: Descriptor) -> None:
        """Close this with the watch."""
        self._held.append(held)

    def arm(self, kinds: int = program.ANY) -> None:
        """From now on a record of one of these kinds makes the watcher's ``fd`` readable."""
        self._words[0] = kinds

    def disarm(self) -> None:
        """No longer."""
        self._words[0] = 0

    @property
    def armed(self) -> bool:
        """Whether it is."""
        return self._words[0] != 0

    @property
    def packets(self) -> int:
        """How many packets there have been that mattered, since the beginning: where ``observe`` is, records."""
        return self._words[1]

    @property
    def lost(self) -> int:
        """How many of them could not be told of, because the ring was full."""
        return self._words[2]

    @property
    def kernel_bytes(self) -> int:
        """Memory that the kernel charges for its programs (``memlock`` in proc(5), fdinfo)."""
        return sum(held.kernel_bytes for held in self._held)

    def has_lost(self) -> bool:
        """Whether more have been lost since this was asked last."""
        before, self._lost = self._lost, self._words[2]
        return before != self._lost

    def close(self) -> None:
        """Take the programs away. Idempotent."""
        for held in reversed(self._held):
            held.close()
        self._held.clear()
        if self._let_go is not None:
            self._let_go()
            self._let_go = None
            self._words.release()
