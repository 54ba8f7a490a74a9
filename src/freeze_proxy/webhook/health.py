"""What Kubernetes and Prometheus ask the webhook for, on a port of its own, without TLS."""

from collections.abc import Callable

from aiohttp import web

from freeze_proxy.webhook.metrics import Metrics
from freeze_proxy.webhook.server import sentence


class Health:
    """``/healthz``: it answers at all. ``/readyz``: it could review pods. ``/metrics``."""

    def __init__(self, metrics: Metrics, troubles: Callable[[], list[str]]) -> None:
        """``troubles``: sentences about what is not as it must be."""
        self._metrics = metrics
        self._troubles = troubles

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """To GET and HEAD."""
        if request.path not in ("/healthz", "/readyz", "/metrics"):
            return sentence(404, "There is nothing here but /healthz, /readyz and /metrics.")
        if request.method not in ("GET", "HEAD"):
            return sentence(405, f"{request.path} takes GET, not {request.method[:20]}.", Allow="GET, HEAD")
        if request.path == "/metrics":
            text, kind = self._metrics.text()
            return web.Response(body=text, headers={"Content-Type": kind})
        troubles = self._troubles() if request.path == "/readyz" else []
        if troubles:
            return web.json_response({"status": "not ready", "why": troubles}, status=503)
        return web.json_response({"status": "ok"})
