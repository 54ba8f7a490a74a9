"""Requests to a Knative Service as an ingress sends them: HTTP/1.1, HTTP/2, gRPC, WebSocket, events."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from websockets.sync.client import ClientConnection, connect

from tests.cluster.knative import Route

_HEALTH = "/grpc.health.v1.Health"
SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}, encoded."""


@dataclass
class Client:
    """Speaks to one service."""

    route: Route

    @property
    def url(self) -> str:
        return f"http://{self.route.address}:{self.route.port}"

    def http(self, http2: bool = False) -> httpx.Client:
        """A client with connections of its own; HTTP/2 with prior knowledge."""
        return httpx.Client(**self._settings(http2))

    def _settings(self, http2: bool) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "headers": self.route.headers,
            "http1": not http2,
            "http2": http2,
            "timeout": 60,
            "trust_env": False,
        }

    def streams(self, count: int, path: str = "/", **parameters: object) -> list[httpx.Response]:
        """So many requests side by side on one HTTP/2 connection.

        In one thread: httpx may send a stream's number after a higher one where threads share a connection.
        """

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(**self._settings(http2=True)) as client:
                params = {name: str(value) for name, value in parameters.items()}
                return await asyncio.gather(*(client.get(path, params=params) for _ in range(count)))

        return asyncio.run(ask())

    def get(self, path: str = "/", **parameters: object) -> httpx.Response:
        """One request on a connection of its own; ``httpx.HTTPStatusError`` unless it was answered well."""
        with self.http() as client:
            answer = client.get(path, params={name: str(value) for name, value in parameters.items()})
        answer.raise_for_status()
        return answer

    @contextlib.contextmanager
    def talk(self) -> Iterator[ClientConnection]:
        """A WebSocket."""
        headers = {name: value for name, value in self.route.headers.items() if name != "Host"}
        with (
            socket.create_connection((self.route.address, self.route.port), 10) as connection,
            connect(f"ws://{self.route.headers['Host']}/talk", sock=connection, additional_headers=headers) as made,
        ):
            yield made

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """For gRPC."""
        options = [("grpc.default_authority", self.route.headers["Host"])]
        with grpc.insecure_channel(f"{self.route.address}:{self.route.port}", options=options) as channel:
            yield channel

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self.route.headers.items() if name != "Host"]

    def check(self, channel: grpc.Channel) -> bytes:
        """A call: the server's health, encoded."""
        answer: bytes = channel.unary_unary(f"{_HEALTH}/Check")(b"", timeout=30, metadata=self._metadata)
        return answer

    def watch(self, channel: grpc.Channel) -> Iterator[bytes]:
        """A stream: the server's health whenever it changes."""
        stream: Iterator[bytes] = channel.unary_stream(f"{_HEALTH}/Watch")(b"", timeout=60, metadata=self._metadata)
        return stream


def timed(client: httpx.Client, path: str = "/") -> float:
    """Seconds that a request took."""
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - began
