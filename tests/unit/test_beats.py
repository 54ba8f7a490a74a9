"""What is done every so often is done at the same moments by all."""

import asyncio
import itertools
import selectors

from hypothesis import given, settings
from hypothesis import strategies as st

from freeze_proxy.beats import next_beat


class Jumping(selectors.SelectSelector):
    """Waits for nothing: its time jumps, by whole milliseconds as epoll's does; ``woken`` counts."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.now = now
        self.woken = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.woken += 1
            self.now += -(-timeout * 1000 // 1) / 1000
        return []


class Loop(asyncio.SelectorEventLoop):
    """Whose time is its selector's, and passes by a microsecond whenever somebody looks."""

    def __init__(self, now: float) -> None:
        self.jumping = Jumping(now)
        super().__init__(self.jumping)

    def time(self) -> float:
        self.jumping.now += 1e-6
        return self.jumping.now


@settings(max_examples=25)
@given(st.floats(0, 1e6), st.lists(st.floats(0, 1.0), min_size=1, max_size=5), st.lists(st.booleans(), min_size=5))
def test_who_began_at_different_times_is_woken_at_once(now: float, later: list[float], twice: list[bool]) -> None:
    """Once a second, whatever the number of those who are; nobody twice within half of his time."""
    loop = Loop(now)
    beats: list[list[float]] = []

    async def one(after: float, every: float) -> None:
        await asyncio.sleep(after)
        mine: list[float] = []
        beats.append(mine)
        while True:
            await next_beat(every)
            mine.append(loop.time())

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(one(*each)) for each in zip(later, (1.0 + more for more in twice), strict=False)]
        await asyncio.sleep(10)
        for each in beats:
            each.clear()
        loop.jumping.woken = 0
        await asyncio.sleep(20)
        for task in tasks:
            task.cancel()

    loop.run_until_complete(all_of_them())
    loop.close()
    assert loop.jumping.woken <= 22
    for mine in beats:
        assert all(0.99 < after - before < 2.01 for before, after in itertools.pairwise(mine))
        assert len(mine) >= 9


def test_a_beat_that_is_near_is_left_out() -> None:
    """Who has only just looked does not look again."""
    loop = Loop(7.4)

    async def scene() -> list[float]:
        await next_beat(1.0)
        first = loop.time()
        loop.jumping.now = 8.6
        await next_beat(1.0)
        return [first, loop.time()]

    assert [round(each, 2) for each in loop.run_until_complete(scene())] == [8.0, 10.0]
    loop.close()
