"""Asking queue-proxy, and those who are no queue-proxy."""

import asyncio
from collections.abc import Callable

import pytest

from freeze_proxy.daemon.ambient.idle import Report
from freeze_proxy.daemon.ambient.statistics import KIND, Silent, Statistics

HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {KIND}\r\n"
STAT = b"\x11" + b"\0" * 7 + b"@" + b"\x31" + b"\0" * 6 + b"\xf0\x3f"  # concurrency 2, uptime 1


def asked(answer: bytes, then: Callable[[asyncio.StreamWriter], None] = asyncio.StreamWriter.close) -> Report:
    async def ask() -> Report:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            assert request.startswith(b"GET /metrics HTTP/1.1\r\n")
            assert f"\r\naccept: {KIND}\r\n".encode() in request.lower()
            writer.write(answer)
            then(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        statistics = Statistics()
        try:
            return await statistics.of("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            await statistics.close()
            server.close()

    return asyncio.run(ask())


def body(content: bytes) -> bytes:
    return f"{HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_a_report() -> None:
    assert asked(body(STAT)) == Report(2.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (body(b"<html>"), "something else"),
        (body(b"x" * 2000), "more than 1024 bytes"),
        (f"{HEAD}\r\n".encode() + b"\x0a\xff" * 100_000, "more than 1024 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "no statistics"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "answers 302"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "answers 503"),
        (b"", "does not answer"),
        (b"nonsense\r\n\r\n", "does not answer"),
    ],
)
def test_what_is_none(answer: bytes, why: str) -> None:
    with pytest.raises(Silent, match=why):
        asked(answer)


def test_one_who_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freeze_proxy.daemon.ambient.statistics.PATIENCE", 0.1)
    with pytest.raises(Silent, match="does not answer"):
        asked(b"HTTP/1.1 200 OK\r\n", lambda _: None)


def test_nobody_there() -> None:
    async def ask() -> None:
        statistics = Statistics()
        try:
            await statistics.of("127.0.0.1", 1)
        finally:
            await statistics.close()

    with pytest.raises(Silent, match="does not answer"):
        asyncio.run(ask())
