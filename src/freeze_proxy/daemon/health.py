"""What Kubernetes and Prometheus ask the daemon for, on a port of its own."""

from collections.abc import Awaitable, Callable

from freeze_proxy.control.server import Answer, Connection, Request, answer, error
from freeze_proxy.daemon.metrics import Metrics


class Health:
    """``/healthz``: it answers at all. ``/readyz``: it could freeze. ``/metrics``."""

    def __init__(self, metrics: Metrics, troubles: Callable[[], Awaitable[list[str]]]) -> None:
        """``troubles``: sentences about what is not as it must be."""
        self._metrics = metrics
        self._troubles = troubles

    async def answer(self, request: Request) -> Answer:
        """To GET and HEAD."""
        if request.path not in ("/healthz", "/readyz", "/metrics"):
            return error(404, "There is nothing here but /healthz, /readyz and /metrics.")
        if request.method not in ("GET", "HEAD"):
            return error(405, f"{request.path} takes GET, not {request.method}.", "Allow: GET, HEAD\r\n")
        if request.path == "/metrics":
            return Answer(200, *self._metrics.text())
        troubles = await self._troubles() if request.path == "/readyz" else []
        return answer({"status": "not ready", "why": troubles}, 503) if troubles else answer({"status": "ok"})

    def closed(self, connection: Connection) -> None:
        """Nothing is held for it."""
