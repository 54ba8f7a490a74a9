"""Waiting for what must come to pass: look again and again, until a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds after which a thing that should have happened has not."""


def until(look: Callable[[], T], what: str, within: float = PATIENCE, every: float = 0.005) -> T:
    """The first truthy answer of ``look``; an ``AssertionError`` that names ``what`` when it is too late."""
    deadline = time.monotonic() + within
    while not (answer := look()):
        assert time.monotonic() < deadline, f"Not within {within} s: {what}."
        time.sleep(every)
    return answer
