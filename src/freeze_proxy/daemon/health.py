"""What Kubernetes and Prometheus ask the daemon for, on a port of its own."""

import asyncio
from collections.abc import Awaitable, Callable

from freeze_proxy.control.server import Answer, Connection, Request, answer, error
from freeze_proxy.daemon.metrics import Metrics
from freeze_proxy.daemon.sidecars import Sidecars

_SHARE = 0.05
"""Of the daemon's time, the most that metrics may take: they cost milliseconds, and everybody may ask for them."""


class Health:
    """``/healthz``: it answers at all. ``/readyz``: it could freeze. ``/metrics``."""

    def __init__(self, metrics: Metrics, sidecars: Sidecars, troubles: Callable[[], Awaitable[list[str]]]) -> None:
        """``troubles``: sentences about what is not as it must be."""
        self._metrics = metrics
        self._sidecars = sidecars
        self._troubles = troubles
        self._next_text = 0.0
        self._text: asyncio.Task[tuple[bytes, str]] | None = None

    async def answer(self, request: Request) -> Answer:
        """To GET and HEAD."""
        if request.path not in ("/healthz", "/readyz", "/metrics"):
            return error(404, "There is nothing here but /healthz, /readyz and /metrics.")
        if request.method not in ("GET", "HEAD"):
            return error(405, f"{request.path} takes GET, not {request.method}.", "Allow: GET, HEAD\r\n")
        if request.path == "/metrics":
            if self._text is None:
                self._text = asyncio.create_task(self._written())
            return Answer(200, *await asyncio.shield(self._text))
        troubles = await self._troubles() if request.path == "/readyz" else []
        return answer({"status": "not ready", "why": troubles}, 503) if troubles else answer({"status": "ok"})

    async def _written(self) -> tuple[bytes, str]:
        """The metrics as they are when their turn has come: the same for all who have asked until then."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_text - loop.time())
        self._text = None
        began = loop.time()
        text, kind = self._metrics.text()
        text += await self._sidecars.text()
        self._next_text = loop.time() + (loop.time() - began) / _SHARE
        return text, kind

    def closed(self, connection: Connection) -> None:
        """Nothing is held for it."""
