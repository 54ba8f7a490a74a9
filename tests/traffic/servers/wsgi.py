"""The same as WSGI, for gunicorn: all but trailers and ``Connection: close``."""

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.traffic.servers.http_server import BLOCK, blocks

Start = Callable[[str, list[tuple[str, str]]], object]


def _parts(environ: dict[str, Any]) -> Iterator[bytes]:
    while part := environ["wsgi.input"].read(BLOCK):
        yield part


def _slow() -> Iterator[bytes]:
    yield b"first\n"
    time.sleep(0.3)
    yield b"second\n"


def _events(pause: float) -> Iterator[bytes]:
    for event in range(3):
        yield b"data: %d\n\n" % event
        time.sleep(pause)


def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    def say(data: bytes) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
        return [data]

    name, _, argument = environ["PATH_INFO"].lstrip("/").partition("/")
    number = int(argument) if argument.isdigit() else 0
    if name == "upload":
        size = crc = 0
        for part in _parts(environ):
            size += len(part)
            crc = zlib.crc32(part, crc)
        return say(f"{size} bytes, {crc:08x}\n".encode())
    if name == "echo":
        body = b"".join(_parts(environ))
        told = environ.get("HTTP_X_TEST", "-")
        digest = hashlib.sha256(body).hexdigest()
        return say(f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}\nX-Test: {told}\n{len(body)} {digest}\n".encode())
    if name == "fixed":
        return say(b"".join(blocks(number)))
    if name == "download":
        start("200 OK", [("Content-Length", str(number))])
        return blocks(number)
    if name == "slow":
        start("200 OK", [("Content-Length", "13")])
        return _slow()
    if name == "chunked":
        start("200 OK", [])
        return [b"one", b"two" * 1000, b"three"]
    if name == "sse":
        start("200 OK", [("Content-Type", "text/event-stream")])
        return _events(number / 1000)
    if name in ("204", "304"):
        start(f"{name} Nothing", [])
        return []
    start("404 Not Found", [("Content-Length", "0")])
    return []
