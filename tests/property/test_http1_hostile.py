"""Bytes that nobody should send over HTTP/1.x: the observer never raises, keeps little, and counts the same however
they are cut; once they are opaque, they are in flight until the connection closes.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.observe import Http1
from freeze_proxy.observe.http1 import CHUNK_LINE_LIMIT, HEAD_LIMIT, PIPELINE_LIMIT
from tests.support.examples import examples
from tests.support.http1_traffic import Conversation, conversations
from tests.support.tallies import CLIENT, SERVER, Watched, held_bytes

_SHREDS = [
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\n\n",
    b"\n\r\n",
    b" ",
    b"\t",
    b"\x00",
    b":",
    b"x",
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD / HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\n",
    b"GET /",
    b"CONNECT h:1 HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n",
    b"get / http/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Host: h\r\n",
    b"Host: h\n",
    b" folded\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length : 5\r\n",
    b"content-length:\t5 \r\n",
    b"Content-Length: 6\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 5, 6\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: \r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length:\r\n 5\r\n",
    b"\x0bContent-Length: 5\r\n",
    b"X: a\nContent-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\x00chunked\r\n",
    b"Transfer-Encoding\t: chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"5\r\nhello\r\n",
    b"5\r\nhello\r\n",
    b"5\r\nhello",
    b"5;a=b\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nA: b\r\n\r\n",
    b"0x5\r\n",
    b"-5\r\nhello\r\n",
    b"5 5\r\n",
    b"ffffffffffffffff\r\n",
    b"fffffffffffffff\r\n",
    b"\r\n5\r\n",
    b"5\nhello\n",
    b"5;\nx\r\n",
    b"5;\rx\r\n",
    b";\r\n",
    b"hello",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff\xfe",
    b"\x05\x01\x00",
]
_ANSWERS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/2 200\r\n",
    b"HTTP/1.1 20\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 2000\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"http/1.1 200 ok\r\n\r\n",
]

requests = st.lists(st.sampled_from(_SHREDS) | st.binary(max_size=3), max_size=14).map(b"".join)
responses = st.lists(st.sampled_from(_ANSWERS) | st.sampled_from(_SHREDS), max_size=14).map(b"".join)


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """A valid conversation that has been damaged, in steps of both sides."""
    talk: Conversation = draw(conversations(most=3))
    steps = []
    for side, text in ((CLIENT, talk.client), (SERVER, talk.server)):
        wire = bytearray(text)
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(wire)))
            kind = draw(st.integers(0, 3))
            if kind == 0:
                wire[at : at + 1] = draw(st.sampled_from(_SHREDS))
            elif kind == 1:
                del wire[at : at + draw(st.integers(1, 4))]
            elif kind == 2:
                wire[at:at] = draw(st.binary(min_size=1, max_size=3))
            else:
                other = draw(st.integers(0, len(wire)))
                wire[at:at] = wire[other : other + 30]
        cut = draw(st.integers(0, len(wire)))
        steps += [(side, bytes(wire[:cut])), (side, bytes(wire[cut:]))]
    return draw(st.permutations(steps))


scripts = mutations() | st.lists(
    st.tuples(st.just(CLIENT), requests) | st.tuples(st.just(SERVER), responses), max_size=6
)
cut_lists = st.lists(st.integers(1, 300), max_size=8)


@examples(600)
@given(scripts, st.lists(cut_lists, min_size=6, max_size=6))
def test_the_counts_do_not_depend_on_how_the_bytes_are_cut(
    script: list[tuple[str, bytes]], cuts: list[list[int]]
) -> None:
    """Whole reads (where the fast path is at home), random cuts, and single bytes, which only the machine ever sees."""
    whole, cut, bytewise = Watched(), Watched(), Watched()
    for (side, data), places in zip(script, cuts, strict=False):
        if not data:
            continue
        whole.feed(side, data)
        cut.feed_cut(side, data, places)
        bytewise.feed_cut(side, data, range(len(data)))
        assert cut.picture == whole.picture
        assert bytewise.picture == whole.picture
    for watched in (whole, cut, bytewise):
        watched.close()


_ASKED = [
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: i\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nX: HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nok",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost",
]
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_GIVEN = [
    _ANSWER,
    _ANSWER[:-2] + b"no",
    _ANSWER[:-2],
    b"ok",
    _ANSWER[:-1],
    b"k",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
    b"HTTP/1.1 204 OK\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 204 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + _ANSWER,
]


@st.composite
def repetitions(draw: st.DrawFn) -> list[tuple[bytes, bytes, int]]:
    """Exchanges out of few requests and responses, and where to cut them."""
    asked = [_ASKED[0], *draw(st.lists(st.sampled_from(_ASKED), max_size=1))]
    given_ = draw(st.lists(st.sampled_from(_GIVEN), min_size=1, max_size=3))
    steps = st.tuples(st.sampled_from(asked), st.sampled_from(given_), st.integers(0, 70))
    return draw(st.lists(steps, max_size=12))


@examples(700)
@given(repetitions())
def test_what_is_known_again_counts_as_if_it_were_new(exchanges: list[tuple[bytes, bytes, int]]) -> None:
    """Requests and responses that are like those before them, or almost: the short cut is not taken in by that."""
    whole, cut = Watched(), Watched()
    for asked, given_, place in exchanges:
        for side, data in ((CLIENT, asked), (SERVER, given_)):
            whole.feed(side, data)
            cut.feed_cut(side, data, [place, place + 1])
            assert cut.picture == whole.picture
    whole.close()
    cut.close()


_ALMOST = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:  5 \r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0000000000000000005\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 6\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: a\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-Content-Length: 6\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\t5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5x\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: y\n\nContent-Length: 6\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: y\n\nX: z\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: Connection: close\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 2000\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1  200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 20a OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 099 Early\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 600 Late\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n",
    b"http/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: " + b"b" * 3000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("head", _ALMOST)
@pytest.mark.parametrize("body", [b"hello", b"", b"hello!"])
def test_a_response_in_one_read_counts_as_the_same_in_single_bytes(head: bytes, body: bytes) -> None:
    for asked in (_ASKED[0], b"HEAD / HTTP/1.1\r\n\r\n", b"CONNECT h:1 HTTP/1.1\r\n\r\n", _ASKED[2]):
        whole, bytewise = Watched(), Watched()
        for _ in range(3):
            data = head + body
            whole.feed(CLIENT, asked)
            bytewise.feed_cut(CLIENT, asked, range(len(asked)))
            whole.feed(SERVER, data)
            bytewise.feed_cut(SERVER, data, range(len(data)))
            assert bytewise.picture == whole.picture
        whole.close()
        bytewise.close()


@examples(300)
@given(scripts, st.lists(st.sampled_from(["sweep", "server closed", "nothing"]), min_size=6, max_size=6))
def test_anything_at_any_time(script: list[tuple[str, bytes]], between: list[str]) -> None:
    watched = Watched()
    for (side, data), what in zip(script, between, strict=False):
        if data:
            watched.feed(side, data)
        if what == "server closed":
            watched.observer.server_closed()
            watched.was_opaque = False
        for _ in range(6 if what == "sweep" else 0):
            watched.observer.sweep()
        assert watched.observer.in_flight == watched.tally.in_flight
        assert isinstance(watched.observer.refusal(), bytes)
    watched.close()


@examples(200)
@given(st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.binary(min_size=1, max_size=60)), max_size=10))
def test_random_bytes(script: list[tuple[str, bytes]]) -> None:
    watched = Watched()
    for side, data in script:
        watched.feed(side, data)
    watched.close()


AMBIGUOUS_REQUESTS = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "two lengths in one": b"Content-Length: 5, 6\r\n\r\n",
    "signed length": b"Content-Length: +5\r\n\r\n",
    "negative length": b"Content-Length: -5\r\n\r\n",
    "hexadecimal length": b"Content-Length: 0x5\r\n\r\n",
    "length with an underscore": b"Content-Length: 1_0\r\n\r\n",
    "no length": b"Content-Length:\r\n\r\n",
    "endless length": b"Content-Length: 1000000000000000000\r\n\r\n",
    "digits of another script": b"Content-Length: \xd9\xa5\r\n\r\n",
    "folded length": b"Content-Length:\r\n 5\r\n\r\n",
    "folded after length": b"Content-Length: 5\r\n 5\r\n\r\n",
    "space before the colon": b"Content-Length : 5\r\n\r\n",
    "space before the name": b" Content-Length: 5\r\n\r\n",
    "a form feed before the name": b"\x0cContent-Length: 5\r\n\r\n",
    "NUL in the name": b"Content-\x00Length: 5\r\nContent-Length: 5\r\n\r\n",
    "NUL in another field": b"X: a\x00b\r\nContent-Length: 5\r\n\r\n",
    "NUL in the value": b"Content-Length: 5\x00\r\n\r\n",
    "a bare line feed before length": b"X: y\nContent-Length: 5\r\n\r\n",
    "a bare carriage return before length": b"X: y\rContent-Length: 5\r\n\r\n",
    "a bare line feed after length": b"Content-Length: 5\nX: y\r\n\r\n",
    "a bare line feed at the end": b"Content-Length: 5\n\r\n",
    "an empty line of line feeds": b"X: y\n\nContent-Length: 5\r\n\r\n",
    "a coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "a coding after chunked": b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked not last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n",
    "quoted chunked": b'Transfer-Encoding: "chunked"\r\n\r\n',
    "no coding": b"Transfer-Encoding:\r\n\r\n",
    "vertical tab before chunked": b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "a line without a colon": b"Content-Length\r\n\r\n",
    "no chunk size": b"Transfer-Encoding: chunked\r\n\r\n\r\n",
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\n5g\r\n",
    "signed chunk size": b"Transfer-Encoding: chunked\r\n\r\n+5\r\n",
    "prefixed chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\n",
    "chunk size with an underscore": b"Transfer-Encoding: chunked\r\n\r\n1_0\r\n",
    "space before the chunk size": b"Transfer-Encoding: chunked\r\n\r\n 5\r\n",
    "endless chunk size": b"Transfer-Encoding: chunked\r\n\r\n1000000000000000\r\n",
    "chunk size ends in a bare line feed": b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n",
    "a bare line feed in a chunk extension": b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\n",
    "a bare carriage return in a chunk extension": b"Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\n",
    "chunk longer than said": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n",
    "chunk shorter than said": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel\r\n0\r\n\r\n",
    "chunk ends in a bare line feed": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
    "a bare line feed in a trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n",
    "endless chunk line": b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * (CHUNK_LINE_LIMIT + 1),
}


@pytest.mark.parametrize("name", AMBIGUOUS_REQUESTS)
@pytest.mark.parametrize("cut", ["whole", "bytes"])
def test_an_ambiguous_request_turns_opaque(name: str, cut: str) -> None:
    watched = Watched()
    data = b"POST / HTTP/1.1\r\nHost: h\r\n" + AMBIGUOUS_REQUESTS[name]
    watched.feed_cut(CLIENT, data, range(len(data)) if cut == "bytes" else ())
    assert watched.observer.opaque
    assert watched.observer.in_flight == watched.tally.begun == 1
    watched.feed(SERVER, _ANSWER)
    watched.feed(CLIENT, b"GET / HTTP/1.1\r\n\r\n")
    watched.observer.server_closed()
    assert watched.observer.in_flight == 1
    assert watched.observer.refusal() == b""
    watched.close()


@pytest.mark.parametrize(
    "first",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"\x00\r\n\r\n",
        b" GET / HTTP/1.1\r\n\r\n",
        b"\r\n GET / HTTP/1.1\r\n\r\n",
        b"\n\r\n",
        b"(GET) / HTTP/1.1\r\n\r\n",
        b"\xffGET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        b"GET / HTTP/1.1\n\nGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_1_turns_opaque(first: bytes) -> None:
    for cuts in (range(0), range(len(first))):
        watched = Watched()
        watched.feed_cut(CLIENT, first, cuts)
        assert watched.observer.opaque
        assert watched.observer.in_flight == 1
        watched.close()


AMBIGUOUS_RESPONSES = {
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "hidden length before": b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 6\r\nContent-Length: 5\r\n\r\n",
    "hidden length after": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: a\nContent-Length: 6\r\n\r\n",
    "folded after length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n 5\r\n\r\n",
    "length ends in a bare line feed": b"HTTP/1.1 200 OK\r\nContent-Length: 5\nX: y\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked not last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "bad chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "chunk longer than said": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "short status": b"HTTP/1.1 20\r\n\r\n",
    "long status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "no space before the status": b"HTTP/1.1:200 OK\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n\r\n",
    "another version": b"HTTP/2 200\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\n\r\n",
    "upgraded": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS_RESPONSES)
def test_an_ambiguous_response_turns_opaque(name: str) -> None:
    data = AMBIGUOUS_RESPONSES[name]
    for cuts in (range(0), range(len(data))):
        watched = Watched()
        watched.feed(CLIENT, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        watched.feed_cut(SERVER, data, cuts)
        assert watched.observer.opaque
        assert watched.observer.in_flight == 1
        watched.close()


def test_a_response_to_nothing_turns_opaque() -> None:
    watched = Watched()
    watched.feed(SERVER, _ANSWER)
    assert watched.observer.opaque
    assert (watched.observer.in_flight, watched.tally.begun, watched.tally.holds) == (1, 0, 1)
    watched.close()


@pytest.mark.parametrize("size", [1, 1000, 64 * 1024])
def test_a_head_beyond_the_limit_turns_opaque(size: int) -> None:
    watched = Watched()
    head = b"GET / HTTP/1.1\r\nX: "
    watched.feed(CLIENT, head)
    left = HEAD_LIMIT - len(head)
    most = 0
    started = time.process_time()
    while left > 0:
        watched.observer.from_client(b"x" * min(size, left))
        left -= size
        most = max(most, held_bytes(watched.observer)) if size > 1 else HEAD_LIMIT
    # A million reads of one byte: linear, or it would take hours.
    assert time.process_time() - started < 30
    assert most == HEAD_LIMIT
    watched.check()
    assert not watched.observer.opaque
    watched.feed(CLIENT, b"xxx")
    assert watched.observer.opaque
    assert held_bytes(watched.observer) == 0
    watched.close()


def test_a_head_of_just_the_limit_is_followed() -> None:
    head = b"GET / HTTP/1.1\r\nX: "
    head += b"x" * (HEAD_LIMIT - len(head) - 1) + b"\r\n\r\n"  # the limit is of what stands before the last LF CR LF
    for more, cuts in ((b"", range(0, len(head), 4096)), (b"x", range(0, len(head), 4096)), (b"x", range(0))):
        watched = Watched()
        watched.feed_cut(CLIENT, b"PUT" + more + head[3:], cuts)
        assert watched.observer.opaque == bool(more)
        watched.close()


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_endless_trailers_turn_opaque(side: str) -> None:
    watched = Watched()
    start = b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    watched.feed(CLIENT, b"POST / HTTP/1.1\r\n" + (start if side == CLIENT else b"\r\n"))
    if side == SERVER:
        watched.feed(SERVER, b"HTTP/1.1 200 OK\r\n" + start)
    for _ in range(HEAD_LIMIT // 1000 + 1):
        watched.feed(side, b"A: " + b"x" * 10 + b"\r\n" + b"B: " + b"x" * 1000 + b"\r\n")
    assert watched.observer.opaque
    watched.close()


def test_too_many_pipelined_requests_turn_opaque() -> None:
    watched = Watched()
    watched.feed(CLIENT, b"GET / HTTP/1.1\r\n\r\n" * PIPELINE_LIMIT)
    assert not watched.observer.opaque
    assert watched.observer.in_flight == PIPELINE_LIMIT
    watched.feed(CLIENT, b"GET / HTTP/1.1\r\n\r\n" * PIPELINE_LIMIT)
    assert watched.observer.opaque
    assert watched.observer.in_flight == PIPELINE_LIMIT + 1
    watched.feed(SERVER, _ANSWER * PIPELINE_LIMIT)
    assert watched.observer.in_flight == PIPELINE_LIMIT + 1
    watched.close()


def test_as_many_pipelined_requests_as_allowed_are_counted() -> None:
    watched = Watched()
    for _ in range(3):
        watched.feed(CLIENT, b"GET / HTTP/1.1\r\n\r\n" * PIPELINE_LIMIT)
        watched.feed(SERVER, _ANSWER * PIPELINE_LIMIT)
    assert watched.observer.in_flight == 0
    assert isinstance(watched.observer, Http1)
    assert watched.observer.reusable


def test_empty_lines_before_a_request_belong_to_it() -> None:
    for data in (b"\r\nGET / HTTP/1.1\r\n\r\n", b"\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n"):
        for cuts in (range(0), range(len(data))):
            watched = Watched()
            watched.feed_cut(CLIENT, data, cuts)
            assert watched.tally.begun == 1
            watched.feed(SERVER, _ANSWER)
            assert watched.observer.in_flight == 0
            assert not watched.observer.opaque


def test_endless_empty_lines_keep_nothing() -> None:
    watched = Watched()
    for _ in range(100):
        watched.feed(CLIENT, b"\r\n" * 10_000)
    assert watched.observer.in_flight == 1
    assert held_bytes(watched.observer) < 4
    watched.close()
