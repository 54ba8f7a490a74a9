"""What the webhook counts, in Prometheus' text format."""

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

INJECTED, UNCHANGED, REFUSED, FAILED, MALFORMED = "injected", "unchanged", "refused", "failed", "malformed"
"""How a review ends; ``FAILED`` by a mistake of ours, and the pod is let through."""
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class Metrics:
    """Counters of one webhook; ``text`` is what Prometheus scrapes.

    ``connections`` and ``certificate_end`` are asked at each scrape.
    """

    def __init__(self, connections: Callable[[], float], certificate_end: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types there
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._reviews = Counter(
            "freeze_proxy_webhook_reviews_total", "Pods reviewed, by outcome", ["outcome"], registry=registry
        )
        self._warnings = Counter(
            "freeze_proxy_webhook_warnings_total", "Warnings given to whoever creates pods", registry=registry
        )
        self._seconds = Histogram(
            "freeze_proxy_webhook_review_seconds", "From a whole review to its answer",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        # What has not happened yet is there as well, as 0: a rate can be taken over its first time.
        for outcome in (INJECTED, UNCHANGED, REFUSED, FAILED, MALFORMED):
            self._reviews.labels(outcome)
        Gauge("freeze_proxy_webhook_connections", "Open connections for reviews", registry=registry).set_function(
            connections
        )
        Gauge(
            "freeze_proxy_webhook_certificate_end_seconds",
            "Unix time at which the certificate that is served ends; 0 without one",
            registry=registry,
        ).set_function(certificate_end)

    def reviewed(self, outcome: str, warnings: int, seconds: float) -> None:
        """A review was answered."""
        self._reviews.labels(outcome).inc()
        self._warnings.inc(warnings)
        self._seconds.observe(seconds)

    def malformed(self) -> None:
        """What came was no review."""
        self._reviews.labels(MALFORMED).inc()

    def text(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
