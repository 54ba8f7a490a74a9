"""Streams that fall silent stop counting, and count again from their next byte."""

import pytest

from freeze_proxy.observe import Http1, Http2
from freeze_proxy.observe.http1 import SILENT_SWEEPS
from tests.support.http2_traffic import CONTINUATION, DATA, END_HEADERS, HEADERS, RST, WINDOW, frame, greeted
from tests.support.tallies import CLIENT, SERVER, Watched

_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def sweeps(watched: Watched, number: int = SILENT_SWEEPS) -> int:
    """In flight after so many sweeps without a byte."""
    for _ in range(number):
        watched.observer.sweep()
        assert watched.observer.in_flight == watched.tally.in_flight
    return watched.observer.in_flight


def opened(*steps: tuple[str, bytes]) -> Watched:
    watched = Watched(Http1)
    for side, data in steps:
        watched.feed(side, data)
    return watched


STREAMS_1 = {
    "server-sent events": [(CLIENT, _GET), (SERVER, _CHUNKED + b"5\r\nhello\r\n")],
    "within a chunk": [(CLIENT, _GET), (SERVER, _CHUNKED + b"5\r\nhel")],
    "within a chunk line": [(CLIENT, _GET), (SERVER, _CHUNKED + b"5")],
    "until close": [(CLIENT, _GET), (SERVER, b"HTTP/1.1 200 OK\r\n\r\nhel")],
    "upgraded": [(CLIENT, _GET), (SERVER, b"HTTP/1.1 101 Switching Protocols\r\n\r\n")],
    "a tunnel": [(CLIENT, b"CONNECT h:1 HTTP/1.1\r\n\r\n"), (SERVER, b"HTTP/1.1 200 OK\r\n\r\n")],
    "another protocol": [(CLIENT, b"\x16\x03\x01")],
    "requests behind it": [(CLIENT, _GET + _GET), (SERVER, _CHUNKED + b"5\r\nhello\r\n")],
}


@pytest.mark.parametrize("name", STREAMS_1)
@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_a_silent_http_1_stream_is_idle_until_its_next_byte(name: str, side: str) -> None:
    watched = opened(*STREAMS_1[name])
    before = watched.observer.in_flight
    assert before >= 1
    assert sweeps(watched, SILENT_SWEEPS - 1) == before
    assert sweeps(watched, 1) == 0
    assert sweeps(watched, 20) == 0
    assert not isinstance(watched.observer, Http1) or not watched.observer.reusable
    if side == SERVER:
        watched.observer.from_server(b"x", 1)
    else:
        watched.observer.from_client(b"x")
    assert watched.observer.in_flight == watched.tally.in_flight
    assert watched.observer.in_flight >= before
    assert watched.tally.begun <= before + 1
    watched.close()


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_every_byte_begins_the_silence_anew(side: str) -> None:
    watched = opened(*STREAMS_1["upgraded"])
    for _ in range(3):
        assert sweeps(watched, SILENT_SWEEPS - 1) == 1
        watched.feed(side, b"x")
    assert sweeps(watched, SILENT_SWEEPS - 1) == 1
    assert sweeps(watched, 1) == 0


@pytest.mark.parametrize(
    "steps",
    [
        [(CLIENT, b"GE")],
        [(CLIENT, _GET)],
        [(CLIENT, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhel")],
        [(CLIENT, _GET), (SERVER, b"HTTP/1.1 200")],
        [(CLIENT, _GET), (SERVER, b"HTTP/1.1 100 Continue\r\n\r\n")],
        [(CLIENT, _GET), (SERVER, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel")],
        [(CLIENT, _GET + _GET), (SERVER, _CHUNKED + b"0\r\n\r\n")],
    ],
)
def test_what_is_no_stream_counts_however_long_it_takes(steps: list[tuple[str, bytes]]) -> None:
    watched = opened(*steps)
    assert sweeps(watched, 50) == 1
    watched.close()


def test_a_stream_that_ends_in_its_sleep() -> None:
    for end in ("closed", "server closed"):
        watched = opened(*STREAMS_1["server-sent events"])
        assert sweeps(watched) == 0
        if end == "server closed":
            watched.observer.server_closed()
        watched.close()
        assert watched.tally.begun + watched.tally.holds == watched.tally.ends == 1


def test_a_stream_that_wakes_to_end() -> None:
    watched = opened(*STREAMS_1["server-sent events"])
    assert sweeps(watched) == 0
    watched.feed(SERVER, b"0\r\n\r\n")
    assert watched.observer.in_flight == 0
    assert (watched.tally.begun, watched.tally.holds, watched.tally.ends) == (1, 1, 2)
    assert isinstance(watched.observer, Http1)
    assert watched.observer.reusable
    watched.feed(CLIENT, _GET)
    assert sweeps(watched, 20) == 1


def test_sleeping_requests_behind_a_stream_all_wake() -> None:
    watched = opened(*STREAMS_1["requests behind it"])
    assert sweeps(watched) == 0
    watched.feed(SERVER, b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert watched.observer.in_flight == 0
    assert watched.tally.begun == watched.tally.holds == 2


# HTTP/2


def streams(*numbers: int, answered: bool = True) -> Watched:
    watched = greeted()
    for number in numbers:
        watched.feed(CLIENT, frame(HEADERS, END_HEADERS, number))
        if answered:
            watched.feed(SERVER, frame(HEADERS, END_HEADERS, number))
    return watched


def test_a_silent_http_2_stream_is_idle_until_its_next_byte() -> None:
    watched = streams(1, 3)
    assert sweeps(watched, SILENT_SWEEPS - 1) == 2
    watched.feed(SERVER, frame(DATA, 0, 3, b"x"))
    assert sweeps(watched, 1) == 1
    assert sweeps(watched, SILENT_SWEEPS - 2) == 1
    assert sweeps(watched, 1) == 0
    watched.feed(CLIENT, frame(DATA, 0, 1, b"x"))
    assert watched.observer.in_flight == 1
    watched.feed(CLIENT, frame(WINDOW, 0, 3, bytes(4)))
    assert watched.observer.in_flight == 2
    watched.close()


def test_before_its_response_has_begun_a_stream_counts_however_long_it_takes() -> None:
    assert sweeps(streams(1, answered=False), 50) == 1
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 1))
    watched.feed(SERVER, frame(WINDOW, 0, 1, bytes(4)))
    assert sweeps(watched, 50) == 1


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_each_piece_of_a_frame_wakes_its_stream(side: str) -> None:
    watched = streams(1)
    assert sweeps(watched) == 0
    whole = frame(DATA, 0, 1, b"abc")
    watched.feed(side, whole[:9])
    assert watched.observer.in_flight == 1
    assert sweeps(watched) == 0
    watched.feed(side, whole[9:10])
    assert watched.observer.in_flight == 1
    assert sweeps(watched) == 0
    watched.feed(side, whole[10:])
    assert watched.observer.in_flight == 1
    assert sweeps(watched, SILENT_SWEEPS - 1) == 1
    assert sweeps(watched, 1) == 0


def test_the_end_of_a_sleeping_stream_is_told_once() -> None:
    for last in (frame(RST, 0, 1, bytes(4)), frame(DATA, 1, 1), frame(HEADERS, 1, 1) + frame(CONTINUATION, 4, 1)):
        watched = greeted()
        watched.feed(CLIENT, frame(HEADERS, 5, 1))
        watched.feed(SERVER, frame(HEADERS, END_HEADERS, 1))
        assert sweeps(watched) == 0
        watched.feed(SERVER, last)
        assert watched.observer.in_flight == watched.tally.in_flight == 0
        assert isinstance(watched.observer, Http2)
        assert watched.observer.streams == 0
        assert not watched.observer._silent
    watched = streams(1, 3)
    assert sweeps(watched) == 0
    watched.close()


def test_the_connections_own_business_does_not_wake_its_streams() -> None:
    watched = streams(1)
    assert sweeps(watched) == 0
    watched.feed(CLIENT, frame(6, 0, 0, bytes(8)))
    assert watched.observer.in_flight == 1
    watched.feed(SERVER, frame(6, 1, 0, bytes(8)))
    assert watched.observer.in_flight == 0


def test_a_sleeping_stream_is_not_told_to_try_again() -> None:
    """Its response has begun; 503 is for those that begin while the server stands still."""
    watched = streams(1)
    assert sweeps(watched) == 0
    watched.feed(CLIENT, frame(HEADERS, 5, 3))
    refusal = watched.observer.refusal()
    assert refusal.count(b"\x08\x03503") == 1
    assert refusal[5:9] == b"\x00\x00\x00\x03"
