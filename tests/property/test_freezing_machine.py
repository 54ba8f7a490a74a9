"""``daemon/freezing.py`` against every order of events: requests, ends of connections, failures, slow runtimes.

Time and threads are the machine's own: the clock jumps to the next timer, and a call to a slow freezer is carried out
when the machine says so. So every interleaving can be had, and had again.
"""

import asyncio
import selectors
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from freeze_proxy.daemon.freezing import Freezing, Overtaken
from freeze_proxy.daemon.journal import Journal
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.freezers import FreezeError, Freezer, Gone, processes
from tests.support.examples import examples

NAMES = ("one", "two", "three")
LONG = 6.0
"""Seconds in which all that is to be tried again has been."""


class Jumping(selectors.DefaultSelector):
    """Sleeps by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "Everything waits, and nothing will come."
        self.now += max(0.0, timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Whose time is its selector's."""

    def __init__(self) -> None:
        self._jumping = Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def turn(self, times: int = 1) -> None:
        """So many rounds of what is due."""
        for _ in range(times):
            self.call_soon(self.stop)
            self.run_forever()


class Threads(Executor):
    """Calls that are under way, until ``finish`` carries one out."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def finish(self, which: int = 0) -> None:
        future, call = self.waiting.pop(which % len(self.waiting))
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


class Connection:
    """What a lease is bound to."""

    def __init__(self) -> None:
        self.closed = False


class Fake(Freezer):
    """``fails``: how often each call will, before it succeeds; ``stands``: whether a freeze takes hold.

    ``held``: whether one always has since it was last asked for.
    """

    kind = "fake"

    def __init__(self, name: str, quick: bool, stirs: bool = False) -> None:
        self.stirs = stirs
        self.stirred = 0  # how often it has
        self.where = name
        self.way = (self.kind, name)
        self.quick = quick
        self.ordered = False
        self.there = self.stands = self.held = True
        self.fails = {"freeze": 0, "thaw": 0}

    def _called(self, what: str) -> None:
        if not self.there:
            raise Gone(f"{self.where} is no more.")
        if self.fails.get(what):
            self.fails[what] -= 1
            raise FreezeError(f"{self.where} cannot {what}.")

    def freeze(self) -> bool:
        # One that fails may have got half way.
        self.ordered = self.there
        self._called("freeze")
        return self.stands

    def still(self) -> bool:
        self._called("still")
        return self.ordered and self.stands

    def alive(self) -> bool:
        return self.there

    def thaw(self) -> None:
        self._called("thaw")
        self.ordered = False
        self.stirred += 1


class Order:
    """A freeze that was not overtaken when it came."""

    def __init__(self, names: tuple[str, ...], lease: Connection | None) -> None:
        self.names = names
        self.lease = lease


class FreezingMachine(RuleBasedStateMachine):
    """``_newest`` is the freeze that counts, if one does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = Loop()
        self.freezing = Freezing(Journal(str(self.folder)), patience=0.1)
        self.threads = Threads()
        self.freezing._pool.shutdown()
        self.freezing._pool = self.threads  # type: ignore[assignment]
        self.connections = [Connection() for _ in range(3)]
        self.number = self.highest = 0
        self.newest: Order | None = None
        self.latest: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.wrong: list[BaseException] = []
        self.asked_to_end: set[int] = set()
        self.patches: list[Any] = [
            mock.patch.object(processes, "stat", lambda pid: ["S"] if self.fakes[NAMES[pid]].there else None),
            mock.patch.object(processes, "Pending", self._pending),
        ]
        for patch in self.patches:
            patch.start()

    def _pending(self, pid: int) -> Any:
        seen = -1

        def ask_to_end() -> bool:
            nonlocal seen
            if not self.fakes[NAMES[pid]].there:
                raise ProcessLookupError
            seen = self.fakes[NAMES[pid]].stirred
            return pid in self.asked_to_end

        return mock.Mock(ask_to_end=ask_to_end, stirred=lambda: seen != self.fakes[NAMES[pid]].stirred)

    @initialize(
        quick=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        stirs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def begin(self, quick: tuple[bool, bool, bool], stirs: tuple[bool, bool, bool]) -> None:
        self.fakes = {name: Fake(name, *its) for name, *its in zip(NAMES, quick, stirs, strict=True)}
        choose: Callable[[str, int, str], Freezer] = lambda id, _pid, _mode: self.fakes[id]  # noqa: E731
        self.containers = {name: Container(name, name, pid, choose) for pid, name in enumerate(NAMES)}
        self.pod = Pod("uid", "ns", "pod", self.containers.values())
        self._begin(self.freezing.watch())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        self.loop.turn()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.wrong.append(error)

    def _number(self, late: int) -> int:
        self.number += 1
        return max(1, self.number - late)

    # What may happen.

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple),
        which=st.none() | st.integers(0, 2),
        late=st.sampled_from((0, 0, 0, 1, 2)),
        turns=st.integers(0, 3),
    )
    def freeze(self, names: tuple[str, ...], which: int | None, late: int, turns: int) -> None:
        number, lease = self._number(late), None if which is None else self.connections[which]
        order = Order(names, lease)

        async def go() -> None:
            overtaken = number < self.highest or (lease is not None and lease.closed)
            if not overtaken:
                self.highest = number
                self.newest = order
                self.latest = asyncio.current_task()
                for name in names:
                    self.fakes[name].held = self.fakes[name].stands
            chosen = [self.containers[name] for name in names]
            try:
                states = await self.freezing.freeze(self.pod, chosen, "freeze", number, lease)
            except Overtaken:
                if self.newest is order:
                    # Given up for what looks as if somebody else had thawed it.
                    assert not all(self.fakes[name].held for name in names), "The newest order was overtaken."
                    self.newest = None
            except FreezeError:
                assert not overtaken
                if self.newest is order:
                    self.newest = None
            else:
                assert not overtaken
                assert self.newest is order, "An order was carried out that is not the newest."
                assert [state["name"] for state in states] == list(names)
                assert all(self.fakes[name].ordered for name in names if self.fakes[name].there)

        self._begin(go())
        self.loop.turn(turns)

    @rule(late=st.sampled_from((0, 0, 0, 1, 2)), turns=st.integers(0, 3))
    def thaw(self, late: int, turns: int) -> None:
        number = self._number(late)

        async def go() -> None:
            if number < self.highest:
                await self.freezing.thaw("uid", self.containers.values(), number)  # as if it had come before
                return
            self.highest = number
            self.newest = None
            self.latest = asyncio.current_task()
            try:
                await self.freezing.thaw("uid", self.containers.values(), number)
            except FreezeError:
                pass  # it is tried again
            else:
                if self.latest is asyncio.current_task():
                    assert not self._frozen(), "A thaw was acknowledged, and all of it does not run."

        self._begin(go())
        self.loop.turn(turns)

    @rule(which=st.integers(0, 2), turns=st.integers(0, 3))
    def close(self, which: int, turns: int) -> None:
        connection, self.connections[which] = self.connections[which], Connection()

        def lost() -> None:
            connection.closed = True
            if self.newest is not None and self.newest.lease is connection:
                self.newest = None
            self.freezing.release(connection)

        self.loop.call_soon(lost)
        self.loop.turn(1 + turns)

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(("freeze", "thaw")), times=st.integers(1, 3))
    def fail(self, name: str, what: str, times: int) -> None:
        self.fakes[name].fails[what] = times

    @rule(name=st.sampled_from(NAMES), stands=st.booleans())
    def take_hold(self, name: str, stands: bool) -> None:
        self.fakes[name].stands = stands
        self.fakes[name].held &= stands
        self.fakes[name].stirred += 1

    @rule(name=st.sampled_from(NAMES))
    def end(self, name: str) -> None:
        self.fakes[name].there = self.fakes[name].ordered = False
        self.fakes[name].stirred += 1

    @rule(which=st.integers(0, 7), turns=st.integers(0, 3))
    def finish(self, which: int, turns: int) -> None:
        if self.threads.waiting:
            self.threads.finish(which)
            self.loop.turn(turns)

    @rule(name=st.sampled_from(NAMES))
    def ask_to_end(self, name: str) -> None:
        """Whoever is frozen is thawed within two looks, with all of its pod."""
        self.settle()
        if self.newest is not None and name in self._frozen():
            self.newest = None
            self.asked_to_end.add(NAMES.index(name))
            self.fakes[name].stirred += 1
            self.settle()
            self.asked_to_end.clear()

    @rule(seconds=st.sampled_from((0.001, 0.02, 0.2, 2.0)))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # What must be.

    def _frozen(self) -> set[str]:
        return {name for name, fake in self.fakes.items() if fake.ordered}

    @invariant()
    def written_down(self) -> None:
        if hasattr(self, "fakes"):
            for name in self._frozen():
                assert (self.folder / name).read_bytes().startswith(b"frozen"), f"{name} is not written down."

    @invariant()
    def as_it_should_be(self) -> None:
        for error in self.wrong:
            raise error

    @rule()
    def settle(self) -> None:
        """Everything comes to an end; then the newest order holds."""
        until = self.loop.time() + LONG
        while self.loop.time() < until:
            while self.threads.waiting:
                self.threads.finish()
                self.loop.turn(4)
            self.loop.run_until_complete(asyncio.sleep(0.5))
        assert len(self.tasks) == 1, "Something still waits."
        there = {name for name, fake in self.fakes.items() if fake.there}
        wanted = set(self.newest.names) & there if self.newest is not None else set()
        if self.newest is not None and not all(self.fakes[name].held for name in wanted):
            # It was given up for not standing still, or was thawed by somebody else, as it seems.
            wanted &= self._frozen()
        assert self._frozen() == wanted
        assert self.freezing.frozen() == len(wanted)

    def teardown(self) -> None:
        try:
            if not hasattr(self, "fakes"):
                return
            self.settle()
            for which in range(3):
                self.close(which, 0)
            self.settle()
            if self.newest is None:
                assert not self._frozen()
            else:
                assert self.newest.lease is None
            for fake in self.fakes.values():
                fake.fails.clear()
            closing = self.loop.create_task(self.freezing.close())
            while not closing.done():
                while self.threads.waiting:
                    self.threads.finish()
                self.loop.run_until_complete(asyncio.sleep(0.1))
            assert not self._frozen()
            assert not [file for file in self.folder.iterdir() if not file.read_bytes().startswith(b"awake")]
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.turn(3)
            self.loop.close()
            for patch in self.patches:
                patch.stop()
            shutil.rmtree(self.folder)


TestFreezing = FreezingMachine.TestCase
TestFreezing.settings = examples(200, steps=30)
