"""Which containers a pod has, and where they are: asked of the runtime once, and remembered for as long as it is true.

A container is remembered by its id, and has one ``Container`` for its life, whatever is looked up anew around it: what
was opened for it, and what a throttle has to put back, must not be lost.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable

from freeze_proxy.annotations import NEVER_FROZEN, SIDECARS
from freeze_proxy.daemon import places
from freeze_proxy.daemon.cri import Lister, RuntimeAway, Sandbox
from freeze_proxy.daemon.rounds import Rounds
from freeze_proxy.freezers import FreezeError, Freezer, Gone

__all__ = ["Container", "NoContainer", "NoPod", "Pod", "Pods", "RuntimeAway"]

_MOST_LOOKUPS = 8
"""At a time."""
_MOST_WAITING = 5.0
"""Seconds for which one waits for its turn."""
_ABSENT_FOR = 1.0
"""Seconds for which a pod that was not found is not looked for again, and one that was found not anew without need."""
_MOST_ABSENT = 1024
_SWEPT = 32
"""Pods and containers looked at in a sweep."""

Choose = Callable[[str, int, str], Freezer]
"""From a container's id, its main process and a mode (``freeze``, ``throttle``) to the freezer; ``FreezeError``."""


class NoPod(Exception):
    """The runtime has no such pod with a running container; the text is a sentence."""


class NoContainer(Exception):
    """The pod has no such container; the text is a sentence that names those it has."""


class Container:
    """One running container: ``id``, ``name`` in its pod, and ``pid`` of its main process."""

    __slots__ = ("_choose", "_freezers", "id", "name", "pid")

    def __init__(self, id: str, name: str, pid: int, choose: Choose) -> None:
        self.id = id
        self.name = name
        self.pid = pid
        self._choose = choose
        self._freezers: dict[str, Freezer] = {}

    def freezer(self, mode: str) -> Freezer:
        """What carries out ``freeze`` or ``throttle`` on it: chosen at first use, then the same for its life.

        Raises ``FreezeError``, and ``Gone`` if the container is no more.
        """
        freezer = self._freezers.get(mode)
        if freezer is None:
            freezer = self._freezers[mode] = self._choose(self.id, self.pid, mode)
        return freezer

    def alive(self) -> bool:
        """Whether there is anybody left in it. Takes microseconds."""
        for freezer in self._freezers.values():
            if freezer.quick:
                try:
                    return freezer.alive()
                except Gone:
                    return False
                except FreezeError:
                    break
        return places.holds(self.pid, self.id)

    def close(self) -> None:
        """Give back what its freezers hold; changes nothing about the container."""
        for freezer in self._freezers.values():
            freezer.close()
        self._freezers.clear()


class Pod:
    """A pod with its running ``containers``, by name."""

    __slots__ = ("containers", "excluded", "looked", "name", "namespace", "neighbourhood", "revision", "settled", "uid")

    def __init__(
        self,
        uid: str,
        namespace: str,
        name: str,
        containers: Iterable[Container],
        excluded: Collection[str] = SIDECARS,
        settled: bool = True,
        looked: float = 0.0,
        revision: str = "",
    ) -> None:
        self.uid = uid
        self.namespace = namespace
        self.name = name
        self.containers = {container.name: container for container in containers}
        self.excluded = excluded
        self.settled = settled
        self.looked = looked
        self.revision = revision
        self.neighbourhood: places.Neighbourhood | None = None

    def alive(self) -> bool:
        """Whether anybody is left in one of its containers. Takes microseconds for each."""
        return any(container.alive() for container in self.containers.values())

    def close(self) -> None:
        """Give back what is held to see whether it has changed; its containers stay as they are."""
        if self.neighbourhood is not None:
            self.neighbourhood.close()
            self.neighbourhood = None

    def expect(self, namespace: str, name: str) -> None:
        """Raise ``NoPod`` unless these, as far as they are given, are its namespace and its name."""
        if (namespace and namespace != self.namespace) or (name and name != self.name):
            raise NoPod(
                f"The token is of the pod {namespace}/{name}, but the runtime knows the pod {self.uid} as "
                f"{self.namespace}/{self.name}."
            )

    def chosen(self, names: Iterable[str] | None = None) -> list[Container]:
        """The containers with these names; without names, all but the excluded ones. Raises ``NoContainer``."""
        if names is None:
            containers = [
                container
                for name, container in self.containers.items()
                if name not in NEVER_FROZEN and name not in self.excluded
            ]
            if not containers:
                raise NoContainer(
                    f"The pod {self} has no container to freeze, only {_listed(self.containers)}; "
                    "name those that are to be frozen."
                )
            return containers
        wanted = dict.fromkeys(names)
        if not wanted:
            raise NoContainer("The list of containers is empty: leave it out to freeze all, or name some.")
        for name in wanted:
            if name in NEVER_FROZEN:
                raise NoContainer(f"The container {name} is never frozen: it is the one to ask for the thaw.")
            if name not in self.containers:
                raise NoContainer(
                    f"The pod {self} has no running container {name!r:.80}, only {_listed(self.containers)}."
                )
        return [self.containers[name] for name in wanted]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Pods:
    """The pods of this node that have asked for something.

    ``choose`` makes the freezers, ``excluded`` are the containers that are frozen only when asked for by name.
    ``forgotten`` is called with the UID of each pod that is no longer known, or not as it was.
    """

    def __init__(
        self,
        runtime: Lister,
        choose: Choose,
        excluded: Collection[str] = SIDECARS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._choose = choose
        self._excluded = frozenset(excluded)
        self._clock = clock
        self._pods: dict[str, Pod] = {}
        self._containers: dict[str, Container] = {}
        self._absent: dict[str, tuple[float, str]] = {}
        self._lookups: dict[str, asyncio.Task[Pod]] = {}
        self._places = asyncio.Semaphore(_MOST_LOOKUPS)
        self._pods_in_turn = Rounds(self._pods.values, _SWEPT)
        self.forgotten: Callable[[str], None] = lambda _uid: None
        self._strays: dict[str, Container] = {}  # containers of no known pod; the others are looked at with theirs
        self._strays_in_turn = Rounds(self._strays.values, _SWEPT)

    def __len__(self) -> int:
        return len(self._pods)

    def known(self, uid: str) -> Pod | None:
        """The pod, if it has been looked up and nothing has changed since. No call, no wait."""
        return self._pods.get(uid)

    async def find(self, uid: str) -> Pod:
        """The pod as the runtime has it now. Those who ask at the same time share one look-up.

        Raises ``NoPod``, and ``RuntimeAway`` if the runtime cannot be asked.
        """
        absent = self._absent.get(uid)
        if absent is not None:
            if self._clock() < absent[0]:
                raise NoPod(absent[1])
            del self._absent[uid]
        return await asyncio.shield(self._lookup(uid))  # one that no longer waits must not take it from the others

    def look_for(self, uid: str) -> None:
        """Begin to look for a pod, for one that cannot wait until it is found, and will ask again."""
        if uid not in self._absent:
            self._lookup(uid)

    async def renewed(self, uid: str) -> Pod:
        """Like ``find``, for one that misses a container in a known pod: not more than once a second."""
        pod = self._pods.get(uid)
        if pod is not None and self._clock() < pod.looked + _ABSENT_FOR:
            return pod
        return await self.find(uid)

    def forget(self, uid: str) -> None:
        """Something about the pod is no longer true: look it up anew when it is next asked for."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self._strays |= {container.id: container for container in pod.containers.values()}
            pod.close()
            self.forgotten(uid)

    async def sweep(self) -> None:
        """Forget what is no longer true. To be called every few seconds; holds nobody else up."""
        async for pod in self._pods_in_turn.turn():
            if self._pods.get(pod.uid) is pod and self._stale(pod):
                self.forget(pod.uid)
        async for container in self._strays_in_turn.turn():
            # Nothing is left in it that could be frozen; a look-up may have been quicker, and thinks otherwise.
            if self._strays.get(container.id) is container and not container.alive():
                del self._strays[container.id]
                self._containers.pop(container.id).close()
        now = self._clock()
        for uid, (until, _) in list(self._absent.items()):
            if now >= until:
                del self._absent[uid]

    def _stale(self, pod: Pod) -> bool:
        return (
            (not pod.settled and self._clock() >= pod.looked + _ABSENT_FOR)
            or (pod.neighbourhood is not None and pod.neighbourhood.changed())
            or not all(container.alive() for container in pod.containers.values())
        )

    def close(self) -> None:
        """Give back all that is held, and give up what is being looked up."""
        for lookup in list(self._lookups.values()):
            lookup.cancel()
        for uid in list(self._pods):
            self.forget(uid)
        for container in self._containers.values():
            container.close()
        self._containers.clear()
        self._strays.clear()

    def _lookup(self, uid: str) -> asyncio.Task[Pod]:
        lookup = self._lookups.get(uid)
        if lookup is None:
            lookup = self._lookups[uid] = asyncio.create_task(self._look_up(uid))
            lookup.add_done_callback(lambda done: self._looked_up(uid, done))
        return lookup

    async def _look_up(self, uid: str) -> Pod:
        try:
            async with asyncio.timeout(_MOST_WAITING):
                await self._places.acquire()
        except TimeoutError:
            raise RuntimeAway("The container runtime is slow to answer, and too many wait for it.") from None
        try:
            sandbox = await self._runtime.containers_of(uid)
        finally:
            self._places.release()
        if sandbox is None:
            raise self._no_pod(uid, f"The container runtime has no running pod {uid!r:.80} on this node.")
        if not sandbox.containers:
            raise self._no_pod(uid, f"The pod {sandbox.namespace}/{sandbox.name} has no running container yet.")
        pod = self._pod(sandbox)
        self.forget(uid)
        for container in pod.containers.values():
            self._strays.pop(container.id, None)
        self._pods[uid] = pod
        return pod

    def _pod(self, sandbox: Sandbox) -> Pod:
        containers = []
        for running in sandbox.containers:
            container = self._containers.get(running.id)
            if container is None:
                container = Container(running.id, running.name, running.pid, self._choose)
                self._containers[running.id] = container
            containers.append(container)
        pod = Pod(
            sandbox.uid,
            sandbox.namespace,
            sandbox.name,
            containers,
            self._excluded,
            sandbox.settled,
            self._clock(),
            sandbox.revision,
        )
        pod.neighbourhood = places.neighbourhood(containers[0].id, containers[0].pid)
        return pod

    def _no_pod(self, uid: str, sentence: str) -> NoPod:
        self.forget(uid)
        while len(self._absent) >= _MOST_ABSENT:
            del self._absent[next(iter(self._absent))]
        self._absent[uid] = (self._clock() + _ABSENT_FOR, sentence)
        return NoPod(sentence)

    def _looked_up(self, uid: str, done: asyncio.Task[Pod]) -> None:
        del self._lookups[uid]
        if not done.cancelled():
            done.exception()  # has been told to those who waited, or all of them have left


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
