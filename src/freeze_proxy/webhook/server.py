"""An HTTP server that strangers can reach: aiohttp's low-level one, and bounds around it.

Whoever connects has some seconds for each request, and there are ``MOST_CONNECTIONS`` at most: beyond that, the one
that has been idle for longest is cut, so that a crowd of silent connections keeps nobody out.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

MOST_CONNECTIONS = 512
_IDLE = 120.0
"""Seconds for which a connection may wait for its next request: longer than the API server's 90."""
_HANDSHAKE = 5.0
_LAST_ANSWERS = 5.0
_log = logging.getLogger(__name__)
_unheard = logging.getLogger(__name__ + ".strangers")
"""aiohttp's own: it has a traceback for whatever strangers send that is no HTTP. What fails here is logged here."""
_unheard.disabled = True
_SWEEPS = 10
"""So many looks, while a request may take to come, at what takes longer."""


class TooLarge(Exception):
    """A body is larger than it may be."""


class Server:
    """Answers requests by ``handler`` until ``close``.

    ``complete_within``: seconds from a request's first byte, or a connection's beginning, to the end of its head.
    """

    def __init__(self, handler: Handler, complete_within: float) -> None:
        self._complete_within = complete_within
        self._web = web.Server(
            self._counted(handler),
            access_log=None,
            logger=_unheard,
            auto_decompress=False,
            keepalive_timeout=_IDLE,
            lingering_time=1.0,
        )
        self._connections: dict[asyncio.BaseTransport, _Connection] = {}
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._leaving = False

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listen there, and say where that is. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: _Connection(self._web(), self._connections),
            host or None,
            port,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE if tls else None,
        )
        self._sweeping = asyncio.create_task(self._sweep())
        address: tuple[str, int] = self._listening.sockets[0].getsockname()[:2]
        return address

    def leave(self) -> None:
        """Answer as before, but each connection's next answer is its last: who comes again is to go elsewhere."""
        self._leaving = True

    async def close(self) -> None:
        """Accept nobody any more, let requests under way end, within some seconds, and leave."""
        if self._listening is not None:
            self._listening.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._web.pre_shutdown()  # idle connections
        await self._web.shutdown(_LAST_ANSWERS)

    def _counted(self, handler: Handler) -> Handler:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            connection = self._connections.get(request.transport) if request.transport else None
            if connection is None:
                return await handler(request)
            connection.busy, connection.since = True, None
            try:
                try:
                    answer = await handler(request)
                except Exception:
                    _log.exception("a request has failed", extra={"facts": {"path": request.path[:200]}})
                    answer = sentence(500, "This request has failed; the log has the details.")
                if self._leaving:
                    answer.force_close()
                return answer
            finally:
                connection.busy, connection.quiet = False, asyncio.get_running_loop().time()

        return handle

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._complete_within / _SWEEPS)
            late = loop.time() - self._complete_within
            for connection in list(self._connections.values()):
                if connection.since is not None and connection.since < late:
                    connection.abort()


class _Connection(asyncio.Protocol):
    """Stands around aiohttp's protocol and keeps the time.

    ``since``: when a request was begun that is not complete yet; ``quiet``: when the last one was answered.
    """

    def __init__(self, inner: asyncio.Protocol, others: "dict[asyncio.BaseTransport, _Connection]") -> None:
        self._inner = inner
        self._others = others
        self._transport: asyncio.Transport | None = None
        self.busy = False
        self.since: float | None = None
        self.quiet = 0.0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.since = self.quiet = asyncio.get_running_loop().time()
        if len(self._others) >= MOST_CONNECTIONS:
            idle = [other for other in self._others.values() if not other.busy]
            (min(idle, key=lambda other: other.quiet) if idle else self).abort()
        self._others[transport] = self
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.since is None and not self.busy:
            self.since = asyncio.get_running_loop().time()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._others.pop(self._transport, None)
        self._inner.connection_lost(exc)


async def body(request: web.BaseRequest, longest: int, complete_within: float) -> bytes:
    """The request's body. Raises ``TooLarge``, and ``TimeoutError`` if it does not come within so many seconds."""
    if (request.content_length or 0) > longest:
        raise TooLarge
    parts, length = [], 0
    async with asyncio.timeout(complete_within):
        async for part in request.content.iter_any():
            length += len(part)
            if length > longest:
                raise TooLarge
            parts.append(part)
    return b"".join(parts)


def sentence(status: int, text: str, **headers: str) -> web.Response:
    """An answer to people, after which the connection is closed: what is left of the request is not read."""
    response = web.Response(status=status, text=text + "\n", headers=headers)
    response.force_close()
    return response
