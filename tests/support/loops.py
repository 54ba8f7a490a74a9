"""A loop of ours, run by the test in its own thread."""

import time
from collections.abc import Callable
from typing import TypeVar

from freeze_proxy.loop import Loop
from tests.support.wait import PATIENCE

T = TypeVar("T")


def turn_until(loop: Loop, look: Callable[[], T], what: str, within: float = PATIENCE) -> T:
    """Run the loop until ``look`` answers something true; returns that."""
    deadline = time.monotonic() + within
    answers: list[T] = []

    def watch() -> None:
        if found := look():
            answers.append(found)
        if found or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.at(time.monotonic() + 0.0005, watch)

    loop.at(0.0, watch)
    loop.run()
    assert answers, f"Not within {within} s: {what}."
    return answers[0]


def turn_for(loop: Loop, seconds: float) -> None:
    """Run the loop; for what must not happen in this time."""
    loop.at(time.monotonic() + seconds, loop.stop)
    loop.run()
