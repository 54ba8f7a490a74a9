"""Clients as people use them, against every server; and a short load."""

import asyncio
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.support.needs import need_program
from tests.support.running import Beside
from tests.support.servers import SERVERS, nginx_h2c
from tests.support.starting import Start, Started

PROGRAMMED = ["http.server", "uvicorn", "gunicorn", "node"]
BODY = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module", params=list(SERVERS))
def running(
    start: Start, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    tmp_path: Path = tmp_path_factory.mktemp("clients")
    with start(tmp_path, SERVERS[request.param](tmp_path), "--grace", "30ms") as running:
        yield running
        report = running.end()
    assert report["refused"] == 0


def _programmed(running: Started, request: pytest.FixtureRequest) -> bool:
    """Whether it is a server with all endpoints; nginx cannot hash a body."""
    return "nginx" not in request.node.callspec.params["running"]


def _curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = need_program("curl", "curl")
    return subprocess.run(
        [program, "--silent", "--show-error", "--max-time", "30", "--noproxy", "*", *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
    )


def test_curl(running: Started, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = f"http://{running.address}"
    running.await_frozen()
    assert _curl(f"{base}/echo?a=b").stdout.startswith("GET /echo?a=b\n")
    running.await_frozen()
    assert " 200" in _curl("--head", f"{base}/echo").stdout.splitlines()[0]
    running.await_frozen()
    assert _curl("--write-out", "%{http_code}", f"{base}/204").stdout == "204"
    upload = tmp_path / "upload"
    upload.write_bytes(BODY * 8)  # above the size from which curl expects 100-continue
    running.await_frozen()
    answer = _curl("--data-binary", f"@{upload}", f"{base}/upload").stdout
    chunked = _curl("--data-binary", f"@{upload}", "-H", "Transfer-Encoding: chunked", f"{base}/upload").stdout
    if _programmed(running, request):
        assert answer.startswith(f"{len(BODY) * 8} bytes, ")
    assert answer == chunked
    running.await_frozen()
    assert _curl("--http1.0", f"{base}/echo").stdout.startswith("GET /echo\n")
    running.await_frozen()
    # One connection for several requests, then a second one at the same time.
    assert _curl(f"{base}/echo?1", f"{base}/echo?2", f"{base}/echo?3").stdout.count("GET /echo?") == 3
    assert _curl("--parallel", *(f"{base}/echo?{number}" for number in range(20))).stdout.count("GET /echo?") == 20
    running.await_frozen()


def test_httpx(running: Started, request: pytest.FixtureRequest) -> None:
    with httpx.Client(base_url=f"http://{running.address}", timeout=20, trust_env=False) as client:
        for number in range(3):
            running.await_frozen()
            assert client.get(f"/echo?{number}").text.startswith(f"GET /echo?{number}\n")
        running.await_frozen()
        posted = client.post("/echo", content=BODY, headers={"X-Test": "httpx"}).text
        assert "X-Test: httpx" in posted
        assert client.head("/echo").content == b""
        running.await_frozen()
        if _programmed(running, request):
            assert DIGEST in posted
            assert DIGEST in client.post("/echo", content=iter([BODY[:100], BODY[100:]])).text
            assert client.get("/chunked").text == "one" + "two" * 1000 + "three"
            running.await_frozen()
            with client.stream("GET", "/slow") as response:
                assert list(response.iter_lines()) == ["first", "second"]


def test_aiohttp(running: Started, request: pytest.FixtureRequest) -> None:
    programmed = _programmed(running, request)

    async def talk() -> None:
        async with aiohttp.ClientSession(f"http://{running.address}") as session:

            async def echo(number: int) -> None:
                async with session.get(f"/echo?{number}") as response:
                    assert (await response.text()).startswith(f"GET /echo?{number}\n")

            for _ in range(3):
                await asyncio.to_thread(running.await_frozen)
                await asyncio.gather(*(echo(number) for number in range(50)))
            await asyncio.to_thread(running.await_frozen)
            async with session.post("/echo", data=BODY, expect100=True) as response:
                text = await response.text()
                assert response.status == 200
                assert not programmed or DIGEST in text

    asyncio.run(talk())
    running.await_frozen()


def test_wrk(running: Started) -> None:
    program = need_program("wrk", "wrk")
    running.await_frozen()
    before = running.count("frozen")
    run = subprocess.run(
        [program, "-t1", "-c16", "-d1s", f"http://{running.address}/echo"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Non-2xx" not in run.stdout
    assert "Socket errors" not in run.stdout
    found = re.search(r"(\d+) requests in", run.stdout)
    assert found is not None
    assert int(found[1]) > 100
    running.await_frozen()
    assert running.count("frozen") <= before + 2  # it does not freeze under load


@pytest.fixture
def h2c(start: Start, tmp_path: Path) -> Iterator[Started]:
    with start(tmp_path, nginx_h2c(tmp_path), "--grace", "30ms") as running:
        yield running
        assert running.end()["refused"] == 0


def test_curl_with_http2(h2c: Started, tmp_path: Path) -> None:
    base = f"http://{h2c.address}"
    for _ in range(2):
        h2c.await_frozen()
        answer = _curl("--http2-prior-knowledge", "--write-out", "%{http_version} %{http_code}", f"{base}/echo?a")
        assert answer.stdout.startswith("GET /echo?a\n")
        assert answer.stdout.endswith("\n2 200")
        h2c.await_frozen()
        assert len(_curl("--http2-prior-knowledge", f"{base}/fixed-1000000").stdout) == 1_000_000
    h2c.await_frozen()
    upload = tmp_path / "upload"
    upload.write_bytes(BODY)
    posted = _curl("--http2-prior-knowledge", "--data-binary", f"@{upload}", f"{base}/upload").stdout
    assert posted.startswith("POST ")
    h2c.await_frozen()


def test_httpx_with_http2(h2c: Started) -> None:
    with httpx.Client(base_url=f"http://{h2c.address}", http1=False, http2=True, timeout=20, trust_env=False) as client:
        for number in range(4):
            h2c.await_frozen()
            response = client.get(f"/echo?{number}")
            assert response.http_version == "HTTP/2"
            assert response.text.startswith(f"GET /echo?{number}\n")


def test_h2load(h2c: Started, tmp_path: Path) -> None:
    program = need_program("h2load", "nghttp2-client")
    h2c.await_frozen()
    run = subprocess.run(
        [program, "-n5000", "-c8", "-m10", f"http://{h2c.address}/echo"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in run.stdout
    h2c.await_frozen()
    counted = h2c.end()["requests"]
    # Nothing holds a client back where there is no relay: what is too fast to be followed is said, and kept awake.
    assert counted == 5000 or (isinstance(h2c, Beside) and h2c.count("lost"))
