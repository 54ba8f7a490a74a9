"""What is counted of one ambient pod, in the words of the sidecars, so that one query fits both."""

import time
from bisect import bisect_left

from freeze_proxy.control.messages import COUNTS, SECONDS, WAIT_BOUNDS
from freeze_proxy.keeper import Witness

_OF_REQUESTS = ("requests", "refused", "in_flight_seconds")


class PodNumbers(Witness):
    """``counts``, ``seconds``, ``waits`` as ``sidecars.Numbers`` has them; of requests none where none is seen."""

    __slots__ = ("_frozen_at", "counts", "seconds", "waits")

    def __init__(self) -> None:
        self.counts = {name: 0 for name in COUNTS if name not in _OF_REQUESTS}
        self.seconds = {name: 0.0 for name in SECONDS if name not in _OF_REQUESTS}
        self.seconds["started"] = time.time()
        self.waits = [0] * (len(WAIT_BOUNDS) + 1)
        self._frozen_at: float | None = None

    def frozen(self, at: float, took: float) -> None:
        """See ``Witness``."""
        self.counts["freezes"] += 1
        self._frozen_at = at

    def thawed(self, at: float, waited: float | None) -> None:
        """See ``Witness``."""
        if self._frozen_at is not None:
            self.counts["thaws"] += 1
            self.seconds["frozen_seconds"] += max(0.0, at - self._frozen_at)
            self._frozen_at = None
        if waited is not None:
            self.seconds["waited_seconds"] += waited
            self.waits[bisect_left(WAIT_BOUNDS, waited)] += 1

    def requests(self, count: int, in_flight_seconds: float) -> None:
        """Where they are seen: how many there have been, and for how long in all they were in flight."""
        self.counts["requests"] = count
        self.seconds["in_flight_seconds"] = in_flight_seconds

    def failed(self, what: str, reason: str) -> None:
        """See ``Witness``."""
        self.counts[f"failed_{what}s"] += 1
