"""Looking at many, so many at a time."""

import asyncio
import contextlib
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.daemon import rounds as module
from freeze_proxy.daemon.rounds import SHARE, Rounds
from freeze_proxy.freezers.processes import Pending
from tests.support.needs import need_root


class Clock:
    """Stands for ``time``: of the CPU, and of the world."""

    def __init__(self) -> None:
        self.used = self.now = 0.0

    def thread_time(self) -> float:
        return self.used

    def monotonic(self) -> float:
        return self.now

    def use(self, seconds: float) -> None:
        self.used += seconds
        self.now += seconds


def turn(rounds: Rounds[int], look: Callable[[int], object] = lambda each: each) -> list[int]:
    async def taken() -> list[int]:
        seen = []
        async for each in rounds.turn():
            look(each)
            seen.append(each)
        return seen

    return asyncio.run(taken())


@given(st.integers(0, 40), st.integers(1, 10))
def test_everybody_has_a_turn_before_anybody_has_two(count: int, at_a_time: int) -> None:
    everybody = list(range(count))
    rounds = Rounds(lambda: everybody, at_a_time)
    turns = [turn(rounds) for _ in range(-(-count // at_a_time))]
    assert [each for one in turns for each in one] == everybody
    assert all(len(each) <= at_a_time for each in turns)
    assert turn(rounds) == everybody[:at_a_time]


def test_who_comes_has_a_turn_in_the_next_round() -> None:
    everybody = dict.fromkeys(range(3))
    rounds = Rounds(everybody.keys, 2)
    assert turn(rounds) == [0, 1]
    everybody[3] = None
    assert turn(rounds) == [2]
    assert turn(rounds) == [0, 1]
    assert turn(rounds) == [2, 3]


def test_others_have_their_turn_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many looks that are, and however long one of them takes."""
    monkeypatch.setattr(module, "time", clock := Clock())
    began = [0.0]
    held_up = []

    async def others() -> None:
        while True:
            held_up.append(clock.used - began[0])
            began[0] = clock.used
            await asyncio.sleep(0)

    async def scene() -> None:
        beside = asyncio.create_task(others())
        costs = [0.00001] * 50 + [0.02] + [0.00015] * 13
        async for each in Rounds(lambda: range(64)).turn():
            clock.use(costs[each])
        await asyncio.sleep(0)
        beside.cancel()

    asyncio.run(scene())
    most = module._A_WHILE + 0.0002
    assert [seconds for seconds in held_up if seconds > most] == [pytest.approx(0.02, abs=most)]
    assert len(held_up) < 20  # and it is not for each that they are asked


@pytest.mark.parametrize("cost", [0.002, 0.02])
@pytest.mark.parametrize("count", [1, 5, 8, 9, 20])
def test_who_takes_long_takes_no_more_than_its_share(cost: float, count: int) -> None:
    """The others do not wait for that: they have their turns as they had them."""
    seconds, at_a_time = 100, 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock := Clock())
        rounds = Rounds(lambda: range(count), at_a_time)
        taken = Counter[int]()
        for second in range(seconds):
            clock.now = max(clock.now, float(second))
            for each in turn(rounds, lambda each: clock.use(0.00003 if each else cost)):
                taken[each] += 1
    assert 0 < taken[0] * cost <= seconds * SHARE + cost
    assert all(taken[each] >= seconds // -(-count // at_a_time) for each in range(1, count))


def test_a_process_in_more_groups_than_anybody_needs_is_looked_at_more_rarely() -> None:
    """What the kernel tells of it takes a thousand times as long as what it tells of others."""
    need_root()
    with contextlib.ExitStack() as stack:

        def started(groups: Iterable[int]) -> Pending:
            process = stack.enter_context(subprocess.Popen(["sleep", "60"], extra_groups=groups))
            stack.callback(process.kill)
            pending = Pending(process.pid)
            stack.callback(pending.close)
            return pending

        everybody = [started(range(2**31, 2**31 + 65536)), started(()), started(())]
        taken = Counter[int]()
        rounds = Rounds(lambda: range(3))
        for _ in range(50):
            taken.update(turn(rounds, lambda each: everybody[each].ask_to_end()))
    assert taken[0] == 1
    assert taken[1] + taken[2] > 50  # of ours, the collector may hold one up
