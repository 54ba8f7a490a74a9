"""The same requests without and with the proxy give the same bytes, whether the server was awake or frozen."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import await_port, free_port
from tests.support.raw import RawClient, masked, request
from tests.support.running import Direct
from tests.support.servers import SERVERS
from tests.support.starting import Start, Started

pytestmark = pytest.mark.relay_only  # without one, they are the server's own bytes

_CHUNKED_BODY = b"5\r\nhello\r\n6;extension=1\r\n world\r\n0\r\nX-Trailer: yes\r\n\r\n"

COMMON = {
    "get": request("GET", "/echo?q=a%20b&c", "X-Test: some words"),
    "head": request("HEAD", "/echo"),
    "post": request("POST", "/echo", "X-Test: body", body=bytes(range(256)) * 10),
    "204": request("GET", "/204"),
    "304": request("GET", "/304"),
    "not-found": request("GET", "/nothing/here"),
    "many-fields": request("GET", "/echo", *(f"X-Field-{number}: {'v' * number}" for number in range(40))),
    "strange-spelling": b"GET /echo HTTP/1.1\r\nhOST:example.test\r\nx-test:\t no space \r\n\r\n",
}
PROGRAMMED = {
    "put": request("PUT", "/echo", body=b"put"),
    "delete": request("DELETE", "/echo"),
    "patch": request("PATCH", "/echo", body=b"p" * 70_000),
    "options": request("OPTIONS", "/echo"),
    "chunked-request": request("POST", "/echo", "Transfer-Encoding: chunked") + _CHUNKED_BODY,
    "upload": request("POST", "/upload", body=b"u" * 1_000_000),
    "empty": request("GET", "/fixed/0"),
    "one-byte": request("GET", "/fixed/1"),
    "64-kib": request("GET", "/fixed/65536"),
    "2-mib": request("GET", "/fixed/2097152"),
    "streamed": request("GET", "/download/3000001"),
    "chunked": request("GET", "/chunked"),
    "events": request("GET", "/sse/5"),
    "slow": request("GET", "/slow"),
}
OWN = {
    "http.server": PROGRAMMED | {"trailers": request("GET", "/trailers", "TE: trailers")},
    "uvicorn": PROGRAMMED,
    "gunicorn": PROGRAMMED,
    "node": PROGRAMMED | {"trailers": request("GET", "/trailers", "TE: trailers")},
    "nginx": {
        "file": request("GET", "/fixed-10"),
        "100-kb": request("GET", "/fixed-100000"),
        "1-mb": request("GET", "/fixed-1000000"),
        "head-of-file": request("HEAD", "/fixed-1000000"),
        "empty-file": request("GET", "/fixed-0"),
        "range": request("GET", "/fixed-1000000", "Range: bytes=500-999"),
        "gzipped-is-chunked": request("GET", "/fixed-100000", "Accept-Encoding: gzip"),
        "redirect": request("GET", "/moved"),
        "not-modified": request(
            "GET", "/fixed-10", 'If-None-Match: "nothing"', "If-Modified-Since: Tue, 1 Jan 2097 00:00:00 GMT"
        ),
        "uploaded": request("POST", "/upload", body=b"u" * 1_000_000),
        "chunked-upload": request("POST", "/upload", "Transfer-Encoding: chunked") + _CHUNKED_BODY,
    },
}
ODD = {
    "closes": request("GET", "/echo", "Connection: close"),
    "http-1.0": b"GET /echo HTTP/1.0\r\nHost: example.test\r\n\r\n",
    "not-http": b"what is this?\r\n\r\n",
    "no-host": b"GET /echo HTTP/1.1\r\n\r\n",
    "ambiguous": request("POST", "/echo", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two-lengths": request("POST", "/echo", "Content-Length: 3", "Content-Length: 4") + b"abcd",
    "http-9": b"GET /echo HTTP/9.9\r\nHost: example.test\r\n\r\n",
    "until-close": request("GET", "/close"),
}
"""After most of these a server closes the connection, and after some it waits for more: that is compared as well."""
QUIET = 0.3
"""Seconds without a byte after which a server has said what it had to say."""


class Pair:
    """The same server twice: alone and behind freeze-proxy."""

    def __init__(self, name: str, direct: Direct, running: Started) -> None:
        self.name = name
        self.direct = direct
        self.running = running


@pytest.fixture(scope="module", params=list(SERVERS))
def pair(start: Start, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    tmp_path: Path = tmp_path_factory.mktemp("pair")
    command = SERVERS[request.param](tmp_path)
    with (
        Direct(command, free_port(), await_port) as direct,
        start(tmp_path, command, "--grace", "20ms") as running,
    ):
        yield Pair(request.param, direct, running)
        report = running.end()
    assert report["freezes"] > 20
    assert report["refused"] == 0


def test_every_response_is_the_same(pair: Pair) -> None:
    requests = COMMON | OWN[pair.name]
    direct, proxied = RawClient(pair.direct.port), RawClient(pair.running.port, pair.running.host)
    try:
        for name, raw in requests.items():
            expected = masked(direct.exchange(raw))
            assert masked(direct.exchange(raw)) == expected, f"{name}: {pair.name} itself answers differently each time"
            pair.running.await_frozen()
            assert masked(proxied.exchange(raw)) == expected, f"{name}, from a frozen server"
            assert masked(proxied.exchange(raw)) == expected, f"{name}, from a server awake"
    finally:
        direct.close()
        proxied.close()


def _whatever_comes(to: Direct | Started, raw: bytes, piece: int = 0) -> bytes:
    client = RawClient(to.port, to.host)
    try:
        if piece:
            for at in range(0, len(raw), piece):
                client.socket.sendall(raw[at : at + piece])
        else:
            client.socket.sendall(raw)
        said = b""
        client.socket.settimeout(QUIET)
        try:
            while data := client.socket.recv(1 << 18):
                said += data
        except TimeoutError:
            return masked(said) + b"(and waits)"
        except ConnectionResetError:
            return masked(said) + b"(and resets)"
        return masked(said) + b"(and closes)"
    finally:
        client.close()


@pytest.mark.parametrize("name", list(ODD))
def test_odd_requests_have_the_same_answer_and_the_same_end(pair: Pair, name: str) -> None:
    raw = ODD[name]
    expected = _whatever_comes(pair.direct, raw)
    pair.running.await_frozen()
    assert _whatever_comes(pair.running, raw) == expected
    assert _whatever_comes(pair.running, raw) == expected
    pair.running.await_frozen()


def test_requests_in_small_pieces(pair: Pair) -> None:
    raw = request("POST", "/echo", "X-Test: pieces", "Connection: close", body=b"0123456789" * 5)
    expected = _whatever_comes(pair.direct, raw)
    assert b"200 OK" in expected
    pair.running.await_frozen()
    assert _whatever_comes(pair.running, raw, piece=1) == expected
    assert _whatever_comes(pair.running, raw, piece=7) == expected


def test_pipelined_requests(pair: Pair) -> None:
    raw = request("GET", "/echo", "X-Test: first") + request("HEAD", "/echo") + request("GET", "/204")
    raw += request("GET", "/echo", "Connection: close")
    expected = _whatever_comes(pair.direct, raw)
    assert expected.count(b"HTTP/1.1") == 4
    pair.running.await_frozen()
    assert _whatever_comes(pair.running, raw) == expected
    assert _whatever_comes(pair.running, raw) == expected


def test_expect_100_continue(pair: Pair) -> None:
    head = request("POST", "/upload", "Content-Length: 10", "Expect: 100-continue", "Connection: close")

    def upload(to: Direct | Started) -> bytes:
        client = RawClient(to.port, to.host)
        try:
            client.socket.sendall(head)
            interim = b""
            while not interim.endswith(b"\r\n\r\n"):
                byte = client.socket.recv(1)
                assert byte
                interim += byte
            assert interim.startswith(b"HTTP/1.1 100 ")
            client.socket.sendall(b"0123456789")
            return masked(interim + client.rest())
        finally:
            client.close()

    expected = upload(pair.direct)
    assert b" 200 OK" in expected
    pair.running.await_frozen()
    assert upload(pair.running) == expected


def test_a_client_that_has_said_all(pair: Pair) -> None:
    """What a server makes of a half-closed connection is its own affair; it must be the same."""

    def talk(to: Direct | Started) -> bytes:
        client = RawClient(to.port, to.host)
        try:
            client.socket.sendall(request("GET", "/echo"))
            client.socket.shutdown(socket.SHUT_WR)
            return masked(client.rest())
        finally:
            client.close()

    expected = talk(pair.direct)
    pair.running.await_frozen()
    assert talk(pair.running) == expected


def test_clients_that_leave_half_way_hurt_nobody(pair: Pair) -> None:
    big = request("GET", "/big" if pair.name == "nginx" else "/download/300000000")
    upload = request("POST", "/upload", "Content-Length: 50000000") + bytes(1_000_000)
    for raw, taken in ((big, 100_000), (big, 1), (upload, 0), (b"GET /echo HTT", 0)):
        pair.running.await_frozen()
        client = RawClient(pair.running.port, pair.running.host)
        client.socket.sendall(raw)
        while taken > 0:
            taken -= len(client.socket.recv(taken))
        client.close()
    pair.running.await_frozen()
    client = RawClient(pair.running.port, pair.running.host)
    assert b" 200 OK" in client.exchange(request("GET", "/echo"))
    client.close()
    pair.running.await_frozen()


def test_an_upload_that_is_too_large_gets_its_refusal(start: Start, tmp_path: Path) -> None:
    """nginx refuses it after the head, closes its side, and lets the client go on for a while."""
    command = SERVERS["nginx"](tmp_path)
    raw = request("POST", "/small", body=bytes(3_000_000))
    with (
        Direct(command, free_port(), await_port) as direct,
        start(tmp_path, command, "--grace", "20ms") as running,
    ):
        expected = _whatever_comes(direct, raw)
        assert b" 413 " in expected
        for _ in range(3):
            running.await_frozen()
            assert _whatever_comes(running, raw) == expected
        running.await_frozen()
