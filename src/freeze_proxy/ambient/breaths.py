"""When a frozen server is let run for a moment, for the sake of the connections that clients keep open. Pure.

A server ends idle connections after a time of its own. Were it frozen then, it would find that time over at the thaw,
and reset the very connection on which a request has just come. So it is let run now and then, to end them in its time:
the longer nothing has come, the more seldom. What it has once kept open for so long, it keeps open for as long again:
until then it need not run.
"""

FIRST = 1.0
"""Seconds frozen until the first."""
LATER = 1 / 8
"""Of the time since the last packet."""


class Breaths:
    """Of one server. Times are seconds since the last packet."""

    __slots__ = ("_kept_for",)

    def __init__(self) -> None:
        self._kept_for = 0.0

    def kept(self, quiet: float) -> None:
        """It has just run, and has not ended a connection on which nothing has come for so long."""
        self._kept_for = max(self._kept_for, quiet)

    def after(self, quiet: float) -> float:
        """How long it may stay frozen from now on."""
        return max(FIRST, quiet * LATER, self._kept_for - quiet)
