"""Packets in, exchanges out: the same as the observers count from the bytes themselves, however the packets come."""

import struct
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.ambient import conversations
from freeze_proxy.ambient.conversations import KEY, Conversations
from freeze_proxy.ambient.program import ACK, DATAGRAM, FIN, FROM_SERVER, HEADER, RST, SYN, UNCLEAR, WAKES
from freeze_proxy.observe import pick
from tests.support.http1_traffic import Conversation
from tests.support.http1_traffic import conversations as talks
from tests.support.tallies import Recorder

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
SETTINGS_ACK = b"\0\0\0\4\1\0\0\0\0"


class Line:
    """One connection, whose packets are made here and handed to ``Conversations``."""

    def __init__(self, all_: "Stage", port: int = 40000, start: int = 1000) -> None:
        self.stage = all_
        self.port = port
        self.client = start
        self.server = start + 5000

    def packet(
        self,
        flags: int,
        data: bytes = b"",
        server: bool = False,
        sequence: int | None = None,
        copied: int | None = None,
    ) -> bytes:
        if sequence is None:
            sequence = self.server if server else self.client
        copied = len(data) if copied is None else copied
        kind = FROM_SERVER if server else WAKES if data or flags & SYN else 0
        addresses = (b"\x01" * 16, b"\x02" * 16, self.port, 8080)
        return (
            struct.pack(HEADER, 0, 1, sequence & 0xFFFFFFFF, len(data), copied, kind, flags, *addresses, 0)
            + data[:copied]
        )

    def sends(self, data: bytes, flags: int = ACK, server: bool = False, copied: int | None = None) -> None:
        """A packet, in its order."""
        self.stage.told(self.packet(flags, data, server, copied=copied))
        step = len(data) + (1 if flags & (SYN | FIN) else 0)
        if server:
            self.server += step
        else:
            self.client += step

    def says(self, data: bytes, flags: int = ACK, copied: int | None = None) -> None:
        """The server sends this."""
        self.sends(data, flags, True, copied)

    def opens(self) -> "Line":
        self.sends(b"", SYN)
        self.says(b"", SYN | ACK)
        return self


class Stage:
    def __init__(self) -> None:
        self.tally = Recorder()
        self.touches = 0
        self.all = Conversations(self.tally, self._touch)

    def _touch(self) -> None:
        self.touches += 1

    def told(self, record: bytes) -> None:
        self.all.told(record)
        assert self.all.in_flight == self.tally.in_flight

    @property
    def counts(self) -> tuple[int, int]:
        return self.tally.begun, self.tally.in_flight


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_an_exchange_begins_with_its_request_and_ends_with_its_response(stage: Stage) -> None:
    line = Line(stage).opens()
    assert stage.counts == (0, 0)
    assert stage.touches == 1  # the SYN
    for number in range(1, 4):
        line.sends(REQUEST)
        assert stage.counts == (number, 1)
        line.says(RESPONSE)
        assert stage.counts == (number, 0)
    assert stage.all.kept
    line.sends(b"", FIN | ACK)
    line.says(b"", FIN | ACK)
    assert not len(stage.all)


@pytest.mark.parametrize("start", [1000, (1 << 32) - 20])
def test_what_comes_twice_or_too_early_counts_once(stage: Stage, start: int) -> None:
    line = Line(stage, start=start).opens()
    first = line.packet(ACK, REQUEST[:5])
    second = line.packet(ACK, REQUEST[5:10], sequence=line.client + 5)
    third = line.packet(ACK, REQUEST[8:], sequence=line.client + 8)
    for packet in (third, second, third, first, second, third):
        stage.told(packet)
    assert stage.counts == (1, 1)
    line.says(RESPONSE)
    stage.told(line.packet(ACK, RESPONSE, server=True, sequence=line.server - len(RESPONSE)))
    assert stage.counts == (1, 0)


def test_a_gap_that_does_not_close_makes_it_opaque(stage: Stage) -> None:
    line = Line(stage).opens()
    line.sends(REQUEST)
    line.says(RESPONSE)
    line.client += 10
    for _ in range(conversations.MOST_HELD + 1):
        line.sends(REQUEST)
        line.says(RESPONSE)
    assert stage.tally.in_flight == 1
    line.sends(b"", RST)
    assert stage.tally.in_flight == 0


def test_a_connection_that_was_open_before_is_opaque_until_it_closes(stage: Stage) -> None:
    stranger = Line(stage)
    stranger.says(RESPONSE)
    assert stage.counts == (0, 1)
    stranger.sends(REQUEST)
    stranger.says(RESPONSE)
    assert stage.counts == (0, 1)
    stranger.says(b"", FIN | ACK)
    assert stage.counts == (0, 1)
    stranger.sends(b"", FIN | ACK)
    assert stage.counts == (0, 0)
    stage.all.found([stranger.packet(0)[KEY]])
    assert stage.counts == (0, 1)
    stage.all.only(set())
    assert stage.counts == (0, 0)


def test_a_listing_may_lack_a_connection_that_is_there(stage: Stage) -> None:
    """A long request is silent, and the kernel's tables change while they are read."""
    line = Line(stage).opens()
    line.sends(REQUEST)
    key = line.packet(0)[KEY]
    for lacking in (2, 1, 2):
        for _ in range(lacking):
            stage.all.listed(set())
            assert stage.counts == (1, 1)
        stage.all.listed({key})
    for _ in range(conversations.LISTINGS - 1):
        stage.all.listed(set())
        assert stage.counts == (1, 1)
    stage.all.listed(set())
    assert stage.counts == (1, 0)


def test_lost_records_make_all_opaque_and_new_connections_are_followed_again(stage: Stage) -> None:
    old = Line(stage).opens()
    old.sends(REQUEST)
    stage.all.lost()
    assert stage.counts == (1, 1)
    old.client += 500
    old.says(RESPONSE)
    assert stage.counts == (1, 1)
    new = Line(stage, 40001).opens()
    new.sends(REQUEST)
    new.says(RESPONSE)
    assert stage.counts == (2, 1)
    for _ in range(5):
        stage.all.sweep()
    assert stage.counts == (2, 0)  # silent for as long as the user says
    old.says(b"more")
    assert stage.counts == (2, 1)


def test_a_reset_counts_only_in_its_place(stage: Stage) -> None:
    line = Line(stage).opens()
    line.sends(REQUEST)
    stage.told(line.packet(RST, sequence=line.client + 1))  # somebody guesses
    assert stage.counts == (1, 1)
    stage.told(line.packet(RST))
    assert stage.counts == (1, 0)


def test_a_server_that_speaks_first_is_opaque_unless_it_speaks_http2(stage: Stage) -> None:
    greeter = Line(stage).opens()
    greeter.says(b"220 mail.test ready\r\n")
    greeter.sends(b"EHLO x\r\n")
    assert stage.counts == (0, 1)
    greeter.sends(b"", RST)
    modern = Line(stage, 40001).opens()
    modern.says(SETTINGS)
    assert stage.counts == (0, 1)
    modern.sends(PREFACE[:3])
    modern.sends(PREFACE[3:] + SETTINGS)
    modern.sends(SETTINGS_ACK)
    assert stage.counts == (0, 1)
    modern.says(SETTINGS_ACK)
    assert stage.counts == (0, 0)


def test_bytes_that_were_not_copied_matter_only_where_they_are_not_a_body_of_known_length(stage: Stage) -> None:
    line = Line(stage).opens()
    body = b"x" * 200_000
    line.sends(REQUEST)
    line.says(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    line.says(body[:150_000], copied=100)
    assert stage.counts == (1, 1)
    line.says(body[150_000:])
    assert stage.counts == (1, 0)
    line.sends(REQUEST)
    line.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    line.says(b"5\r\nhello\r\n0\r\n\r\n", copied=3)
    assert stage.counts == (2, 1)


def test_datagrams_and_what_is_unclear_are_for_the_server_to_see(stage: Stage) -> None:
    addresses = (b"\x01" * 16, b"\x02" * 16, 1, 2, 0)
    stage.told(struct.pack(HEADER, 0, 1, 0, 5, 0, WAKES | DATAGRAM, 0, *addresses))
    stage.told(struct.pack(HEADER, 0, 1, 0, 5, 0, FROM_SERVER | DATAGRAM, 0, *addresses))
    assert stage.touches == 2
    assert stage.counts == (0, 0)
    stage.told(struct.pack(HEADER, 0, 1, 0, 0, 0, WAKES | UNCLEAR, 0, *addresses))
    stage.all.only(set())  # it is no connection of which the kernel could tell
    assert stage.counts == (0, 1)


def test_a_flood_of_syns_is_forgotten_in_order(stage: Stage) -> None:
    for port in range(conversations.MOST_OPENING + 10):
        Line(stage, port).sends(b"", SYN)
    assert len(stage.all) == conversations.MOST_OPENING
    assert stage.counts == (0, 0)


@given(talk=talks(), random=st.randoms(use_true_random=False))
def test_any_conversation_in_packets_of_any_size_that_come_late_or_twice(talk: Conversation, random: Random) -> None:
    """An exchange's request passes before its response; within a direction packets may overtake each other."""
    plain = Recorder()
    observer = None
    stage = Stage()
    line = Line(stage).opens()
    before = 0
    for number, end in enumerate(talk.ends):
        answers = [0, *talk.answers]
        last = number + 1 == len(talk.ends)
        until = len(talk.server) if last or number + 1 >= len(answers) else answers[number + 1]
        request = talk.client[before : len(talk.client) if last else end]
        response = talk.server[min(answers[number], len(talk.server)) : until] if number < len(answers) else b""
        before = end
        observer = observer or pick(request, plain)
        assert observer is not None
        observer.from_client(request)
        observer.from_server(response, len(response))
        for data, server in ((request, False), (response, True)):
            at = line.server if server else line.client
            cuts = sorted({0, len(data), *(random.randrange(len(data) + 1) for _ in range(random.randrange(6)))})
            packets = [line.packet(ACK, data[a:b], server, at + a) for a, b in pairwise(cuts) if a < b]
            packets += random.sample(packets, random.randrange(len(packets) + 1))
            random.shuffle(packets)
            for packet in packets:
                stage.told(packet)
            line.server += len(data) if server else 0
            line.client += 0 if server else len(data)
        assert stage.counts == (plain.begun, plain.in_flight)


@given(
    st.lists(st.tuples(st.integers(0, 255), st.booleans(), st.binary(max_size=30), st.integers(-40, 40)), max_size=40)
)
def test_any_packets_at_all(packets: list[tuple[int, bool, bytes, int]]) -> None:
    """Nothing raises; the counts agree with those of the observers, and end with the connections."""
    stage = Stage()
    line = Line(stage).opens()
    for flags, server, data, offset in packets:
        base = line.server if server else line.client
        stage.told(line.packet(flags, data, server, base + offset))
        if not offset:
            line.sends(data, ACK, server)
    stage.all.lost()
    stage.all.only(set())
    assert stage.tally.in_flight == 0
    assert len(stage.all) == 0
