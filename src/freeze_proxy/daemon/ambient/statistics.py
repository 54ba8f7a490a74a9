"""Asking a pod's queue-proxy for its statistics, as Knative's autoscaler does each second."""

import asyncio

import httpx2
from google.protobuf.message import DecodeError

from freeze_proxy.daemon.ambient.idle import Report
from freeze_proxy.protobuf import Table, classes
from freeze_proxy.settings import written

PORT = 9090
"""``http-autometric``."""
KIND = "application/protobuf"
PATIENCE = 1.0
"""Seconds for one answer."""
_LONGEST = 1024
"""Bytes of an answer: a pod's name and six numbers. Knative's own scraper reads no more than 340."""
_AT_ONCE = 8
"""Questions under way. Others wait for their turn as long as it takes: an answer that comes late is as good."""

TABLE: Table = {
    "Stat": {
        "average_concurrent_requests": (2, "double"),
        "request_count": (4, "double"),
        "process_uptime": (6, "double"),
    }
}
_Stat = classes("freeze_proxy.queue", TABLE)["Stat"]


class Silent(Exception):
    """No statistics could be had; the text is a sentence."""


def read(body: bytes) -> Report:
    """The report in an answer. Raises ``ValueError``."""
    stat = _Stat()
    try:
        stat.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("It is no statistics of queue-proxy.") from error
    return Report(stat.average_concurrent_requests, stat.request_count, stat.process_uptime)


class Statistics:
    """Asks those who are asked for; idle connections are kept for a few of them."""

    def __init__(self) -> None:
        limits = httpx2.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE, keepalive_expiry=2.0)
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(trust_env=False, limits=limits),
            headers={"Accept": KIND, "User-Agent": "freeze-proxy"},
            timeout=httpx2.Timeout(PATIENCE),
            follow_redirects=False,
            trust_env=False,
        )

    async def of(self, ip: str, port: int = PORT) -> Report:
        """The newest report of the queue-proxy at this address. Raises ``Silent``."""
        where = written((ip, port))
        try:
            async with self._turn, self._client.stream("GET", f"http://{where}/metrics") as answer:
                if answer.status_code != 200 or answer.headers.get("content-type", "").partition(";")[0] != KIND:
                    raise Silent(f"{where} answers {answer.status_code}, and no statistics of queue-proxy.")
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _LONGEST:
                        raise Silent(f"{where} answers with more than {_LONGEST} bytes.")
            return read(body)
        except httpx2.HTTPError as error:
            raise Silent(f"{where} does not answer: {str(error) or type(error).__name__}.") from error
        except ValueError as error:
            raise Silent(f"{where} answers something else. {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
