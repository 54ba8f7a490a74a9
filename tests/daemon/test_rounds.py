"""Looking at many, so many at a time."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.daemon.rounds import Rounds


def turn(rounds: Rounds[int]) -> list[int]:
    async def taken() -> list[int]:
        return [each async for each in rounds.turn()]

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
