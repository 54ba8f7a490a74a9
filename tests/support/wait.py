"""Waiting for what must come to pass: look again and again, until a deadline."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FACTOR = float(os.environ.get("PATIENCE_FACTOR", "1"))
"""How much longer to wait than is said, where the machine is slow."""

PATIENCE = 10.0
"""Seconds after which a thing that should have happened has not."""


def until(look: Callable[[], T], what: str, within: float = PATIENCE, every: float = 0.005) -> T:
    """The first truthy answer of ``look``; an ``AssertionError`` that names ``what`` when it is too late."""
    deadline = time.monotonic() + within * FACTOR
    while not (answer := look()):
        assert time.monotonic() < deadline, f"Not within {within * FACTOR} s: {what}."
        time.sleep(every)
    return answer
