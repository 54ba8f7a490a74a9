"""Looking at many, so many at a time: what that costs a second does not grow with how many there are."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

AT_A_TIME = 64
_A_WHILE = 4
"""So many are looked at in one go before others have their turn on the loop."""


class Rounds(Generic[T]):
    """Goes round: nobody has a second turn before everybody who was there at the beginning has had one."""

    def __init__(self, everybody: Callable[[], Iterable[T]], at_a_time: int = AT_A_TIME) -> None:
        self._everybody = everybody
        self._at_a_time = at_a_time
        self._left: list[T] = []  # of this round, the next one last

    async def turn(self) -> AsyncIterator[T]:
        """Whose turn it is. Who is handed out may have gone since the round began."""
        if not self._left:
            self._left = list(self._everybody())[::-1]
        for looked in range(1, min(self._at_a_time, len(self._left)) + 1):
            yield self._left.pop()
            if looked % _A_WHILE == 0:
                await asyncio.sleep(0)
