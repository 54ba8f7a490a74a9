"""One ambient pod: found, watched, frozen when nothing is in flight, and woken by its packets.

It has a gate of its own and is, to the daemon's freezing, one more client with a lease. What happens to it:

- *It is not ready, or no longer*: it stays, or is, awake. So it is while its containers are being looked for.
- *A container of its has been started again*: what was known is given up, and all of it looked for anew.
- *Somebody runs a command in it*, and it was frozen with that: it is thawed at once, and awake until the command ends.
- *It is being deleted*, or does not ask any more: it is thawed at once, and the programs in the kernel are taken away.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from freeze_proxy.ambient import Watch, Watcher
from freeze_proxy.ambient.observing import Observing
from freeze_proxy.ambient.sockets import Sockets
from freeze_proxy.ambient.stillness import Stillness
from freeze_proxy.control.server import Request
from freeze_proxy.daemon.ambient import commands, sockets
from freeze_proxy.daemon.ambient.counting import Counting
from freeze_proxy.daemon.ambient.driver import FreezingDriver
from freeze_proxy.daemon.ambient.numbers import PodNumbers
from freeze_proxy.daemon.ambient.statistics import Statistics
from freeze_proxy.daemon.ambient.turns import Turns
from freeze_proxy.daemon.ambient.wishes import Wish
from freeze_proxy.daemon.freezing import Freezing
from freeze_proxy.daemon.pods import Container, NoPod, Pod, Pods, RuntimeAway
from freeze_proxy.daemon.sidecars import Full, Sidecars
from freeze_proxy.freezers import FreezeError
from freeze_proxy.freezers.places import CGROUP2, directory
from freeze_proxy.gate import FREEZE, FROZEN, Gate
from freeze_proxy.keeper import Gated, Keeper
from freeze_proxy.loop import Timer

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
"""Seconds from a look for the pod's containers that was in vain to the next."""

_LOOK_AT_SOCKETS_AFTER = 1.0
"""Seconds of standing still, unless there is a reason to do so at once: a look at them takes milliseconds."""
_LOOKS_TO_A_LOOK_AT_PORTS = 5
_MOST_PROCESSES = 16
"""Of a container, the oldest first, that are watched for their end while it is frozen."""

LOOK_FOR_COMMANDS_EVERY = 0.25
"""Seconds, while there are some."""

AT_ONCE = 4
"""Pods that are looked for at a time: at a start there may be hundreds, and the runtime answers others as well."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tools:
    """What all ambient pods share."""

    pods: Pods
    freezing: Freezing
    watcher: Watcher
    statistics: Statistics
    sidecars: Sidecars
    awake: "dict[str, AmbientPod]" = field(default_factory=dict)
    """By UID, those that are looked at every few seconds: of one that stands still, others tell what is new."""
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "sockets"))


class NotYet(Exception):
    """The pod cannot be watched as it is; the text is a sentence."""


class AmbientPod:
    """From ``start`` to ``end``. ``trouble``: why it is not watched, where it is not."""

    def __init__(self, wish: Wish, tools: Tools) -> None:
        self.wish = wish
        self._tools = tools
        self._turns = Turns()
        self._driver = FreezingDriver(tools.freezing, wish.uid, wish.mode)
        self._numbers = _Numbers(self)
        self._keeper = Keeper(self._turns, Gate(wish.gate), self._driver, self._numbers)
        self._source: Counting | Observing | None = None
        self._ports: frozenset[int] = frozenset()
        self._pod: Pod | None = None
        self._served = False
        self._commands: Timer | None = None
        self._attaching: asyncio.Task[None] | None = None
        self._looks = 0
        self._looking: asyncio.Task[None] | None = None
        self.trouble = "It is being looked for."

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self._keeper.gate.state == FROZEN

    @property
    def watched(self) -> bool:
        """Whether its packets are."""
        return self._source is not None

    def start(self) -> None:
        """Look for it."""
        self._tools.awake[self.wish.uid] = self
        self._attaching = asyncio.create_task(self._attach())

    def update(self, wish: Wish) -> None:
        """This is what it wants now; ``told`` and ``containers`` are the same as before."""
        before, self.wish = self.wish, wish
        if before.ids != wish.ids or (not self.watched and before.ready != wish.ready):
            self.again()
        else:
            self._follow_readiness()

    def look(self) -> None:
        """To be called every few seconds while it runs, and when it is forgotten: whether what is watched is there."""
        if not self.watched:
            return
        if self._tools.pods.known(self.wish.uid) is not self._pod:
            self.again()
        elif isinstance(self._source, Observing):
            self._turns.begin()
            self._count()
            if self._keeper.requests and not self._keeper.gate.in_flight:
                self._has_served()
            self._looks += 1
            if self._keeper.gate.open and self._looks % _LOOKS_TO_A_LOOK_AT_PORTS == 0:
                self._look_at_ports()

    def _count(self) -> None:
        if isinstance(self._source, Observing):
            self._numbers.requests(self._keeper.requests, self._keeper.in_flight_seconds())

    def _look_at_ports(self, _new: frozenset[int] = frozenset()) -> None:
        """A container may listen on more of them than before."""
        if self._looking is None and not self.wish.any_socket:
            self._looking = asyncio.create_task(self._follow_ports())
            self._looking.add_done_callback(self._has_looked)

    def _has_looked(self, done: asyncio.Task[None]) -> None:
        self._looking = None
        if not done.cancelled():
            done.result()

    def again(self) -> None:
        """Thaw it, and look for its containers anew."""
        self._detach()
        if self._attaching is not None:
            self._attaching.cancel()
        self.start()

    def end(self) -> None:
        """Thaw it for good, and take the programs away."""
        if self._attaching is not None:
            self._attaching.cancel()
        self._turns.begin()
        self._keeper.disarm()
        self._detach()
        self._driver.close()
        self._tools.awake.pop(self.wish.uid, None)
        self._tools.sidecars.closed(self._driver)

    # Inside.

    def _detach(self) -> None:
        self._turns.begin()
        if self._commands is not None:
            self._commands.cancel()
            self._commands = None
            self._keeper.ended()
        self._keeper.unready()
        if self._source is not None:
            self._source.close()
            self._source = None
        self._keeper.gated = Gated()
        self._pod = None

    def _follow_readiness(self) -> None:
        self._turns.begin()
        if self.watched and self.wish.ready and (self._served or not self.wish.proven_by_request):
            self._keeper.ready()
        else:
            self._keeper.unready()

    def _has_served(self) -> None:
        if not self._served:
            self._served = True
            self._follow_readiness()

    async def _follow_ports(self) -> None:
        """If not all ports that are listened on are watched, they will be."""
        source, containers = self._source, self._driver.containers
        try:
            ports, _ = await self._in_thread(lambda: self._listening(containers))
        except (NotYet, FreezeError):  # gone, say
            ports = None
        if source is self._source and (ports is None or not ports <= self._ports):
            self.again()

    async def _in_thread(self, look: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tools.pool, look)

    def _listening(self, containers: list[Container]) -> tuple[frozenset[int], frozenset[int]]:
        """The ports on which these listen, and on which anybody in the pod does."""
        listened = sockets.listening(containers[0].pid)
        own = frozenset[int]().union(*(sockets.of(self._place(each), listened) for each in containers))
        return own, frozenset(listened)

    async def _attach(self) -> None:
        """Until it is watched."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._tools.turn:
                    await self._try_to_attach()
                return
            except (NotYet, NoPod, RuntimeAway, FreezeError, Full) as reason:
                if str(reason) != self.trouble:
                    self.trouble = str(reason)
                    facts = {"pod": str(self.wish), "why": self.trouble}
                    _log.info("an ambient pod is not watched, and stays awake", extra={"facts": facts})
            except Exception:
                _log.exception("a mistake was made with an ambient pod", extra={"facts": {"pod": str(self.wish)}})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)
            self._tools.pods.forget(self.wish.uid)

    async def _try_to_attach(self) -> None:
        uid = self.wish.uid
        pod = self._tools.pods.known(uid) or await self._tools.pods.find(uid)
        pod.expect(self.wish.namespace, self.wish.name)
        missing = [name for name in self.wish.containers if name not in pod.containers]
        if missing:
            raise NotYet(f"The container {missing[0]} does not run.")
        containers = [pod.containers[name] for name in self.wish.containers]
        places = [self._place(each) for each in containers]
        if self._tools.freezing.knows(uid):  # what an earlier daemon has left of it
            await self._tools.freezing.thaw(uid, (), Request.next_number())
        any_socket = self.wish.any_socket
        self._ports = known = frozenset[int]()
        if not any_socket:
            self._ports, known = await self._in_thread(lambda: self._listening(containers))
        if not self._ports and not any_socket:
            raise NotYet("It listens on no port.")
        if self._tools.pods.known(uid) is not pod:
            raise NotYet("It has changed while it was looked at.")
        matter = tuple(sorted(self._ports)) if len(self._ports) <= sockets.MOST else ()
        self._tools.sidecars.heard(uid, self._driver, self._numbers)
        self._pod, self._driver.pod, self._driver.containers = pod, pod, containers
        self._turns.begin()
        found = sockets.SlowlySeen(
            self._ports, known, containers[0].pid, self._turns, self._tools.pool, self._look_at_ports
        )
        if self.wish.queue_proxy:
            self._source = self._counted(places, matter, found)
        else:
            self._source = self._observed(places, matter, found)
        self.trouble = ""
        self._follow_readiness()
        facts = {"pod": str(self.wish), "containers": list(self.wish.containers), "ports": sorted(self._ports)}
        _log.info("an ambient pod is watched", extra={"facts": facts})

    def _counted(self, places: list[str], ports: tuple[int, ...], found: Sockets) -> Counting:
        counting = Counting(
            self._turns,
            self._keeper,
            self._tools.statistics,
            lambda: self.wish.ip,
            str(self.wish),
            self._has_served,
            self._stillness(places),
            self._tools.watcher.read,
        )
        watches: list[Watch] = []
        try:
            for place in places:
                watch = self._tools.watcher.watch(place, ports, counting.told, ends=True, hurry=self._keeper.hurry)
                watches.append(watch)  # closed below
        except FreezeError:
            for watch in watches:
                watch.close()
            raise
        counting.start(watches, found)
        return counting

    def _observed(self, places: list[str], ports: tuple[int, ...], found: Sockets) -> Observing:
        gate = self.wish.gate
        observing = Observing(
            self._turns,
            self._keeper,
            # The containers of several have the pod's cgroup in common.
            places[0] if len(places) == 1 else os.path.dirname(places[0]),
            ports,
            grace=gate.grace,
            any_socket=self.wish.any_socket,
            on_loss=self._has_lost,
            watcher=self._tools.watcher,
            stillness=self._stillness(places),
        )
        observing.start(found, gate.idle_stream)
        return observing

    def _stillness(self, places: list[str]) -> Stillness:
        return Stillness(self._turns, self._keeper, places, _LOOK_AT_SOCKETS_AFTER, _MOST_PROCESSES)

    def _has_lost(self) -> None:
        _log.debug("packets came faster than they were looked at", extra={"facts": {"pod": str(self.wish)}})

    @staticmethod
    def _place(container: Container) -> str:
        place = directory(CGROUP2, container.pid, container.id)
        if place is None:
            raise NotYet(
                f"The container {container.name} has no cgroup of its own in cgroup v2 whose packets could be watched: "
                "this node has version 1 alone, or its runtime makes none in the other (runc does since 1.1)."
            )
        return place

    def stands_still(self) -> None:
        """The freeze is done."""
        self._tools.awake.pop(self.wish.uid, None)
        self._turns.begin()
        self._count()
        if self._source is not None:
            if self._keeper.gate.state == FROZEN and self._commands_run():
                self._keeper.wake()
                self._keeper.held()
                self._look_for_commands_later()
            self._source.stands_still()

    def _commands_run(self) -> bool:
        try:
            return any(commands.run_in(self._place(each), each.pid) for each in self._driver.containers)
        except (NotYet, FreezeError):
            return False  # it is gone

    def _look_for_commands_later(self) -> None:
        self._commands = self._turns.at(time.monotonic() + LOOK_FOR_COMMANDS_EVERY, self._look_for_commands)

    def _look_for_commands(self) -> None:
        self._commands = None
        if self._commands_run():
            self._look_for_commands_later()
        else:
            self._keeper.ended()

    def runs(self) -> None:
        """The thaw is done."""
        if not self._driver.closed:
            self._tools.awake[self.wish.uid] = self

    def failed(self, what: str, reason: str) -> None:
        """An order has failed; it is tried again."""
        facts = {"pod": str(self.wish), "order": what, "why": reason}
        _log.log(logging.DEBUG if what == FREEZE else logging.ERROR, "an order failed", extra={"facts": facts})


class _Numbers(PodNumbers):
    """Passes on what matters to the pod itself."""

    __slots__ = ("_pod",)

    def __init__(self, pod: AmbientPod) -> None:
        super().__init__()
        self._pod = pod

    def frozen(self, at: float, took: float) -> None:
        super().frozen(at, took)
        self._pod.stands_still()

    def thawed(self, at: float, waited: float | None) -> None:
        super().thawed(at, waited)
        self._pod.runs()

    def failed(self, what: str, reason: str) -> None:
        super().failed(what, reason)
        self._pod.failed(what, reason)
