"""A gibibyte each way, in a pod an eighth of it: every byte arrives, and the relay keeps none of them."""

import re
import subprocess
import zlib
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.needs import need_program
from tests.support.raw import RawClient, request
from tests.support.running import Running
from tests.support.servers import http_server, nginx, nginx_h2c
from tests.support.starting import Start
from tests.traffic.servers.http_server import blocks

GIB = 1 << 30
MEMORY = 64 << 20
"""Bytes of memory that freeze-proxy may have used at most, Python and all."""


@pytest.fixture
def size(start: Start) -> int:
    return GIB if start is Running else GIB // 8


@lru_cache
def crc_of(size: int) -> int:
    value = 0
    for block in blocks(size):
        value = zlib.crc32(block, value)
    return value


def test_download(start: Start, tmp_path: Path, size: int) -> None:
    with start(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        running.await_frozen()
        client = RawClient(running.port, running.host)
        client.socket.sendall(request("GET", f"/download/{size}"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.socket.recv(1)
        buffer = bytearray(1 << 20)
        view = memoryview(buffer)
        there = got = 0
        while there < size:
            count = client.socket.recv_into(buffer)
            assert count, f"The download ended after {there} bytes."
            got = zlib.crc32(view[:count], got)
            there += count
        assert got == crc_of(size)
        assert b" 200 OK" in client.exchange(request("GET", "/echo"))  # nothing came after it
        client.close()
        assert running.relay_memory() < MEMORY
        running.await_frozen()


def test_upload(start: Start, tmp_path: Path, size: int) -> None:
    with start(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        running.await_frozen()
        client = RawClient(running.port, running.host)
        client.socket.settimeout(30)
        client.socket.sendall(request("POST", "/upload", f"Content-Length: {size}"))
        for block in blocks(size):
            client.socket.sendall(block)
        assert client.read_response("POST").endswith(f"{size} bytes, {crc_of(size):08x}\n".encode())
        client.close()
        assert running.relay_memory() < MEMORY
        running.await_frozen()


def test_chunked_upload(start: Start, tmp_path: Path, size: int) -> None:
    size //= 4
    with start(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        client = RawClient(running.port, running.host)
        client.socket.settimeout(30)
        client.socket.sendall(request("POST", "/upload", "Transfer-Encoding: chunked"))
        crc = 0
        for block in blocks(size):
            crc = zlib.crc32(block, crc)
            client.socket.sendall(b"%x\r\n%b\r\n" % (len(block), block))
        client.socket.sendall(b"0\r\n\r\n")
        assert client.read_response("POST").endswith(f"{size} bytes, {crc:08x}\n".encode())
        client.close()
        assert running.relay_memory() < MEMORY
        running.await_frozen()


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_download_by_curl_from_nginx(start: Start, tmp_path: Path, size: int, protocol: str) -> None:
    curl = need_program("curl", "curl")
    command, options = (
        (nginx(tmp_path), []) if protocol == "http1" else (nginx_h2c(tmp_path), ["--http2-prior-knowledge"])
    )
    with start(tmp_path, command, "--grace", "20ms") as running:
        running.await_frozen()
        run = subprocess.run(
            [
                *(
                    curl,
                    "--silent",
                    "--show-error",
                    "--noproxy",
                    "*",
                    *options,
                    "--range",
                    f"0-{size - 1}",
                    "--output",
                    "/dev/null",
                ),
                *("--write-out", "%{size_download} %{http_code}", f"http://{running.address}/big"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert re.fullmatch(rf"{size} 206", run.stdout)
        assert running.relay_memory() < MEMORY
        running.await_frozen()
