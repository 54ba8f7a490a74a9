"""What a sidecar counts: for the daemon as JSON, and for its own /metrics in Prometheus' text format 0.0.4.

All is cumulative since ``started``, by which a restart is seen. The JSON stays the same while the target stands still
and nothing comes, so that an idle pod has nothing to say: a freeze counts in seconds once it is over.
"""

import time

from freeze_proxy.control.messages import WAIT_BOUNDS
from freeze_proxy.keeper import Witness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from freeze_proxy.keeper import Keeper


class Numbers(Witness):
    """Counts; ``now`` is the monotonic clock's. Set ``keeper`` before anything is read."""

    __slots__ = (
        "_frozen_since",
        "buckets",
        "failures",
        "freezes",
        "frozen_seconds",
        "keeper",
        "refusals",
        "started",
        "thaws",
        "waited_seconds",
    )

    keeper: "Keeper"

    def __init__(self, now: float) -> None:
        self.started = time.time() - (time.monotonic() - now)
        self.freezes = self.thaws = self.refusals = 0
        self.failures = {"freeze": 0, "thaw": 0}
        self.frozen_seconds = self.waited_seconds = 0.0
        self.buckets = [0] * (len(WAIT_BOUNDS) + 1)
        self._frozen_since: float | None = None

    def frozen(self, at: float, took: float) -> None:
        """A freeze has been carried out."""
        self.freezes += 1
        self._frozen_since = at

    def thawed(self, at: float, waited: float | None) -> None:
        """A thaw has been carried out."""
        self.thaws += 1
        if self._frozen_since is not None:
            self.frozen_seconds += max(0.0, at - self._frozen_since)
            self._frozen_since = None
        if waited is not None:
            self.waited_seconds += waited
            place = 0
            while place < len(WAIT_BOUNDS) and waited > WAIT_BOUNDS[place]:
                place += 1
            self.buckets[place] += 1

    def failed(self, what: str, reason: str) -> None:
        """An order has failed."""
        self.failures[what] += 1

    def refused(self, exchanges: int) -> None:
        """Exchanges are being answered 503."""
        self.refusals += exchanges

    def as_json(self) -> bytes:
        """What is told the daemon: one compact object, with the members that ``control.messages`` has."""
        busy = self.keeper.in_flight_seconds()
        return (
            f'{{"started":{self.started:.3f},"requests":{self.keeper.requests},"in_flight_seconds":{busy:.3f},'
            f'"freezes":{self.freezes},"thaws":{self.thaws},"failed_freezes":{self.failures["freeze"]},'
            f'"failed_thaws":{self.failures["thaw"]},"refused":{self.refusals},'
            f'"frozen_seconds":{self.frozen_seconds:.3f},"waited_seconds":{self.waited_seconds:.6f},'
            f'"waits":[{",".join(map(str, self.buckets))}]}}'
        ).encode()

    def as_text(self) -> str:
        """The body of /metrics."""
        lines: list[str] = []
        for name, kind, value in (
            ("start_time_seconds", "gauge", f"{self.started:.3f}"),
            ("requests_total", "counter", str(self.keeper.requests)),
            ("in_flight", "gauge", str(self.keeper.gate.in_flight)),
            ("in_flight_seconds_total", "counter", f"{self.keeper.in_flight_seconds():.3f}"),
            ("freezes_total", "counter", str(self.freezes)),
            ("thaws_total", "counter", str(self.thaws)),
            ("refused_total", "counter", str(self.refusals)),
            ("frozen_seconds_total", "counter", f"{self.frozen_seconds:.3f}"),
        ):
            lines += (f"# TYPE freeze_proxy_{name} {kind}", f"freeze_proxy_{name} {value}")
        lines.append("# TYPE freeze_proxy_failed_orders_total counter")
        lines += (f'freeze_proxy_failed_orders_total{{order="{what}"}} {n}' for what, n in self.failures.items())
        lines.append("# TYPE freeze_proxy_wait_seconds histogram")
        count = 0
        for bound, more in zip((*map(str, WAIT_BOUNDS), "+Inf"), self.buckets, strict=True):
            count += more
            lines.append(f'freeze_proxy_wait_seconds_bucket{{le="{bound}"}} {count}')
        lines += (
            f"freeze_proxy_wait_seconds_sum {self.waited_seconds:.6f}",
            f"freeze_proxy_wait_seconds_count {count}",
        )
        return "\n".join(lines) + "\n"
