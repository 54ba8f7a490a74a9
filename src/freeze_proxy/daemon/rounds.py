"""Looking at many, so many at a time: what that costs grows neither with how many there are, nor with what one is."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

AT_A_TIME = 64
_A_WHILE = 0.0002
"""Seconds for which looks go on before others have their turn on the loop."""
_LONG, SHARE = 0.001, 0.001
"""Seconds of CPU time beyond which a look is a long one, and the part of all time that long ones at one may take.

What is read of a pod is as long as its processes make it: whoever is in 65,536 groups takes the kernel 20 ms.
"""


class Rounds(Generic[T]):
    """Goes round: nobody has a second turn before everybody who was there at the beginning has had one.

    Whoever takes long is left out for as long as that takes to be no more than ``SHARE``. What is done with one before
    the next is asked for is the look at it; nothing else of this thread's is to be waited for in it.
    """

    def __init__(self, everybody: Callable[[], Iterable[T]], at_a_time: int = AT_A_TIME) -> None:
        self._everybody = everybody
        self._at_a_time = at_a_time
        self._left: list[T] = []  # of this round, the next one last
        self._left_out: dict[T, float] = {}  # until when

    async def turn(self) -> AsyncIterator[T]:
        """Whose turn it is. Who is handed out may have gone since the round began."""
        if not self._left:
            self._begin()
        rested, used = time.monotonic(), time.thread_time()
        at = rested
        for _ in range(min(self._at_a_time, len(self._left))):
            each = self._left.pop()
            yield each
            before, at = at, time.monotonic()
            # It may have been another thread's, or process's, time: to ask for this one's takes longer.
            if at - before > _LONG and (took := time.thread_time() - used) > _LONG:
                self._left_out[each] = at + took / SHARE
            if at - rested > _A_WHILE:
                await asyncio.sleep(0)
                rested, used = time.monotonic(), time.thread_time()
                at = rested

    def _begin(self) -> None:
        now = time.monotonic()
        self._left_out = {each: until for each, until in self._left_out.items() if until > now}
        self._left = [each for each in self._everybody() if each not in self._left_out][::-1]
