"""The numbers of a run."""

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.histogram import Histogram
from freeze_proxy.keeper import Witness


class Ledger(Witness):
    """Keeps the numbers of one target. Times are of the loop's clock; CPU times are read at each freeze and thaw.

    *Idle* CPU time is what the target used between a freeze and the next thaw: none, where it stands still; what a
    freeze would have saved, under ``dry-run``. All else, the grace included, is *serving*.
    """

    def __init__(self, freezer: Freezer, now: float) -> None:
        self._freezer = freezer
        self._began = now
        self._frozen_at: float | None = None
        self._cpu = self._cpu_now()
        self._idle_counted = False
        self.freezes = 0
        self.refusals = 0
        self.failures = 0
        self.frozen_seconds = 0.0
        self.cpu_serving = 0.0
        self.cpu_idle = 0.0
        self.thaws = Histogram()

    def start(self, now: float) -> None:
        """The server is ready: the numbers begin here."""
        self._began = now
        self._cpu_since()

    def frozen(self, at: float, took: float) -> None:
        """Counts the freeze."""
        self.freezes += 1
        self._frozen_at = at
        self.cpu_serving += self._cpu_since()

    def thawing(self) -> None:
        """Reads the CPU time before the target runs, where that takes no longer than it is worth."""
        if self._frozen_at is not None and self._freezer.cpu_is_quick:
            self.cpu_idle += self._cpu_since()
            self._idle_counted = True

    def thawed(self, at: float, waited: float | None) -> None:
        """Adds up the time that it stood still, and what an exchange had to wait for the thaw."""
        self.count_frozen(at)
        self._frozen_at = None
        self._idle_counted = False
        if waited is not None:
            self.thaws.add(waited)

    def failed(self, what: str, reason: str) -> None:
        """Counts the failure."""
        self.failures += 1

    def refused(self, exchanges: int) -> None:
        """Counts the exchanges that got 503."""
        self.refusals += exchanges

    def count_frozen(self, now: float) -> None:
        """Add what is not counted yet of the current freeze or, where there is none, of the serving."""
        if self._frozen_at is not None:
            self.frozen_seconds += max(0.0, now - self._frozen_at)
            self._frozen_at = now
            if not self._idle_counted:
                self.cpu_idle += self._cpu_since()
        else:
            self.cpu_serving += self._cpu_since()

    def share_frozen(self, now: float) -> float:
        """Share of the time since the beginning that it stood still, from 0 to 1."""
        current = now - self._frozen_at if self._frozen_at is not None else 0.0
        return min(1.0, (self.frozen_seconds + current) / max(now - self._began, 1e-9))

    def report(self, now: float, requests: int) -> dict[str, object]:
        """All numbers, as ``--report`` writes them."""
        self.count_frozen(now)
        return {
            "requests": requests,
            "freezes": self.freezes,
            "refused": self.refusals,
            "failures": self.failures,
            "wall_seconds": round(now - self._began, 6),
            "frozen_seconds": round(self.frozen_seconds, 6),
            "share_frozen": round(self.share_frozen(now), 6),
            "cpu_seconds": {"serving": round(self.cpu_serving, 6), "idle": round(self.cpu_idle, 6)},
            "thaw": {
                "count": self.thaws.count,
                "p50_us": _micros(self.thaws.quantile(0.5)),
                "p99_us": _micros(self.thaws.quantile(0.99)),
                "max_us": _micros(self.thaws.max) if self.thaws.count else None,
                "histogram": self.thaws.raw(),
            },
        }

    def _cpu_since(self) -> float:
        before, self._cpu = self._cpu, self._cpu_now()
        return max(0.0, self._cpu - before)

    def _cpu_now(self) -> float:
        try:
            return self._freezer.cpu_seconds()
        except FreezeError:
            return getattr(self, "_cpu", 0.0)  # The target has just ended; what it used last is not known any more.


def _micros(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 1)
