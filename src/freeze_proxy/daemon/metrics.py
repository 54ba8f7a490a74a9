"""What the daemon counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from freeze_proxy.daemon import freezing, identity
from freeze_proxy.freezers import FreezeError, Gone

_QUICK = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_SLOW = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0)


class Metrics:
    """Counters of one daemon; ``text`` is what Prometheus scrapes."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types there
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        name = "freeze_proxy_"
        seconds = Histogram(
            name + "order_seconds", "From a request's arrival to its answer, of those carried out", ["order"],
            buckets=_QUICK, registry=registry,
        )  # fmt: skip
        self._seconds = {order: seconds.labels(order) for order in ("freeze", "thaw")}
        self._failures = Counter(
            name + "failures_total", "Freezes and thaws of a container that failed", ["what", "reason"],
            registry=registry,
        )  # fmt: skip
        self._thawed = Counter(name + "thawed_total", "Containers thawed, and why", ["why"], registry=registry)
        self._refused = Counter(name + "refused_total", "Requests not carried out, by status", ["status"],
                                registry=registry)  # fmt: skip
        self._meddled = Counter(name + "meddled_total", "Containers found thawed by somebody else", registry=registry)
        self._reviews = Histogram(
            name + "review_seconds", "Token reviews, by outcome", ["outcome"], buckets=_SLOW, registry=registry
        )
        self._hits = Counter(name + "token_hits_total", "Tokens that were known, without a review", registry=registry)
        # What has not happened yet is there as well, as 0: a rate can be taken over its first time.
        for what in ("freeze", "thaw"):
            for reason in ("gone", "slow", "error"):
                self._failures.labels(what, reason)
        whys = (freezing.ASKED, freezing.LEASE, freezing.ENDING, freezing.UNCLAIMED, freezing.UNDONE, freezing.SHUTDOWN)
        thawed = {why: self._thawed.labels(why) for why in whys}
        for status in (400, 403, 404, 405, 409, 503, 504):
            self._refused.labels(str(status))
        for outcome in (identity.ACCEPTED, identity.REFUSED, identity.UNREACHABLE):
            self._reviews.labels(outcome)
        self.identity = _OfIdentity(self._reviews, self._hits)
        self.freezing = _OfFreezing(thawed, self._failures, self._meddled)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge, read at each scrape."""
        Gauge("freeze_proxy_" + name, about, registry=self._registry).set_function(value)

    def carried_out(self, order: str, seconds: float) -> None:
        """A ``freeze`` or ``thaw`` was answered with 200."""
        self._seconds[order].observe(seconds)

    def refused(self, status: int) -> None:
        """A request was answered with something else."""
        self._refused.labels(str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _OfIdentity(identity.Observer):
    def __init__(self, reviews: Histogram, hits: Counter) -> None:
        self._reviews = reviews
        self._hits = hits

    def remembered(self) -> None:
        self._hits.inc()

    def reviewed(self, outcome: str, seconds: float) -> None:
        self._reviews.labels(outcome).observe(seconds)


class _OfFreezing(freezing.Observer):
    def __init__(self, thawed: dict[str, Counter], failures: Counter, meddled: Counter) -> None:
        self._thawed = thawed
        self._failures = failures
        self._meddled = meddled

    def thawed(self, why: str) -> None:
        self._thawed[why].inc()

    def failed(self, what: str, error: FreezeError) -> None:
        reason = "gone" if isinstance(error, Gone) else "slow" if isinstance(error, freezing.TooSlow) else "error"
        self._failures.labels(what, reason).inc()

    def meddled(self) -> None:
        self._meddled.inc()
