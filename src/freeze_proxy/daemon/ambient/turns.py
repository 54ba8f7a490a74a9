"""The loop that a keeper knows, on top of asyncio's."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from freeze_proxy.loop import Loop, Timer


class Turns(Loop):
    """One for each keeper: ``now`` is the time of the keeper's own turn, which ``begin`` sets."""

    __slots__ = ("_asyncio",)

    def __init__(self) -> None:  # no epoll of its own, so nothing of what ``Loop`` makes
        self._asyncio = asyncio.get_running_loop()
        self.now = time.monotonic()

    def begin(self) -> None:
        """Somebody else than this loop is about to tell the keeper something."""
        self.now = time.monotonic()

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """See ``Loop``; asyncio's clock is the same."""
        timer = Timer(when, call)
        self._asyncio.call_at(when, self._ring, timer)
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """See ``Loop``."""
        self._asyncio.call_soon(self._turn, call)

    def soon_from_thread(self, call: Callable[[], None]) -> None:
        """Like ``soon``, for another thread than the loop's, which may have ended."""
        with contextlib.suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(self._turn, call)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """See ``Loop``; for reading alone."""
        self._asyncio.add_reader(fd, self._turn, lambda: handler(events))

    def forget(self, fd: int) -> None:
        """See ``Loop``."""
        self._asyncio.remove_reader(fd)

    def _turn(self, call: Callable[[], None]) -> None:
        self.now = time.monotonic()
        call()

    def _ring(self, timer: Timer) -> None:
        if timer.call is not None:
            self._turn(timer.call)
