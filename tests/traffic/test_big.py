"""A gibibyte each way: every byte arrives, and the relay keeps none of them."""

import re
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.support.needs import need_program
from tests.support.raw import RawClient, request
from tests.support.running import Running
from tests.support.servers import http_server, nginx, nginx_h2c
from tests.traffic.servers.http_server import blocks

GIB = 1 << 30
MEMORY = 64 << 20
"""Bytes of memory that freeze-proxy may have used at most, Python and all."""


@pytest.fixture(scope="module")
def crc() -> int:
    value = 0
    for block in blocks(GIB):
        value = zlib.crc32(block, value)
    return value


def test_download(tmp_path: Path, crc: int) -> None:
    with Running(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        running.await_frozen()
        client = RawClient(running.port)
        client.socket.sendall(request("GET", f"/download/{GIB}"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.socket.recv(1)
        buffer = bytearray(1 << 20)
        view = memoryview(buffer)
        size = got = 0
        while size < GIB:
            count = client.socket.recv_into(buffer)
            assert count, f"The download ended after {size} bytes."
            got = zlib.crc32(view[:count], got)
            size += count
        assert got == crc
        assert b" 200 OK" in client.exchange(request("GET", "/echo"))  # nothing came after it
        client.close()
        assert running.relay_memory() < MEMORY
        running.await_frozen()


def test_upload(tmp_path: Path, crc: int) -> None:
    with Running(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        running.await_frozen()
        client = RawClient(running.port)
        client.socket.settimeout(30)
        client.socket.sendall(request("POST", "/upload", f"Content-Length: {GIB}"))
        for block in blocks(GIB):
            client.socket.sendall(block)
        assert client.read_response("POST").endswith(f"{GIB} bytes, {crc:08x}\n".encode())
        client.close()
        assert running.relay_memory() < MEMORY
        running.await_frozen()


def test_chunked_upload(tmp_path: Path) -> None:
    size = GIB // 4
    with Running(tmp_path, http_server(tmp_path), "--grace", "20ms") as running:
        client = RawClient(running.port)
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
def test_download_by_curl_from_nginx(tmp_path: Path, protocol: str) -> None:
    curl = need_program("curl", "curl")
    command, options = (
        (nginx(tmp_path), []) if protocol == "http1" else (nginx_h2c(tmp_path), ["--http2-prior-knowledge"])
    )
    with Running(tmp_path, command, "--grace", "20ms") as running:
        running.await_frozen()
        run = subprocess.run(
            [
                *(curl, "--silent", "--show-error", "--noproxy", "*", *options, "--output", "/dev/null"),
                *("--write-out", "%{size_download} %{http_code}", f"http://127.0.0.1:{running.port}/big"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert re.fullmatch(rf"{GIB} 200", run.stdout)
        assert running.relay_memory() < MEMORY
        running.await_frozen()
