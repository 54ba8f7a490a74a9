"""Freezing the containers of a pod together or not at all, and thawing whatever nobody holds any more.

The rules:

1. The newest order wins, by the order in which requests arrived: a freeze that is overtaken by a thaw, or whose
   connection has closed, does nothing from then on, however long its review and its look-up took.
2. Containers that are asked for together are frozen together: if one cannot be, or not in time, all are thawed.
3. It is written down before it is frozen, and thawed before that is struck out.
4. A freeze with a lease lasts no longer than its connection. One without lasts until somebody thaws.
5. A container that is asked to end (a signal to end it waits to be heard) is thawed. So deletion works, whoever forgot
   to say that it comes.
6. A thaw that fails is tried again until it succeeds, whatever its asker was answered.
7. What somebody else has thawed is not frozen again, and what somebody else has frozen is not thawed unless its own pod
   asks for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from freeze_proxy.beats import next_beat
from freeze_proxy.control.messages import AWAKE, FROZEN, THROTTLED
from freeze_proxy.daemon.journal import Entry, Journal, Record
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.daemon.rounds import Rounds
from freeze_proxy.freezers import FreezeError, Freezer, Gone, processes
from freeze_proxy.freezers.remade import remade

PATIENCE = 2.0
"""Seconds within which all containers of a pod must stand still."""
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.05
"""Seconds to the first look whether they do, and at most between two."""
_FIRST_RETRY, _LAST_RETRY = 0.02, 1.0
"""Seconds from a failed thaw to the next try; doubled after each."""
_WATCH_EVERY = 1.0
_REMEMBERED = 60.0
"""Seconds for which the number of a pod's newest order is remembered: longer than any review and look-up takes."""
_THREADS = 8

ASKED, LEASE, ENDING, UNCLAIMED, UNDONE, SHUTDOWN = "asked", "lease", "ending", "unclaimed", "undone", "shutdown"
"""Why something is thawed."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Overtaken(Exception):
    """A newer order has come, or the connection has closed: this freeze is not carried out."""


class TooSlow(FreezeError):
    """It did not stand still in time; it runs again."""


class Stuck(FreezeError):
    """A freeze has failed, and so has the thaw that was to undo it, which is tried again."""


class Holder(Protocol):
    """What a lease is bound to: a connection."""

    closed: bool


class Observer:
    """Is told what happens, for metrics. This one ignores it."""

    def thawed(self, why: str) -> None:
        """A container runs again."""

    def failed(self, what: str, error: FreezeError) -> None:
        """A ``freeze`` or ``thaw`` of a container failed."""

    def meddled(self) -> None:
        """Somebody else has thawed a container that was frozen here."""


class Target:
    """One container that has been frozen at least once, by one freezer.

    ``frozen``: as far as we know; ``since``: the epoch of the order by which it is. ``stood``: it stood still at the
    last look, and would stir if that were over, or a signal came that it does not block.
    """

    __slots__ = ("_lock", "_pending", "entry", "freezer", "frozen", "record", "since", "state", "stood")

    def __init__(self, record: Record, freezer: Freezer, entry: Entry, state: str, lock: asyncio.Lock) -> None:
        self.record = record
        self.freezer = freezer
        self.entry = entry
        self.state = state
        self.frozen = entry.frozen
        self.since = 0
        self.stood = False
        self._lock = lock
        self._pending: processes.Pending | None = None

    async def freeze(self, ward: "Ward", epoch: int, pool: ThreadPoolExecutor) -> bool:
        """Begin; whether it stands still already. Raises ``Overtaken`` if a newer order came before its turn."""
        async with self._lock:
            ward.check(epoch)
            # An empty cgroup is left alone: a runtime that is putting a dead container away does not get on with it
            # while that is frozen, and tries again only after seconds.
            self._check_alive()
            self.entry.mark(True)
            self.frozen = True
            self.since = epoch
            still = await self._call(self.freezer.freeze, pool)
            self._check_alive()
            return still

    async def stands_still(self, pool: ThreadPoolExecutor) -> bool:
        """Whether it does now."""
        async with self._lock:
            return await self._call(self.freezer.frozen, pool)

    async def thaw(self, epoch: int, pool: ThreadPoolExecutor) -> bool:
        """Unless it runs, or a newer order wants it frozen; returns whether it was thawed.

        Raises ``FreezeError``; ``Gone`` where there is nothing to thaw any more.
        """
        async with self._lock:
            if not self.frozen or self.since > epoch:
                return False
            await self._call(self.freezer.thaw, pool)
            self.frozen = False
            self.entry.mark(False)
            return True

    def asked_to_end(self) -> bool:
        """Whether its main process is. Raises ``Gone`` where there is none."""
        try:
            if self._pending is None:
                self._pending = processes.Pending(self.record.pid)
            return self._pending.ask_to_end()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Gone(f"There is no process {self.record.pid}.") from error
        except OSError:
            return False  # it may not be seen, or there are no descriptors left

    def stirred(self) -> bool:
        """Whether there may be something new about it since a look that found that it ``stood``."""
        return not self.stood or self._pending is None or self._pending.stirred()

    def close(self) -> None:
        """Give back what is held of it."""
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        self.freezer.close()

    def _check_alive(self) -> None:
        if self.freezer.quick and not self.freezer.alive():
            raise Gone(f"There is no process left in {self.freezer.where}.")

    async def _call(self, step: Callable[[], T], pool: ThreadPoolExecutor) -> T:
        if self.freezer.quick:
            return step()
        return await asyncio.get_running_loop().run_in_executor(pool, step)


class Ward:
    """What this daemon has to do with one pod."""

    __slots__ = ("claimed", "epoch", "lease", "locks", "newest", "since", "targets", "uid")

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.newest = 0  # the number of the newest order
        self.since = 0.0  # when the last one came, by the loop's clock
        self.epoch = 0  # what has begun in an earlier one is overtaken
        self.lease: Holder | None = None
        self.claimed = True
        self.targets: dict[tuple[str, str], Target] = {}  # by container id and state
        # By container id: a freezer that is not quick must not be called twice at a time.
        self.locks: dict[str, asyncio.Lock] = {}

    def overtake(self) -> int:
        """A new epoch begins."""
        self.epoch += 1
        self.claimed = True
        return self.epoch

    def check(self, epoch: int) -> None:
        """Raises ``Overtaken`` in a later one."""
        if self.epoch != epoch:
            raise Overtaken

    def lock(self, id: str) -> asyncio.Lock:
        """Of a container."""
        return self.locks.setdefault(id, asyncio.Lock())

    def rests(self) -> bool:
        """Whether its last order is long ago."""
        return asyncio.get_running_loop().time() - self.since > _REMEMBERED

    def held(self) -> list[Target]:
        """What is frozen of it."""
        return [target for target in self.targets.values() if target.frozen]


class Freezing:
    """All pods of this node that have asked."""

    def __init__(self, journal: Journal, observe: Observer | None = None, patience: float = PATIENCE) -> None:
        self._journal = journal
        self._observe = observe or Observer()
        self._patience = patience
        self._pool = ThreadPoolExecutor(_THREADS, "freezer")
        self._wards: dict[str, Ward] = {}
        self._watched = Rounds(self._wards.values)
        self._leases: dict[Holder, set[str]] = {}
        self._retries: dict[Target, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._doubts: set[asyncio.Task[None]] = set()
        self._closing = False

    # What pods ask for.

    async def freeze(
        self, pod: Pod, containers: list[Container], mode: str, number: int, lease: Holder | None
    ) -> list[dict[str, str]]:
        """Freeze these and no others of the pod; returns name, id and state of each.

        Raises ``Overtaken``, ``TooSlow`` and other ``FreezeError``; then all of them run, but for ``Stuck``.
        """
        ward = self._ward(pod.uid)
        if number < ward.newest or self._closing or (lease is not None and lease.closed):
            raise Overtaken
        ward.newest = number
        epoch = ward.overtake()
        try:
            wanted = [self._target(ward, pod, container, mode) for container in containers]
            self._bind(ward, lease)
            if len(wanted) != len(ward.targets):
                for other in ward.held():
                    if other not in wanted:
                        await self._let_run(ward, other, epoch, UNDONE)
            still = True
            for target in wanted:
                still = await target.freeze(ward, epoch, self._pool) and still
            if not still:
                await self._settle(ward, epoch, wanted)
            ward.check(epoch)
        except Overtaken:
            raise  # by one that sees to all that is frozen
        except Exception as error:
            if isinstance(error, FreezeError):
                self._observe.failed("freeze", error)
            if ward.epoch == epoch and (troubles := await self._undo(ward, ward.overtake(), UNDONE)):
                raise Stuck(f"{error} And it cannot be undone yet: {troubles[0]}") from error
            raise
        return [_facts(target, target.state) for target in wanted]

    async def thaw(self, uid: str, containers: Iterable[Container], number: int) -> list[dict[str, str]]:
        """Thaw what is frozen of the pod, and these whoever froze them; returns name, id and state of each.

        Raises ``FreezeError`` when all has been tried.
        """
        ward = self._ward(uid)
        if number < ward.newest:
            # Its look-up took so long that a newer order was carried out first: as if it had come before that.
            return [{"name": each.name, "id": each.id, "state": AWAKE} for each in containers]
        ward.newest = number
        frozen = {target.record.id for target in ward.targets.values() if target.frozen}
        epoch = ward.overtake()
        troubles = await self._undo(ward, epoch, ASKED)
        known = {target.record.id for target in ward.targets.values()}
        thawed = {}
        for container in containers:
            if container.id in frozen and container.id not in known:
                continue  # it was gone when it was to be thawed
            thawed[container.id] = {"name": container.name, "id": container.id, "state": AWAKE}
            if container.id in frozen:
                continue
            try:
                freezer = container.freezer("freeze")
                if ward.epoch != epoch:
                    continue  # a newer order has come
                if freezer.quick:
                    freezer.thaw()
                elif container.id not in known:  # asking a runtime takes milliseconds
                    async with ward.lock(container.id):
                        if ward.epoch == epoch:
                            await asyncio.get_running_loop().run_in_executor(self._pool, freezer.thaw)
            except Gone:
                del thawed[container.id]
            except FreezeError as error:
                self._observe.failed("thaw", error)
                troubles.append(error)
        if troubles:
            raise troubles[0]
        return list(thawed.values())

    def release(self, holder: Holder) -> None:
        """A connection has closed: thaw what it held."""
        for uid in self._leases.pop(holder, ()):
            ward = self._wards[uid]
            if ward.lease is holder:
                ward.lease = None
                self._soon(self._undo(ward, ward.overtake(), LEASE))

    # What happens by itself.

    def adopt(self, entries: list[Entry]) -> list[Record]:
        """What an earlier daemon has frozen: it stays so until it is claimed by its pod, or ``thaw_unclaimed``.

        Returns what is frozen.
        """
        adopted = []
        for entry in entries:
            record = entry.record
            try:
                freezer = remade(record.way)
            except Gone:
                entry.close(remove=True)
                continue
            except FreezeError as error:
                _log.error("what an earlier daemon wrote down cannot be thawed", extra={"facts": {"why": str(error)}})
                entry.close(remove=True)
                continue
            ward = self._wards.setdefault(record.pod, Ward(record.pod))
            state = THROTTLED if freezer.kind == "throttle" else FROZEN
            target = Target(record, freezer, entry, state, ward.lock(record.id))
            ward.targets[record.id, target.state] = target
            if target.frozen:
                ward.claimed = False
                adopted.append(record)
        return adopted

    async def thaw_unclaimed(self) -> int:
        """Thaw what was adopted and not asked for since; returns how many pods."""
        unclaimed = [ward for ward in self._wards.values() if not ward.claimed and ward.held()]
        for ward in unclaimed:
            await self._undo(ward, ward.overtake(), UNCLAIMED)
        return len(unclaimed)

    async def watch(self) -> None:
        """For ever: look whether what is frozen is asked to end, has been thawed by others, or is gone.

        Nothing tells of a signal that waits. Of so many pods all are looked at each second, of more in turn.
        """
        while True:
            await next_beat(_WATCH_EVERY)
            async for ward in self._watched.turn():
                for target in tuple(ward.targets.values()):
                    if not self._look(ward, target):
                        self._strike(ward, target)
                if not ward.targets and ward.lease is None and self._wards.get(ward.uid) is ward and ward.rests():
                    del self._wards[ward.uid]

    async def close(self, why: str = SHUTDOWN) -> None:
        """Thaw everything, and freeze nothing from now on."""
        self._closing = True
        for task in [*self._retries.values(), *self._doubts]:
            task.cancel()
        for ward in list(self._wards.values()):
            await self._undo(ward, ward.overtake(), why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def frozen(self) -> int:
        """How many containers are frozen now."""
        return sum(len(ward.held()) for ward in self._wards.values())

    def leases(self) -> int:
        """How many pods are held frozen by a lease."""
        return sum(ward.lease is not None for ward in self._wards.values())

    def knows(self, uid: str) -> bool:
        """Whether all that was ever frozen of a pod is known here."""
        ward = self._wards.get(uid)
        return ward is not None and bool(ward.targets)

    def holds(self, container: str) -> bool:
        """Whether a container, by its id, is frozen by us."""
        return any(
            target.frozen
            for ward in self._wards.values()
            for key, target in ward.targets.items()
            if key[0] == container
        )

    # Inside.

    def _ward(self, uid: str) -> Ward:
        ward = self._wards.get(uid) or self._wards.setdefault(uid, Ward(uid))
        ward.since = asyncio.get_running_loop().time()
        return ward

    def _target(self, ward: Ward, pod: Pod, container: Container, mode: str) -> Target:
        state = THROTTLED if mode == "throttle" else FROZEN
        target = ward.targets.get((container.id, state))
        if target is None:
            freezer = container.freezer(mode)
            way = list(freezer.way)
            record = Record(pod.uid, pod.namespace, pod.name, container.name, container.id, container.pid, way)
            # One of each state: a file holds the way to undo one.
            entry = self._journal.entry(record, "" if state == FROZEN else ".throttled")
            target = Target(record, freezer, entry, state, ward.lock(container.id))
            ward.targets[container.id, state] = target
        return target

    def _bind(self, ward: Ward, lease: Holder | None) -> None:
        if ward.lease is not lease:
            if ward.lease is not None and (held := self._leases.get(ward.lease)) is not None:
                held.discard(ward.uid)
            ward.lease = lease
        if lease is not None:
            self._leases.setdefault(lease, set()).add(ward.uid)

    async def _settle(self, ward: Ward, epoch: int, targets: list[Target]) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, _FIRST_LOOK
        while True:
            await asyncio.sleep(pause)
            ward.check(epoch)
            still = True
            for target in targets:
                still = await target.stands_still(self._pool) and still
                ward.check(epoch)
            if still:
                return
            if loop.time() > deadline:
                names = ", ".join(target.record.container for target in targets)
                raise TooSlow(
                    f"{names} did not stand still within {self._patience:g} s, and runs on: a process in it waits "
                    "uninterruptibly, or forks without end."
                )
            pause = min(pause * 2, _LAST_LOOK)

    async def _undo(self, ward: Ward, epoch: int, why: str) -> list[FreezeError]:
        """Thaw what was frozen of a pod up to this epoch. Returns what went wrong."""
        troubles = []
        for target in ward.held():
            try:
                await self._let_run(ward, target, epoch, why)
            except FreezeError as error:
                troubles.append(error)
        # A newer order has a lease of its own.
        if ward.epoch == epoch and why != LEASE and ward.lease is not None and not troubles:
            if (held := self._leases.get(ward.lease)) is not None:
                held.discard(ward.uid)
            ward.lease = None
        return troubles

    async def _let_run(self, ward: Ward, target: Target, epoch: int, why: str) -> None:
        try:
            if await target.thaw(epoch, self._pool):
                self._observe.thawed(why)
        except Gone:
            self._strike(ward, target)
        except FreezeError as error:
            self._observe.failed("thaw", error)
            if (before := self._retries.get(target)) is not None:
                before.cancel()
            retry = asyncio.get_running_loop().create_task(self._retry(ward, target, epoch, why))
            self._retries[target] = retry
            retry.add_done_callback(lambda done: self._retried(target, done))
            raise

    async def _retry(self, ward: Ward, target: Target, epoch: int, why: str) -> None:
        """Rule 6; until then, or until a newer order wants it frozen."""
        pause = _FIRST_RETRY
        while target.frozen and target.since <= epoch:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_RETRY)
            try:
                if await target.thaw(epoch, self._pool):
                    self._observe.thawed(why)
            except Gone:
                self._strike(ward, target)
            except FreezeError as error:
                self._observe.failed("thaw", error)

    def _retried(self, target: Target, done: asyncio.Task[None]) -> None:
        if self._retries.get(target) is done:
            del self._retries[target]

    @staticmethod
    def _strike(ward: Ward, target: Target) -> None:
        """The container is no more."""
        target.frozen = False
        key = target.record.id, target.state
        if ward.targets.get(key) is target:
            del ward.targets[key]
            ward.locks.pop(target.record.id, None)
            target.entry.close(remove=True)
            target.close()

    def _look(self, ward: Ward, target: Target) -> bool:
        """Whether a target is still there; what has to be done about it is done."""
        try:
            if not target.frozen:
                return target.freezer.alive() if target.freezer.quick else processes.stat(target.record.pid) is not None
            if not target.stirred():
                return True
            target.stood = False
            try:
                asked = target.asked_to_end()
            except Gone:
                if not target.freezer.quick or not target.freezer.alive():
                    return False
                asked = False  # who is left without the main process is to be thawed all the same
            # While a freeze is under way it is not expected to stand still.
            if target.freezer.quick and not target.freezer.still():
                self._soon(self._look_again(ward, target, ward.epoch), self._doubts)
            else:
                target.stood = target.freezer.stirs
        except Gone:
            return False
        except FreezeError as error:
            _log.error("the state of a container cannot be read", extra={"facts": _names(target) | {"why": str(error)}})
            return True
        if asked:
            _log.info("a container is asked to end, and is thawed", extra={"facts": _names(target)})
            self._soon(self._undo(ward, ward.overtake(), ENDING))
        return True

    async def _look_again(self, ward: Ward, target: Target, epoch: int) -> None:
        await asyncio.sleep(self._patience)
        with contextlib.suppress(FreezeError):
            if ward.epoch == epoch and target.frozen and not target.freezer.still():
                _log.warning("a container was thawed by somebody else", extra={"facts": _names(target)})
                self._observe.meddled()
                await self._undo(ward, ward.overtake(), UNDONE)

    def _soon(self, work: Coroutine[Any, Any, object], among: set[asyncio.Task[None]] | None = None) -> None:
        async def carried_out() -> None:
            await work

        tasks = self._tasks if among is None else among
        task = asyncio.get_running_loop().create_task(carried_out())
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _facts(target: Target, state: str) -> dict[str, str]:
    return {"name": target.record.container, "id": target.record.id, "state": state}


def _names(target: Target) -> dict[str, str]:
    record = target.record
    return {"pod": f"{record.namespace}/{record.pod_name}", "container": record.container, "id": record.id}
