"""Bytes that nobody should send over HTTP/2: the observer never raises, keeps little, and counts the same however they
are cut; once they are opaque, they are in flight until the connection closes.
"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.observe import Http1, Http2, pick
from freeze_proxy.observe.http2 import DECLINED_LIMIT, PREFACE, STREAM_LIMIT
from tests.support.examples import examples
from tests.support.http2_traffic import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PUSH,
    RST,
    SETTINGS,
    Talk,
    frame,
    greeted,
    long_script,
    play,
)
from tests.support.tallies import CLIENT, SERVER, Recorder, Watched, held_bytes

frames = st.builds(
    frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFF]),
    st.sampled_from([b"", b"", b"12345678", b"\x00\x00\x00\x02"]) | st.binary(max_size=20),
)
floods = st.lists(frames | frames | frames | st.binary(max_size=12), max_size=15).map(b"".join)


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """What a real conversation said, damaged, in steps of both sides."""
    talk = Talk()
    steps: list[tuple[str, bytes]] = []
    feed = talk.watched.feed

    def note(side: str, data: bytes) -> None:
        steps.append((side, data))
        feed(side, data)

    talk.watched.feed = note  # type: ignore[method-assign]  # it listens to what passes
    play(talk, long_script(draw(st.integers(0, 1 << 30)), draw(st.integers(0, 60))))
    random = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, 4))):
        if not steps:
            break
        at = random.randrange(len(steps))
        side, data = steps[at]
        wire = bytearray(data)
        place = random.randrange(len(wire) + 1)
        kind = random.randrange(4)
        if kind == 0:
            wire[place : place + 1] = random.randbytes(1)
        elif kind == 1:
            del wire[place : place + random.randint(1, 10)]
        elif kind == 2:
            wire[place:place] = random.randbytes(random.randint(1, 10))
        else:
            other = random.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
            continue
        steps[at] = (side, bytes(wire))
    return steps


scripts = mutations() | st.builds(
    lambda start, steps: [*start, *steps],
    st.sampled_from(
        [
            [],
            [(CLIENT, PREFACE)],
            [(CLIENT, PREFACE), (SERVER, frame(SETTINGS))],
            [(CLIENT, PREFACE + frame(SETTINGS)), (SERVER, frame(SETTINGS) + frame(SETTINGS, ACK))],
        ]
    ),
    st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), floods), max_size=6),
)


@examples(300)
@given(scripts, st.integers(0, 1 << 30))
def test_the_counts_do_not_depend_on_how_the_bytes_are_cut(script: list[tuple[str, bytes]], seed: int) -> None:
    random = Random(seed)
    whole, cut, bytewise = Watched(Http2), Watched(Http2), Watched(Http2)
    for side, data in script:
        if not data:
            continue
        whole.feed(side, data)
        cut.feed_cut(side, data, [random.randrange(len(data)) for _ in range(4)])
        bytewise.feed_cut(side, data[:2000], range(2000))
        bytewise.feed_cut(side, data[2000:], ()) if len(data) > 2000 else None
        assert cut.picture == whole.picture
        assert bytewise.picture == whole.picture
    for watched in (whole, cut, bytewise):
        watched.close()


@examples(300)
@given(scripts, st.randoms(use_true_random=False))
def test_anything_at_any_time(script: list[tuple[str, bytes]], random: Random) -> None:
    watched = Watched(Http2)
    for side, data in script:
        if data:
            watched.feed(side, data)
        for _ in range(random.choice([0, 0, 6])):
            watched.observer.sweep()
        watched.check()
        assert isinstance(watched.observer.refusal(), bytes)
        assert isinstance(watched.observer, Http2)
        watched.observer.pongs(data)
    watched.close()


@examples(200)
@given(
    st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.binary(min_size=1, max_size=60)), max_size=10),
    st.booleans(),
)
def test_random_bytes(script: list[tuple[str, bytes]], after_handshake: bool) -> None:
    watched = greeted() if after_handshake else Watched(Http2)
    for side, data in script:
        watched.feed(side, data)
    watched.close()


@pytest.mark.parametrize(
    "first", [b"PRI / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"x", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"PRI " + bytes(100)]
)
def test_another_preface_turns_opaque(first: bytes) -> None:
    for cuts in (range(0), range(len(first))):
        watched = Watched(Http2)
        watched.feed_cut(CLIENT, first, cuts)
        assert watched.observer.opaque
        assert watched.observer.refusal() == b""
        watched.feed(SERVER, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        watched.feed(CLIENT, frame(HEADERS, 5, 1))
        watched.observer.server_closed()
        assert watched.observer.in_flight == 1
        watched.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", frame(SETTINGS, ACK), frame(HEADERS, 5, 1)])
def test_a_server_that_does_not_begin_with_settings_turns_opaque(answer: bytes) -> None:
    watched = Watched(Http2)
    watched.feed(CLIENT, PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1))
    watched.feed(SERVER, answer)
    assert watched.observer.opaque
    assert watched.observer.in_flight == 2
    watched.close()


def test_a_client_that_opens_a_stream_of_the_server_turns_opaque() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, 5, 2))
    assert watched.observer.opaque
    assert watched.observer.in_flight == 1
    watched.close()


def test_as_many_streams_as_allowed_are_counted_and_one_more_turns_opaque() -> None:
    watched = greeted()
    for number in range(STREAM_LIMIT):
        watched.observer.from_client(frame(HEADERS, END_HEADERS, 1 + 2 * number, b"x"))
    watched.check()
    assert not watched.observer.opaque
    assert watched.observer.in_flight == STREAM_LIMIT
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 1 + 2 * STREAM_LIMIT, b"x"))
    assert watched.observer.opaque
    assert watched.observer.in_flight == STREAM_LIMIT + 1
    watched.feed(SERVER, frame(RST, 0, 1, bytes(4)))
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 9 + 2 * STREAM_LIMIT, b"x"))
    assert watched.observer.in_flight == STREAM_LIMIT + 1
    watched.close()


def test_a_stream_is_begun_once() -> None:
    """Trailers after a reset, a number that goes back, a number that is used again: none is a new exchange."""
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 5))
    watched.feed(SERVER, frame(RST, 0, 5, bytes(4)))
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS | END_STREAM, 5) + frame(HEADERS, 5, 3) + frame(DATA, 1, 5))
    assert watched.observer.in_flight == 0
    assert watched.tally.begun == 1
    watched.feed(SERVER, frame(HEADERS, 5, 7))
    assert watched.observer.in_flight == 0


def test_rapid_resets_leave_nothing() -> None:
    watched = greeted()
    for number in range(20_000):
        watched.observer.from_client(frame(HEADERS, 5, 1 + 2 * number) + frame(RST, 0, 1 + 2 * number, bytes(4)))
    watched.check()
    assert watched.observer.in_flight == 0
    assert watched.tally.begun == watched.tally.ends - 1 == 20_000


def test_declined_pushes_are_not_remembered_without_end() -> None:
    watched = greeted()
    for number in range(1, 2 * DECLINED_LIMIT):
        watched.observer.from_client(frame(RST, 0, 2 * number, bytes(4)))
    assert isinstance(watched.observer, Http2)
    assert len(watched.observer._declined) == DECLINED_LIMIT
    watched.check()
    assert watched.observer.in_flight == 0


def test_a_header_block_in_parts_is_one() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_STREAM, 1, b"a") + frame(CONTINUATION, 0, 1, b"b"))
    watched.feed(SERVER, frame(HEADERS, END_STREAM, 1, b"a"))
    assert not watched.observer.whole
    watched.feed(CLIENT, frame(CONTINUATION, END_HEADERS, 1, b"c"))
    assert watched.observer.in_flight == 1
    assert watched.observer.refusal() == b""  # it would land within the server's header block
    watched.feed(SERVER, frame(CONTINUATION, END_HEADERS, 1, b"c"))
    assert watched.observer.in_flight == 0
    assert watched.observer.whole


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_a_header_block_ends_with_its_last_part(side: str) -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 1))
    watched.feed(SERVER if side == CLIENT else CLIENT, frame(DATA, END_STREAM, 1))
    watched.feed(side, frame(HEADERS, END_STREAM, 1, b"a") + frame(CONTINUATION, 0, 1, b"b"))
    assert watched.observer.in_flight == 1
    watched.feed(side, frame(CONTINUATION, END_HEADERS, 1, b"c"))
    assert watched.observer.in_flight == 0


def test_the_reserved_bit_of_a_stream_number_means_nothing() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS | END_STREAM, 0x80000001))
    watched.feed(SERVER, frame(HEADERS, END_HEADERS | END_STREAM, 1))
    assert watched.observer.in_flight == 0
    watched.feed(CLIENT, frame(PING, 0, 0x80000000, bytes(8)))
    assert watched.observer.in_flight == 1
    watched.feed(SERVER, frame(PING, ACK, 0, bytes(8)))
    assert watched.observer.in_flight == 0


def test_nothing_is_slipped_into_a_promise_in_parts() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_STREAM | END_HEADERS, 1) + frame(HEADERS, END_STREAM | END_HEADERS, 3))
    watched.feed(SERVER, frame(HEADERS, END_STREAM | END_HEADERS, 3) + frame(PUSH, 0, 1, bytes(4)))
    assert isinstance(watched.observer, Http2)
    assert watched.observer.pongs(frame(PING, 0, 0, bytes(8))) is None
    assert watched.observer.refusal() == b""
    watched.feed(SERVER, frame(CONTINUATION, END_HEADERS, 1))
    assert watched.observer.pongs(frame(PING, 0, 0, bytes(8))) is not None
    assert watched.observer.refusal() != b""


def test_frames_of_the_largest_size_are_skipped_without_being_kept() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(HEADERS, END_HEADERS, 1) + b"\xff\xff\xff\x00\x01\x00\x00\x00\x01")
    left = 0xFFFFFF
    while left:
        step = min(left, 65_536)
        watched.feed(CLIENT, bytes(step))
        assert held_bytes(watched.observer) == 0
        left -= step
    watched.feed(SERVER, frame(HEADERS, 5, 1))
    assert watched.observer.in_flight == 0


def test_unasked_acknowledgements_do_not_make_up_for_later_ones() -> None:
    watched = greeted()
    watched.feed(CLIENT, frame(SETTINGS, ACK) * 3 + frame(PING, ACK, 0, bytes(8)) * 3)
    watched.feed(SERVER, frame(PING, 0, 0, bytes(8)))
    assert watched.observer.in_flight == 1
    watched.feed(CLIENT, frame(PING, ACK, 0, bytes(8)))
    assert watched.observer.in_flight == 0


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"P", None),
        (b"PR", None),
        (b"PRI", None),
        (b"PRI ", Http2),
        (PREFACE, Http2),
        (b"PRINT / HTTP/1.1\r\n\r\n", Http1),
        (b"PUT / HTTP/1.1\r\n\r\n", Http1),
        (b"pri ", Http1),
        (b"GET / HTTP/1.1\r\n\r\n", Http1),
        (b"\x16\x03\x01", Http1),
        (b"\x00", Http1),
    ],
)
def test_the_first_bytes_pick_the_observer(first: bytes, kind: type[Http1 | Http2] | None) -> None:
    observer = pick(first, Recorder())
    assert observer is None if kind is None else isinstance(observer, kind)
