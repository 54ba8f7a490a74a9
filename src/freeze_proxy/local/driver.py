"""Carrying out the gate's orders with a freezer of this machine."""

import contextlib
from collections.abc import Callable

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.keeper import Driver
from freeze_proxy.loop import Loop

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
