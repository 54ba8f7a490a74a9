"""The bounds of the HTTP server, in this process and without TLS: what a crowd does to it, and how it leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from freeze_proxy.webhook.server import MOST_CONNECTIONS, Server

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, int]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/wrong":
            raise ValueError("a mistake")
        return web.Response(text="here")

    server = Server(answer, 10.0)
    yield server, (await server.start("127.0.0.1", 0))[1]
    await server.close()


async def ask(stream: Stream, request: bytes = ASK) -> bytes:
    """The answer's head, and its body; nothing if the connection has ended."""
    reader, writer = stream
    writer.write(request)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return head + await reader.readexactly(length)
    return b""


def test_a_crowd_of_silent_connections_keeps_nobody_out() -> None:
    async def story() -> None:
        async with serving() as (server, port):
            first = await asyncio.open_connection("127.0.0.1", port)
            assert b"here" in await ask(first)
            crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS + 50)]
            late = await asyncio.open_connection("127.0.0.1", port)
            assert b"here" in await ask(late)
            assert server.connections <= MOST_CONNECTIONS
            # Those that were idle for longest had to go.
            assert await ask(first) == b""
            assert await ask(crowd[0]) == b""
            assert b"here" in await ask(crowd[-1])
            for _, writer in crowd:
                writer.close()

    asyncio.run(story())


def test_who_comes_while_it_leaves_is_answered_and_sent_away() -> None:
    async def story() -> None:
        async with serving() as (server, port):
            idle, busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            assert b"close" not in await ask(busy)
            server.leave()
            last = await ask(busy)
            assert b"here" in last
            assert b"Connection: close" in last
            assert await ask(busy) == b""
            began = asyncio.get_running_loop().time()
            await server.close()
            assert asyncio.get_running_loop().time() - began < 2  # it does not wait for those that say nothing
            assert await ask(idle) == b""

    asyncio.run(story())


def test_a_mistake_of_ours_is_an_answer_and_the_next_request_goes_through() -> None:
    async def story() -> None:
        async with serving() as (_, port):
            stream = await asyncio.open_connection("127.0.0.1", port)
            failed = await ask(stream, ASK.replace(b"/ ", b"/wrong "))
            assert b" 500 " in failed.splitlines()[0]
            assert b"mistake" not in failed
            again = await asyncio.open_connection("127.0.0.1", port)
            assert b"here" in await ask(again)

    asyncio.run(story())
