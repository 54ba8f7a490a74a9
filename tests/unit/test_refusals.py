"""What a client is told when the server cannot be woken: one whole response, to the request that it answers."""

import pytest

from freeze_proxy.observe import Http2
from freeze_proxy.observe.http1 import REFUSAL, REFUSAL_HEAD
from freeze_proxy.observe.http2 import PREFACE
from tests.support.http2_traffic import END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame, greeted
from tests.support.tallies import CLIENT, SERVER, Watched

_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_HEAD = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
_POST = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"
_503 = b"\x08\x03503\x0f\x26\x011"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("asked", "answered", "refusal"),
    [
        (_GET, b"", REFUSAL_HEAD + REFUSAL),
        (_HEAD, b"", REFUSAL_HEAD),
        (_GET + _HEAD, b"", REFUSAL_HEAD + REFUSAL),
        (_HEAD + _GET, b"", REFUSAL_HEAD),
        (_GET + _HEAD, _OK, REFUSAL_HEAD),
        (_HEAD + _GET, _OK[:-2], REFUSAL_HEAD + REFUSAL),
        (_POST, b"", REFUSAL_HEAD + REFUSAL),
        (_POST + b"abc", b"HTTP/1.1 100 Continue\r\n\r\n", REFUSAL_HEAD + REFUSAL),
        (b"GE", b"", REFUSAL_HEAD + REFUSAL),
        (_GET, _OK, b""),
        (_GET, _OK[:5], b""),
        (_GET, _OK[:-1], b""),
        (_POST, _OK, b""),
        (b"\x16\x03\x01", b"", b""),
    ],
)
def test_http_1(asked: bytes, answered: bytes, refusal: bytes) -> None:
    watched = Watched()
    watched.feed(CLIENT, asked)
    if answered:
        watched.feed(SERVER, answered)
    before = watched.picture
    assert watched.observer.refusal() == refusal
    assert watched.picture == before
    watched.close()
    assert watched.observer.refusal() == b""


def test_http_2_begins_with_settings_if_the_server_has_not_sent_its_own() -> None:
    watched = Watched(Http2)
    watched.feed(CLIENT, PREFACE + frame(SETTINGS) + frame(HEADERS, END_STREAM | END_HEADERS, 1))
    refusal = watched.observer.refusal()
    assert refusal.startswith(frame(SETTINGS) + frame(HEADERS, END_STREAM | END_HEADERS, 1, _503))
    watched.feed(SERVER, frame(SETTINGS))
    assert watched.observer.refusal() == refusal[9:]


def test_http_2_says_it_to_each_stream_that_waits() -> None:
    watched = greeted()
    for stream in (1, 3, 5):
        watched.feed(CLIENT, frame(HEADERS, END_STREAM | END_HEADERS, stream))
    watched.feed(SERVER, frame(HEADERS, END_HEADERS, 1) + frame(HEADERS, END_STREAM | END_HEADERS, 3))
    refusal = watched.observer.refusal()
    assert refusal.startswith(frame(HEADERS, END_STREAM | END_HEADERS, 5, _503))
    assert refusal.endswith(frame(7, 0, 0, b"\x00\x00\x00\x05" + bytes(4)))
    assert refusal.count(b"503") == 1
    watched.close()
    assert watched.observer.refusal() == b""
