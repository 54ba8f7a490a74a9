"""The HTTP/1.x observer against h11: the same exchanges, beginning and ending at the same bytes."""

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.observe import Http1
from freeze_proxy.observe.http1 import REFUSAL
from tests.support.examples import examples
from tests.support.http1_traffic import NEVER, Conversation, Exchange, conversations, converse, read_responses
from tests.support.tallies import CLIENT, SERVER, Watched


class Passage:
    """A conversation on its way through an observer, of which ``client`` and ``server`` bytes have passed."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.watched = Watched()
        self.client = self.server = 0

    def causal(self, early: bool) -> int:
        """How much the server can have sent by now; ``early``: it may answer as soon as a request begins."""
        talk = self.talk
        for number, begin in enumerate(talk.answer_begins):
            # What the response to HEAD or CONNECT means depends on the method, so the head must be there.
            hasty = early and talk.methods[number] not in (b"HEAD", b"CONNECT")
            if self.client < (talk.begins[number] + 1 if hasty else talk.heads[number]):
                return begin
        return len(talk.server)

    def pass_client(self, size: int) -> None:
        self._pass(CLIENT, self.talk.client[self.client : self.client + size])

    def pass_server(self, size: int, early: bool = False) -> None:
        self._pass(SERVER, self.talk.server[self.server : min(self.server + size, self.causal(early))])

    def _pass(self, side: str, data: bytes) -> None:
        if data:
            if side == CLIENT:
                self.client += len(data)
            else:
                self.server += len(data)
            self.watched.feed(side, data)
            self.check()

    def check(self) -> None:
        """h11's count of what has begun and not ended is the observer's."""
        talk, observer = self.talk, self.watched.observer
        begun = sum(self.client > begin for begin in talk.begins)
        ended = sum(
            self.client >= end and self.server >= answer for end, answer in zip(talk.ends, talk.answers, strict=True)
        )
        assert self.watched.tally.begun == begun
        assert observer.in_flight == begun - ended
        assert observer.opaque == (talk.switch is not None and self.server >= talk.switch)
        if not observer.opaque:
            between = self.client in (0, *talk.ends) and self.server in (0, *talk.answers)
            assert observer.reusable == (between and not observer.in_flight)
            if self.server in (0, *talk.answers):
                assert observer.whole

    def finish(self) -> None:
        """Let all the rest pass, and check the end."""
        self.pass_client(NEVER)
        self.pass_server(NEVER)
        assert self.server == len(self.talk.server)
        observer = self.watched.observer
        left = self.talk.answers[-1] == NEVER
        assert observer.in_flight == left
        observer.server_closed()
        assert observer.in_flight == (self.talk.switch is not None)
        self.watched.close()


steps = st.lists(
    st.tuples(
        st.sampled_from([CLIENT, SERVER]),
        st.sampled_from([1, 1, 2, 3, 7, 40, NEVER]) | st.integers(1, 600),
        st.booleans(),
    ),
    max_size=40,
)


@examples(250)
@given(conversations(), steps)
def test_same_exchanges_as_h11_in_every_causal_order(talk: Conversation, order: list[tuple[str, int, bool]]) -> None:
    passage = Passage(talk)
    for side, size, early in order:
        if side == CLIENT:
            passage.pass_client(size)
        else:
            passage.pass_server(size, early)
    passage.finish()


@examples(150)
@given(conversations(), st.booleans())
def test_same_exchanges_as_h11_byte_by_byte(talk: Conversation, early: bool) -> None:
    passage = Passage(talk)
    for _ in talk.client:
        passage.pass_client(1)
        for _ in range(3):
            passage.pass_server(1, early)
    while passage.server < len(talk.server):
        passage.pass_server(1)
    passage.finish()


@examples(200)
@given(conversations(), steps, st.sampled_from(["closed", "server closed"]))
def test_an_abort_anywhere_ends_what_had_begun(
    talk: Conversation, order: list[tuple[str, int, bool]], how: str
) -> None:
    passage = Passage(talk)
    for side, size, early in order:
        if side == CLIENT:
            passage.pass_client(size)
        else:
            passage.pass_server(size, early)
    observer = passage.watched.observer
    if how == "server closed":
        before, opaque = observer.in_flight, observer.opaque
        observer.server_closed()
        assert observer.in_flight == (before if opaque else 0)
        observer.from_client(talk.client[passage.client :] or b"x")
        assert observer.in_flight == (before if opaque else 0)
    passage.watched.close()


def one(request: bytes, response: bytes, last: bool = False) -> Exchange:
    return Exchange(request.partition(b" ")[0], request, response, last)


_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
_CHUNKS = b"2;x=y\r\n\r\n\r\n0C\r\n0\r\n\r\n\r\n\r\n\r\n.\r\n0\r\nA: b\r\n\r\n"
_PUT = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKS
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKS
_HEAD = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
_BARE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

SMALL = {
    "plain": [one(_GET, _OK), one(_GET, _OK)],
    "upload": [one(_POST, b"HTTP/1.1 100 Continue\r\n\r\n" + _OK), one(_GET, _OK)],
    "chunks": [one(_PUT, _CHUNKED), one(_GET, _OK)],
    "head": [one(_HEAD, _BARE), one(_GET, _OK)],
    "no content": [one(_GET, b"HTTP/1.1 204 \r\n\r\n"), one(_POST, b"HTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\n")],
    "hints": [one(_GET, b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + _CHUNKED), one(_GET, _OK)],
    "until close": [one(_GET, _OK), one(_GET, b"HTTP/1.0 200 OK\r\n\r\nbody", last=True)],
    "upgrade": [
        one(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 101 S\r\n\r\n\x81\x00\r\n\r\n",
            last=True,
        )
    ],
    "tunnel": [one(b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x01", last=True)],
    "no tunnel": [one(b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")],
    "old": [one(b"GET / HTTP/1.0\r\n\r\n", _OK), one(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", _OK)],
}


def pieces(data: bytes, cuts: tuple[int, ...]) -> list[int]:
    """The sizes of the pieces that cuts at these offsets leave."""
    edges = [0, *cuts, len(data)]
    return [after - before for before, after in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_and_every_pair_of_cuts(name: str) -> None:
    """One exchange after the other, and all of them pipelined; each direction cut at every place and pair of places."""
    talk = converse(SMALL[name])
    for side, data in ((CLIENT, talk.client), (SERVER, talk.server)):
        for cuts in itertools.chain(
            itertools.combinations(range(1, len(data)), 1), itertools.combinations(range(1, len(data)), 2)
        ):
            passage = Passage(talk)
            if side == CLIENT:
                for size in pieces(data, cuts):
                    passage.pass_client(size)
                    passage.pass_server(NEVER)
            else:
                passage.pass_client(NEVER)
                for size in pieces(data, cuts):
                    passage.pass_server(size)
            passage.finish()


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_of_one_direction_with_every_cut_of_the_other(name: str) -> None:
    talk = converse(SMALL[name])
    for client in range(1, len(talk.client)):
        for server in range(1, len(talk.server)):
            passage = Passage(talk)
            passage.pass_client(client)
            passage.pass_server(server, early=True)
            passage.finish()


@examples(100)
@given(conversations(), st.data())
def test_a_refusal_is_a_response_to_the_request_that_waits(talk: Conversation, data: st.DataObject) -> None:
    passage = Passage(talk)
    passage.pass_client(data.draw(st.integers(1, len(talk.client))))
    passage.pass_server(data.draw(st.integers(0, len(talk.server))))
    refusal = passage.watched.observer.refusal()
    waiting = [
        number
        for number, begin in enumerate(talk.begins)
        if passage.client > begin and passage.server < talk.answers[number]
    ]
    if not waiting or passage.watched.observer.opaque:
        assert not refusal
        return
    first = waiting[0]
    known = passage.client >= talk.heads[first]
    begin = talk.answer_begins[first]
    if passage.server == begin:
        assert refusal
    if not refusal:
        return
    # What the client reads: the responses so far, an interim one perhaps, and the refusal.
    seen = talk.server[begin : passage.server] + refusal
    method = talk.methods[first] if known else b"GET"
    begins, ends, _ = read_responses(seen, [method], upgrade=False)
    assert (begins, ends) == ([0], [len(seen)])
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in refusal
    assert b"\r\nConnection: close\r\n" in refusal
    assert refusal.endswith(REFUSAL) == (method != b"HEAD")


@examples(20)
@given(
    st.lists(st.sampled_from(sorted(set(SMALL) - {"until close", "upgrade", "tunnel"})), min_size=1, max_size=50),
    st.randoms(use_true_random=False),
)
def test_long_connections(names: list[str], random: Random) -> None:
    talk = converse([exchange for name in names for exchange in SMALL[name]])
    passage = Passage(talk)
    while passage.client < len(talk.client):
        passage.pass_client(random.randint(1, 300))
        passage.pass_server(random.randint(1, 300), random.random() < 0.5)
    passage.finish()
    assert passage.watched.observer.in_flight == 0


def test_ten_thousand_exchanges_leave_nothing_behind() -> None:
    watched = Watched()
    for _ in range(10_000):
        watched.feed(CLIENT, _GET)
        watched.feed(SERVER, _OK)
    assert watched.tally.begun == watched.tally.ends == 10_000
    assert isinstance(watched.observer, Http1)
    assert watched.observer.reusable
