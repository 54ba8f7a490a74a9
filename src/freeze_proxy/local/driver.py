"""Carrying out the gate's orders with a freezer of this machine."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.keeper import Driver
from freeze_proxy.loop import READ, Loop

_SETTLE = (0.001, 0.05)
"""Seconds to the first, and at most between any two, looks at a freeze that is under way."""


class LocalDriver(Driver):
    """Carries out orders with a freezer of this machine. A thaw is done when it returns; a freeze is waited for."""

    __slots__ = ("_loop", "_newest", "freezer")

    def __init__(self, loop: Loop, freezer: Freezer) -> None:
        self._loop = loop
        self._newest = 0
        self.freezer = freezer

    def freeze(self, ticket: int) -> None:
        """Begin, and look again until it is done or another order has come."""
        self._newest = ticket
        self.keeper.haste = self.freezer.haste
        self._try(ticket, self.freezer.freeze, _SETTLE[0])

    def thaw(self, ticket: int) -> None:
        """Done at once."""
        self._newest = ticket
        try:
            self.freezer.thaw()
        except FreezeError as error:
            self.keeper.failed(ticket, str(error))
        else:
            self.keeper.done(ticket)

    def close(self) -> None:
        """Nothing is held."""

    def _try(self, ticket: int, step: Callable[[], bool], pause: float) -> None:
        if ticket != self._newest:
            return
        try:
            done = step()
        except FreezeError as error:
            # A failed freeze leaves the target running.
            with contextlib.suppress(FreezeError):
                self.freezer.thaw()
            self.keeper.failed(ticket, str(error))
            return
        if done:
            self.keeper.done(ticket)
        else:
            again = min(pause * 2, _SETTLE[1])
            self._loop.at(self._loop.now + pause, lambda: self._try(ticket, self.freezer.frozen, again))


class ThreadDriver(Driver):
    """Carries out orders with a freezer that is not quick, in a thread of its own, so that the loop never waits for it.

    Only the newest order matters: one that has not been begun when the next comes is left out.
    """

    __slots__ = ("_answers", "_changed", "_ended", "_loop", "_order", "_thread", "_wake", "freezer")

    def __init__(self, loop: Loop, freezer: Freezer) -> None:
        self._loop = loop
        self.freezer = freezer
        self._changed = threading.Condition()
        self._order: tuple[int, bool] | None = None  # ticket, and whether to freeze
        self._ended = False
        self._answers: deque[tuple[int, str | None]] = deque()  # ticket, and why it failed
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._wake, READ, self._on_answers)
        self._thread = threading.Thread(target=self._work, name="freezer", daemon=True)
        self._thread.start()

    def freeze(self, ticket: int) -> None:
        """Hand it to the thread."""
        self._hand_over(ticket, True)

    def thaw(self, ticket: int) -> None:
        """Likewise."""
        self._hand_over(ticket, False)

    def close(self) -> None:
        """Ends the thread, after the call that it is in; from then on the freezer is the caller's."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        self._loop.forget(self._wake)
        os.close(self._wake)

    def _hand_over(self, ticket: int, freeze: bool) -> None:
        with self._changed:
            self._order = ticket, freeze
            self._changed.notify()

    def _on_answers(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        while self._answers:
            ticket, reason = self._answers.popleft()
            if reason is None:
                self.keeper.done(ticket)
            else:
                self.keeper.failed(ticket, reason)

    # In the thread.

    def _work(self) -> None:
        while self._wait_for_news(None):
            with self._changed:
                order, self._order = self._order, None
            if self._ended or order is None:
                return
            ticket, freeze = order
            reason = None
            try:
                if not freeze:
                    self.freezer.thaw()
                elif not self._freeze():
                    continue
            except Exception as error:  # whatever it is, who waits must hear of it
                reason = str(error) if isinstance(error, FreezeError) else f"The freezer failed: {error!r}."
                if freeze:  # A failed freeze leaves the target running.
                    with contextlib.suppress(FreezeError):
                        self.freezer.thaw()
            self._answers.append((ticket, reason))
            os.eventfd_write(self._wake, 1)

    def _freeze(self) -> bool:
        """Whether it stands still; not, if another order has come before."""
        pause = _SETTLE[0]
        done = self.freezer.freeze()
        while not done:
            if self._wait_for_news(pause):
                return False
            pause = min(pause * 2, _SETTLE[1])
            done = self.freezer.frozen()
        return True

    def _wait_for_news(self, seconds: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._ended or self._order is not None, seconds)


def driver_for(loop: Loop, freezer: Freezer) -> LocalDriver | ThreadDriver:
    """The driver that suits a freezer."""
    return LocalDriver(loop, freezer) if freezer.quick else ThreadDriver(loop, freezer)


class DryFreezer(Freezer):
    """Freezes nothing, and reads what ``real`` reads: for ``dry-run`` and ``off``."""

    kind = "none"

    def __init__(self, real: Freezer) -> None:
        self._real = real
        self.where = real.where

    def freeze(self) -> bool:
        """Does nothing."""
        return True

    def thaw(self) -> None:
        """Does nothing."""

    def cpu_seconds(self) -> float:
        """The target's."""
        return self._real.cpu_seconds()
