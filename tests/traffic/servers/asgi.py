"""The same as ASGI, for uvicorn: all but trailers and ``Connection: close``, which its HTTP/1.1 leaves to itself."""

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.traffic.servers.http_server import blocks

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    async def body() -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def head(status: int, *fields: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": fields})

    async def part(data: bytes = b"", more: bool = False) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    async def say(data: bytes) -> None:
        await head(200, (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(data)))
        await part(data)

    name, _, argument = scope["path"].lstrip("/").partition("/")
    number = int(argument) if argument.isdigit() else 0
    if name == "upload":
        size = crc = 0
        async for data in body():
            size += len(data)
            crc = zlib.crc32(data, crc)
        await say(f"{size} bytes, {crc:08x}\n".encode())
    elif name == "echo":
        whole = b"".join([data async for data in body()])
        digest = hashlib.sha256(whole).hexdigest()
        told = dict(scope["headers"]).get(b"x-test", b"-").decode()
        path = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        await say(f"{scope['method']} {path}\nX-Test: {told}\n{len(whole)} {digest}\n".encode())
    elif name == "fixed":
        await say(b"".join(blocks(number)))
    elif name == "download":
        await head(200, (b"content-length", b"%d" % number))
        for block in blocks(number):
            await part(block, more=True)
        await part()
    elif name == "slow":
        await head(200, (b"content-length", b"13"))
        await part(b"first\n", more=True)
        await asyncio.sleep(0.3)
        await part(b"second\n")
    elif name == "chunked":
        await head(200)
        for data in (b"one", b"two" * 1000, b"three"):
            await part(data, more=True)
        await part()
    elif name == "sse":
        await head(200, (b"content-type", b"text/event-stream"))
        for event in range(3):
            await part(b"data: %d\n\n" % event, more=True)
            await asyncio.sleep(number / 1000)
        await part()
    elif name in ("204", "304"):
        await head(int(name))
        await part()
    else:
        await head(404, (b"content-length", b"0"))
        await part()
