"""The HTTP/2 observer against h2: the same streams, whatever both sides do, however the bytes are cut."""

from typing import Any

from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, PingAckReceived, ResponseReceived, StreamEnded
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.http2_traffic import ACTS, REQUEST, RESPONSE, SIZES, Script, Talk, long_script, play
from tests.support.tallies import CLIENT, SERVER

acts = st.builds(
    lambda act, choice, flag: (*act, choice, flag), st.sampled_from(ACTS), st.integers(0, 63), st.booleans()
)
deliveries = st.tuples(
    st.sampled_from([CLIENT, SERVER]), st.just("deliver"), st.sampled_from(SIZES) | st.integers(1, 200), st.just(False)
)
# Short ones shrink well; long ones get somewhere.
scripts: st.SearchStrategy[Script] = st.lists(acts | deliveries, max_size=30) | st.builds(
    long_script, st.integers(0, 1 << 40), st.integers(20, 200)
)


@examples(500)
@given(scripts)
def test_same_streams_as_h2(script: Script) -> None:
    talk = Talk()
    play(talk, script)
    talk.settle()
    assert not talk.observer._held
    talk.watched.close()


@examples(60)
@given(scripts)
def test_same_streams_as_h2_after_the_handshake_and_to_the_end(script: Script) -> None:
    """The same with everything open in the end answered, so that nothing may be left."""
    talk = Talk()
    talk.settle()
    assert talk.observer.in_flight == 0
    play(talk, script)
    talk.settle()
    for side in (CLIENT, SERVER):
        end = talk.ends[side]
        while end.fresh or end.sendable:
            talk.act(side, "answer", 1, True)
            talk.act(side, "end", 1, True)
        talk.settle()
    assert talk.observer.in_flight == talk.watched.tally.in_flight == 0
    assert talk.observer.whole


@examples(100)
@given(scripts, st.sampled_from([CLIENT, SERVER]), scripts)
def test_goaway(before: Script, side: str, after: Script) -> None:
    talk = Talk()
    play(talk, before)
    talk.act(side, "goaway", 0, False)
    play(talk, after)
    talk.settle()
    talk.observer.server_closed()
    assert talk.observer.in_flight == 0
    talk.watched.close()


@examples(100)
@given(scripts, st.sampled_from(["closed", "server closed"]))
def test_an_abort_anywhere_ends_what_had_begun(script: Script, how: str) -> None:
    talk = Talk()
    play(talk, script)
    if how == "server closed":
        talk.observer.server_closed()
        assert talk.watched.tally.in_flight == talk.observer.in_flight == 0
    talk.watched.close()


@examples(60)
@given(st.lists(st.booleans(), max_size=5), st.sampled_from([False, False, False, False, True]))
def test_a_refusal_before_the_server_was_reached(requests: list[bool], large: bool) -> None:
    """The observer has seen a client's preface and requests, and no byte of a server."""
    talk = Talk()
    for ended in requests:
        talk.act(CLIENT, "open", 63 if large else 1, ended)
    talk.deliver(CLIENT, 1 << 20)
    check_refusal(talk, {1 + 2 * index for index in range(len(requests))})


@examples(200)
@given(scripts)
def test_a_refusal_in_the_middle(script: Script) -> None:
    """Wherever the observer will say one, a client takes it: for each stream without a response, 503."""
    talk = Talk()
    play(talk, script)
    talk.deliver(CLIENT, 1 << 20)  # what the client has sent, the relay has taken
    if talk.reference.buffers[SERVER] or talk.reference.midst:
        assert talk.observer.refusal() == b""
    else:
        check_refusal(talk, talk.reference.waiting)


def check_refusal(talk: Talk, waiting: set[int]) -> None:
    events = talk.ends[CLIENT].h2.receive_data(talk.observer.refusal())
    refused, ended, last = set(), set(), None
    for event in events:
        if isinstance(event, ResponseReceived):
            headers: Any = event.headers
            assert headers == [(":status", "503"), ("retry-after", "1")]
            refused.add(event.stream_id)
        elif isinstance(event, StreamEnded):
            ended.add(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            assert event.error_code == ErrorCodes.NO_ERROR
            last = event.last_stream_id
    assert refused == ended == waiting
    assert last == talk.reference.last


@examples(100)
@given(scripts, st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=4))
def test_pongs_answer_the_client_in_place_of_the_server(script: Script, payloads: list[bytes]) -> None:
    talk = Talk()
    talk.settle()
    play(talk, script)
    talk.settle()
    client = talk.ends[CLIENT].h2
    for payload in payloads:
        client.ping(payload)
    data = client.data_to_send()
    before = talk.watched.picture
    pongs = talk.observer.pongs(data)
    assert pongs is not None
    assert talk.watched.picture == before
    assert [event.ping_data for event in client.receive_data(pongs) if isinstance(event, PingAckReceived)] == payloads
    # And the server, which never saw them, is none the wiser.
    talk.act(CLIENT, "open", 1, True)
    talk.settle()


def test_pongs_only_for_pings_and_only_between_frames() -> None:
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
    talk = Talk()
    assert talk.observer.pongs(ping) is None  # within the preface
    talk.deliver(CLIENT, 1 << 20)
    assert talk.observer.pongs(ping) is None  # the server has not said its SETTINGS, which come first
    talk.settle()
    assert talk.observer.pongs(ping) == b"\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678"
    for other in (
        ping[:-1],
        ping + ping[:9],
        ping[:4] + b"\x01" + ping[5:],  # an acknowledgement
        ping + b"\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + ping[9:],
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01" + ping[:4],
        b"x" * 17,
        b"\x00" + ping + ping[:16],  # two that do not begin where frames begin
        b"\x00\x00\x19\x00\x00\x00\x00\x00\x01" + ping + b"12345678",  # a frame that looks like one inside
    ):
        assert talk.observer.pongs(other) is None
    for side, part in ((SERVER, b"\x00\x00"), (CLIENT, b"\x00\x00\x08")):
        cut = Talk()
        cut.settle()
        cut.watched.feed(side, part)
        assert cut.observer.pongs(ping) is None


def test_the_connection_itself_is_held_until_the_handshake_is_over() -> None:
    talk = Talk()
    assert (talk.observer.in_flight, talk.watched.tally.holds, talk.watched.tally.begun) == (1, 1, 0)
    talk.deliver(CLIENT, 1 << 20)
    assert talk.observer.in_flight == 1
    talk.deliver(SERVER, 1 << 20)  # SETTINGS and the acknowledgement of the client's
    assert talk.observer.in_flight == 1
    talk.deliver(CLIENT, 1 << 20)
    assert talk.observer.in_flight == 0
    talk.act(SERVER, "ping", 1, False)
    talk.deliver(SERVER, 1 << 20)
    assert talk.observer.in_flight == 1
    talk.deliver(CLIENT, 1 << 20)
    assert talk.observer.in_flight == 0
    assert talk.watched.tally.begun == 0


def test_a_stream_begins_with_its_ninth_byte_and_ends_with_its_last() -> None:
    talk = Talk()
    talk.settle()
    talk.act(CLIENT, "open", 1, True)
    talk.deliver(CLIENT, 8)
    assert talk.observer.in_flight == 0
    talk.deliver(CLIENT, 1)
    assert talk.observer.in_flight == 1
    talk.deliver(CLIENT, 1 << 20)
    talk.act(SERVER, "answer", 1, False)
    talk.act(SERVER, "data", 49, True)
    talk.deliver(SERVER, len(talk.ends[SERVER].wire) - 1)
    assert talk.observer.in_flight == 1
    talk.deliver(SERVER, 1)
    assert talk.observer.in_flight == 0


def test_a_push_that_the_client_declined_while_it_was_on_its_way_is_not_left_in_flight() -> None:
    talk = Talk()
    talk.settle()
    client, server = talk.ends[CLIENT], talk.ends[SERVER]
    talk.act(CLIENT, "open", 1, True)
    talk.settle()
    talk.act(SERVER, "push", 1, False)
    talk.deliver(SERVER, 1 << 20)
    server.h2.send_headers(2, RESPONSE)
    server.wire += server.h2.data_to_send()
    client.h2.reset_stream(2)
    client.wire += client.h2.data_to_send()
    talk.deliver(CLIENT, 1 << 20)
    talk.deliver(SERVER, 1 << 20)
    server.fresh.discard(2)
    talk.act(SERVER, "answer", 1, True)
    talk.settle()
    assert talk.observer.in_flight == 0


def test_requests_are_what_h2_says_they_are() -> None:
    """The reference and the observer could both be blind to requests; h2's own events are not."""
    talk = Talk()
    talk.settle()
    client = talk.ends[CLIENT]
    for _ in range(3):
        client.h2.send_headers(client.h2.get_next_available_stream_id(), REQUEST, end_stream=True)
    client.wire += client.h2.data_to_send()
    talk.deliver(CLIENT, 1 << 20)
    assert len(talk.ends[SERVER].fresh) == talk.observer.in_flight == talk.watched.tally.begun == 3
