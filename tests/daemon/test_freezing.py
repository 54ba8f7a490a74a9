"""Freezing together or not at all, the newest order, leases, the journal: with freezers that do as the test says."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from freeze_proxy.daemon import freezing as module
from freeze_proxy.daemon.freezing import Freezing, Overtaken, Stuck, TooSlow
from freeze_proxy.daemon.journal import Journal
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.freezers import FreezeError, Freezer, Gone, processes


class Connection:
    """What a lease is bound to."""

    closed = False


class Fake(Freezer):
    """``stands_after``: how many looks a freeze takes; ``fails``: what the next calls raise, by their name."""

    kind = "fake"

    def __init__(self, name: str, quick: bool = True) -> None:
        self.where = name
        self.way = ("fake", name)
        self.quick = quick
        self.ordered = False
        self.looks = self.stands_after = 0
        self.fails: dict[str, FreezeError] = {}
        self.calls: list[str] = []
        self.there = True

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if what in self.fails:
            raise self.fails[what]

    def freeze(self) -> bool:
        self.ordered = True
        self.looks = 0
        self._call("freeze")
        return self.still()

    def still(self) -> bool:
        return self.ordered and self.looks >= self.stands_after

    def frozen(self) -> bool:
        self.looks += 1
        self._call("frozen")
        return self.still()

    def alive(self) -> bool:
        return self.there

    def thaw(self) -> None:
        self._call("thaw")
        self.ordered = False


class Stage:
    """A pod of two containers, and what freezes it."""

    def __init__(self, path: Path, quick: bool = True) -> None:
        self.path = path
        self.one, self.two = Fake("one", quick), Fake("two", quick)
        self.fakes = {"1": self.one, "2": self.two}
        self.containers = [Container(id, name, 0, self._choose) for id, name in (("1", "one"), ("2", "two"))]
        self.pod = Pod("uid", "ns", "pod", self.containers)
        self.freezing = Freezing(Journal(str(path)), patience=0.1)
        self.number = 0

    def _choose(self, id: str, _pid: int, _mode: str) -> Freezer:
        return self.fakes[id]

    def next(self) -> int:
        self.number += 1
        return self.number

    def freeze(
        self, lease: Connection | None = None, number: int = 0, names: tuple[str, ...] = ("1", "2")
    ) -> Awaitable[list[dict[str, str]]]:
        chosen = [container for container in self.containers if container.id in names]
        return self.freezing.freeze(self.pod, chosen, "freeze", number or self.next(), lease)

    def thaw(self, number: int = 0) -> Awaitable[list[dict[str, str]]]:
        return self.freezing.thaw("uid", self.containers, number or self.next())

    def frozen(self) -> list[str]:
        return [fake.where for fake in (self.one, self.two) if fake.ordered]

    def written(self) -> list[str]:
        files = {"1": "one", "2": "two"}
        return [files[file.name] for file in sorted(self.path.iterdir()) if file.read_bytes().startswith(b"frozen")]


Scene = Callable[[Stage], Awaitable[Any]]


@pytest.fixture(params=[True, False], ids=["quick", "slow"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        async def main() -> None:
            stage = Stage(tmp_path, request.param)
            async with asyncio.timeout(30):
                await scene(stage)
                await stage.freezing.close()
            assert stage.frozen() == []
            assert stage.written() == []

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_both_are_frozen_and_written_down_before(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        states = await stage.freeze()
        assert [(state["name"], state["id"], state["state"]) for state in states] == [
            ("one", "1", "frozen"),
            ("two", "2", "frozen"),
        ]
        assert stage.frozen() == stage.written() == ["one", "two"]
        assert stage.freezing.frozen() == 2
        states = await stage.thaw()
        assert [state["state"] for state in states] == ["awake", "awake"]
        assert stage.frozen() == stage.written() == []
        assert stage.freezing.frozen() == 0

    play(scene)


def test_a_freeze_that_takes_a_while_is_waited_for(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.two.stands_after = 3
        await stage.freeze()
        assert stage.two.still()

    play(scene)


def test_if_one_cannot_be_frozen_none_is(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.two.fails["freeze"] = FreezeError("It cannot.")
        with pytest.raises(FreezeError, match="It cannot"):
            await stage.freeze()
        assert stage.frozen() == stage.written() == []
        stage.two.fails.clear()
        await stage.freeze()
        assert stage.frozen() == ["one", "two"]

    play(scene)


def test_if_one_does_not_stand_still_in_time_none_does(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.two.stands_after = 10**9
        with pytest.raises(TooSlow, match=r"did not stand still within 0\.1 s"):
            await stage.freeze()
        assert stage.frozen() == stage.written() == []

    play(scene)


def test_a_container_without_processes_is_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        stage = Stage(tmp_path)
        stage.two.there = False
        with pytest.raises(Gone):
            await stage.freeze()
        assert stage.frozen() == []

    asyncio.run(scene())


def test_a_freeze_that_arrived_before_a_thaw_does_nothing_after_it(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        first, second = stage.next(), stage.next()
        await stage.thaw(second)
        with pytest.raises(Overtaken):
            await stage.freeze(number=first)
        assert stage.frozen() == []
        assert "freeze" not in stage.one.calls

    play(scene)


def test_a_thaw_overtakes_a_freeze_that_is_under_way(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.two.stands_after = 10**9
        freeze = asyncio.ensure_future(stage.freeze())
        await until(lambda: stage.frozen() == ["one", "two"])
        await stage.thaw()
        assert stage.frozen() == []
        with pytest.raises(Overtaken):
            await freeze
        assert stage.frozen() == stage.written() == []

    play(scene)


def test_a_lease_lasts_as_long_as_its_connection(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        connection = Connection()
        await stage.freeze(connection)
        assert stage.freezing.leases() == 1
        connection.closed = True
        stage.freezing.release(connection)
        await until(lambda: not stage.frozen())
        assert stage.freezing.leases() == 0
        with pytest.raises(Overtaken):
            await stage.freeze(connection)

    play(scene)


def test_a_connection_that_closes_ends_its_freeze_that_is_under_way(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        connection = Connection()
        stage.one.stands_after = 10**9
        freeze = asyncio.ensure_future(stage.freeze(connection))
        await until(lambda: bool(stage.one.looks))
        connection.closed = True
        stage.freezing.release(connection)
        with pytest.raises(Overtaken):
            await freeze
        await until(lambda: not stage.frozen())

    play(scene)


def test_a_lease_that_another_has_taken_over_ends_nothing(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        old, new = Connection(), Connection()
        await stage.freeze(old)
        await stage.freeze(new)
        stage.freezing.release(old)
        await asyncio.sleep(0.02)
        assert stage.frozen() == ["one", "two"]
        stage.freezing.release(new)
        await until(lambda: not stage.frozen())

    play(scene)


def test_a_freeze_of_fewer_thaws_the_others(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.freeze()
        await stage.freeze(names=("2",))
        assert stage.frozen() == stage.written() == ["two"]

    play(scene)


def test_a_thaw_that_fails_is_tried_until_it_succeeds(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.freeze()
        stage.one.fails["thaw"] = FreezeError("Not now.")
        with pytest.raises(FreezeError, match="Not now"):
            await stage.thaw()
        assert stage.frozen() == stage.written() == ["one"]
        stage.one.fails.clear()
        await until(lambda: not stage.frozen())

    play(scene)


def test_a_freeze_that_can_neither_be_done_nor_undone_says_so(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.one.fails["thaw"] = FreezeError("Not now.")
        stage.two.fails["freeze"] = FreezeError("It cannot.")
        with pytest.raises(Stuck, match=r"It cannot\. And it cannot be undone yet: Not now\."):
            await stage.freeze()
        assert "one" in stage.frozen()
        stage.one.fails.clear()
        await until(lambda: not stage.frozen())

    play(scene)


def test_a_new_freeze_ends_the_trying(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.freeze()
        stage.one.fails["thaw"] = FreezeError("Not now.")
        with pytest.raises(FreezeError):
            await stage.thaw()
        stage.one.fails.clear()
        await stage.freeze()
        await asyncio.sleep(0.1)
        assert stage.frozen() == ["one", "two"]

    play(scene)


def test_a_container_that_is_gone_is_thawed_and_not_told_of(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.freeze()
        stage.one.fails["thaw"] = Gone("It has ended.")
        stage.one.fails["freeze"] = Gone("It has ended.")
        states = await stage.thaw()
        assert "two" in [state["name"] for state in states]
        stage.one.ordered = False
        assert stage.freezing.frozen() == 0

    play(scene)


def test_what_cannot_be_written_down_is_not_frozen(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.path.joinpath("2").mkdir()  # where its file would be
        with pytest.raises(FreezeError, match="cannot be written"):
            await stage.freeze()
        assert stage.frozen() == []
        stage.path.joinpath("2").rmdir()

    play(scene)


def test_one_that_is_asked_to_end_is_thawed_with_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_EVERY", 0.01)
    asked: list[int] = []
    monkeypatch.setattr(processes, "Pending", lambda pid: Mock(ask_to_end=lambda: pid in asked))

    async def scene() -> None:
        stage = Stage(tmp_path)
        watching = asyncio.create_task(stage.freezing.watch())
        await stage.freeze()
        await asyncio.sleep(0.05)
        assert stage.frozen() == ["one", "two"]
        asked.append(0)
        await until(lambda: not stage.frozen())
        watching.cancel()

    asyncio.run(scene())


def test_who_has_not_stirred_since_it_stood_still_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCH_EVERY", 0.005)
    stirred: list[bool] = []
    one, two = Mock(), Mock()
    for pending in (one, two):
        pending.ask_to_end.return_value = False
        pending.stirred.side_effect = lambda: bool(stirred)
    made = iter((one, two))
    monkeypatch.setattr(processes, "Pending", lambda _pid: next(made))

    async def scene() -> None:
        stage = Stage(tmp_path)
        stage.one.stirs = True
        watching = asyncio.create_task(stage.freezing.watch())
        await stage.freeze()
        await until(lambda: two.ask_to_end.call_count > 5)
        assert one.ask_to_end.call_count == 1
        stirred.append(True)
        await until(lambda: one.ask_to_end.call_count > 5)
        stirred.clear()
        one.ask_to_end.return_value = True  # of which it is told nothing
        await until(lambda: one.stirred.call_count > 20)
        assert stage.frozen() == ["one", "two"]
        stirred.append(True)
        await until(lambda: not stage.frozen())
        watching.cancel()

    asyncio.run(scene())


def test_who_did_not_stand_still_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else has thawed it, and it sleeps."""
    monkeypatch.setattr(module, "_WATCH_EVERY", 0.005)
    pending = Mock()
    pending.ask_to_end.return_value = pending.stirred.return_value = False
    monkeypatch.setattr(processes, "Pending", lambda _pid: pending)

    async def scene() -> None:
        stage = Stage(tmp_path)
        stage.freezing._patience = 60.0
        stage.one.stirs = True
        await stage.freeze(names=("1",))
        watching = asyncio.create_task(stage.freezing.watch())
        await until(lambda: pending.stirred.call_count > 5)
        assert pending.ask_to_end.call_count == 1
        stage.one.ordered, pending.stirred.return_value = False, True
        await until(lambda: pending.ask_to_end.call_count == 2)
        pending.stirred.return_value = False
        await until(lambda: pending.ask_to_end.call_count > 5)
        pending.ask_to_end.return_value = True
        await until(lambda: not stage.freezing.frozen())
        watching.cancel()

    asyncio.run(scene())


def test_what_somebody_else_has_thawed_is_not_frozen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_EVERY", 0.01)

    async def scene() -> None:
        stage = Stage(tmp_path)
        watching = asyncio.create_task(stage.freezing.watch())
        await stage.freeze()
        stage.one.ordered = False
        await until(lambda: not stage.freezing.frozen())
        assert stage.one.calls.count("freeze") == 1
        assert stage.frozen() == []
        watching.cancel()

    asyncio.run(scene())


def test_a_container_that_is_gone_is_struck_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_EVERY", 0.01)

    async def scene() -> None:
        stage = Stage(tmp_path)
        watching = asyncio.create_task(stage.freezing.watch())
        await stage.freeze()
        stage.one.there = stage.one.ordered = False
        await until(lambda: [file.name for file in tmp_path.iterdir()] == ["2"])
        assert stage.frozen() == ["two"]
        watching.cancel()
        await stage.freezing.close()

    asyncio.run(scene())
