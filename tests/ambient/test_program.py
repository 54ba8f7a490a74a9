"""The program by itself, on packets, in the kernel (BPF_PROG_TEST_RUN): it does what ``packets.model`` says."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.ambient import program as source
from freeze_proxy.ambient.assembly import Program, r0, r1
from freeze_proxy.ambient.bpf import EGRESS, INGRESS, BpfError, LoadedProgram, SharedValue
from freeze_proxy.ambient.program import (
    ACK,
    DATAGRAM,
    FIN,
    FROM_SERVER,
    LARGE,
    LEAVES,
    MEDIUM,
    RST,
    SMALL,
    SYN,
    UNCLEAR,
    WAKES,
)
from freeze_proxy.ambient.ring import Ring
from tests.ambient.packets import CLIENT, ICMP, SERVER, TCP, UDP, Verdict, ip4, ip6, model, tcp, udp
from tests.support.ambience import need_ambient

PUSH = 0x08
SLOT = 3
PORTS = (SERVER, 9090)


class Bench:
    """All variants of the program, with one ring."""

    def __init__(self) -> None:
        self.shared = SharedValue((SLOT + 1) * source.SLOT_SIZE)
        self.ring = Ring(1 << 20)
        self.words = self.shared.view.cast("Q")[SLOT * 4 :]
        self.programs: dict[tuple[int, tuple[int, ...], bool], LoadedProgram] = {
            (direction, ports, observe): LoadedProgram(self.code(direction, ports, observe), direction, "test")
            for direction in (INGRESS, EGRESS)
            for ports in (PORTS, ())
            for observe in (True, False)
            if observe or direction == INGRESS
        }

    def code(self, direction: int, ports: tuple[int, ...] = PORTS, observe: bool = True) -> bytes:
        return source.program(
            direction,
            ports,
            slot=SLOT,
            shared=self.shared.fd,
            ring=self.ring.fd,
            ring_size=self.ring.size,
            observe=observe,
        )

    def close(self) -> None:
        for program in self.programs.values():
            program.close()
        self.words.release()
        self.shared.close()
        self.ring.close()

    def run(self, packet: bytes, direction: int, ports: tuple[int, ...] = PORTS, observe: bool = True) -> list[bytes]:
        """The records of one packet, which passes in any case; all that were counted are there."""
        before = self.words[1]
        answer, _ = self.programs[direction, ports, observe].test(packet)
        assert answer == 1
        records = self.ring.take()
        if observe or self.words[0]:
            assert self.words[1] - before == len(records)
        return records


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    need_ambient()
    made = Bench()
    yield made
    made.close()


def _header(record: bytes) -> tuple[int, ...]:
    return struct.unpack_from(source.HEADER, record)


TABLE = [
    ("a SYN", INGRESS, ip4(TCP, tcp(SYN)), Verdict(WAKES)),
    ("a SYN over IPv6", INGRESS, ip6(TCP, tcp(SYN)), Verdict(WAKES)),
    ("a SYN with its first bytes", INGRESS, ip4(TCP, tcp(SYN, b"GET")), Verdict(WAKES, 3)),
    ("a request", INGRESS, ip4(TCP, tcp(ACK | PUSH, b"GET /")), Verdict(WAKES, 5)),
    ("a request with options in both headers", INGRESS, ip4(TCP, tcp(ACK, b"GET /", options=3), 2), Verdict(WAKES, 5)),
    ("a request over IPv6", INGRESS, ip6(TCP, tcp(ACK, b"GET /")), Verdict(WAKES, 5)),
    ("a request that is the last", INGRESS, ip4(TCP, tcp(ACK | FIN, b"GET /")), Verdict(WAKES, 5)),
    ("a bare ACK, or a keep-alive", INGRESS, ip4(TCP, tcp(ACK)), None),
    ("a FIN", INGRESS, ip4(TCP, tcp(ACK | FIN)), Verdict(LEAVES)),
    ("a RST", INGRESS, ip4(TCP, tcp(RST)), Verdict(LEAVES)),
    ("a RST that carries bytes", INGRESS, ip4(TCP, tcp(RST, b"why")), Verdict(LEAVES, 3)),
    ("a RST with a SYN", INGRESS, ip4(TCP, tcp(RST | SYN)), Verdict(LEAVES)),
    ("a SYN for another port", INGRESS, ip4(TCP, tcp(SYN, target=SERVER + 1)), None),
    ("a SYN from the server's port", INGRESS, ip4(TCP, tcp(SYN, source=SERVER, target=CLIENT)), None),
    ("a datagram", INGRESS, ip4(UDP, udp(b"hello")), Verdict(WAKES | DATAGRAM, 5)),
    ("an empty datagram over IPv6", INGRESS, ip6(UDP, udp()), Verdict(WAKES | DATAGRAM)),
    ("a datagram for another port", INGRESS, ip4(UDP, udp(b"hello", target=1)), None),
    ("an echo request", INGRESS, ip4(ICMP, b"\x08" + bytes(27)), None),
    ("IPv6 with hop-by-hop options", INGRESS, ip6(0, bytes(60)), Verdict(WAKES | UNCLEAR)),
    ("a response", EGRESS, ip4(TCP, tcp(ACK, b"HTTP/1.1", SERVER, CLIENT)), Verdict(FROM_SERVER, 8)),
    ("a SYN-ACK", EGRESS, ip4(TCP, tcp(SYN | ACK, b"", SERVER, CLIENT)), Verdict(FROM_SERVER)),
    ("a FIN of the server's", EGRESS, ip6(TCP, tcp(FIN | ACK, b"", SERVER, CLIENT)), Verdict(FROM_SERVER)),
    ("an ACK of the server's", EGRESS, ip4(TCP, tcp(ACK, b"", SERVER, CLIENT)), None),
    ("a request of the server's", EGRESS, ip4(TCP, tcp(ACK, b"GET", CLIENT, SERVER)), None),
    ("an answer by datagram", EGRESS, ip4(UDP, udp(b"yes", SERVER, CLIENT)), Verdict(FROM_SERVER | DATAGRAM, 3)),
]


@pytest.mark.parametrize(("direction", "packet", "verdict"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_it_makes_of_a_packet(bench: Bench, direction: int, packet: bytes, verdict: Verdict | None) -> None:
    assert model(packet, direction, PORTS, True) == verdict
    _agree(bench, packet, direction, PORTS)


def _agree(bench: Bench, packet: bytes, direction: int, ports: tuple[int, ...]) -> None:
    """The program says what the model says, in each of its variants."""
    expected = model(packet, direction, ports, True)
    records = bench.run(packet, direction, ports)
    if expected is None:
        assert not records
    else:
        heads = [_header(record) for record in records]
        assert {head[1] for head in heads} == {SLOT}
        assert {head[5] for head in heads} == {expected.kind}
        assert sum(head[3] for head in heads) == expected.length
        if not expected.kind & (DATAGRAM | UNCLEAR):
            copied = b"".join(record[64 : 64 + head[4]] for record, head in zip(records, heads, strict=True))
            assert copied == packet[len(packet) - expected.length :]
            assert [head[2] for head in heads] == [1000 + sum(each[3] for each in heads[:n]) for n in range(len(heads))]
    if direction == INGRESS:
        expected = model(packet, direction, ports, False)
        for armed in (0, 1):
            bench.words[0] = armed
            records = bench.run(packet, direction, ports, observe=False)
            assert len(records) == (armed and expected is not None)
            assert all(_header(record)[5] == expected.kind for record in records if expected)
        bench.words[0] = 0


_payloads = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(lambda size: bytes(size)))
_sides = st.sampled_from((SERVER, 9090, CLIENT, 1))
_segments = st.builds(tcp, st.integers(0, 255), _payloads, _sides, _sides, st.integers(0, 10))
_datagrams = st.builds(udp, _payloads, _sides, _sides)
_ip4 = st.one_of(
    st.builds(lambda body, options: ip4(TCP, body, options), _segments, st.integers(0, 10)),
    st.builds(lambda body, options: ip4(UDP, body, options), _datagrams, st.integers(0, 10)),
    st.builds(ip4, st.integers(0, 255), st.binary(min_size=20, max_size=60)),
)
_ip6 = st.one_of(
    st.builds(lambda body: ip6(TCP, body), _segments),
    st.builds(lambda body: ip6(UDP, body), _datagrams),
    st.builds(ip6, st.integers(0, 255), st.binary(max_size=60)),
)
_cut = st.builds(lambda packet, at: packet[: max(54, at)], st.one_of(_ip4, _ip6), st.integers(14, 100))
_noise = st.builds(
    lambda kind, data: bytes(12) + kind + data,
    st.sampled_from((b"\x08\0", b"\x86\xdd")),
    st.binary(min_size=40, max_size=80),
)


@given(packet=st.one_of(_ip4, _ip6, _cut, _noise), ports=st.sampled_from((PORTS, ())))
def test_any_packet(bench: Bench, packet: bytes, ports: tuple[int, ...]) -> None:
    for direction in (INGRESS, EGRESS):
        _agree(bench, packet, direction, ports)


@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1, MEDIUM, MEDIUM + 1, 3000])
def test_bytes_of_any_number_are_told_whole(bench: Bench, size: int) -> None:
    payload = bytes(n & 255 for n in range(size))
    records = bench.run(ip4(TCP, tcp(ACK, payload)), INGRESS)
    assert [len(record) for record in records] == [64 + next(room for room in (SMALL, MEDIUM, LARGE) if size <= room)]
    assert records[0][64 : 64 + size] == payload


def test_a_full_ring_loses_records_and_says_how_many(bench: Bench) -> None:
    packet = ip4(TCP, tcp(ACK, bytes(3000)))
    lost, packets, by_all = bench.words[2], bench.words[1], bench.shared.view.cast("Q")[source.LOST_BY_ALL]
    tries = bench.ring.size // 4096 + 50
    bench.programs[INGRESS, PORTS, True].test(packet, tries)
    taken = 0
    while records := bench.ring.take():
        taken += len(records)
    assert bench.words[1] - packets == tries
    assert 0 < bench.words[2] - lost == tries - taken
    assert bench.shared.view.cast("Q")[source.LOST_BY_ALL] - by_all == tries - taken


def test_what_the_verifier_has_against_a_program_is_shown() -> None:
    need_ambient()
    wrong = Program()
    wrong.load(r0, 4, r1, 4096)  # beyond the packet's context
    wrong.exit()
    with pytest.raises(
        BpfError, match=r"(?s)verifier refuses the program wrong .*invalid bpf_context access off=4096"
    ) as caught:
        LoadedProgram(wrong.code(), INGRESS, "wrong")
    assert "r0 = *(u32 *)(r1 +4096)" in caught.value.log


def test_a_reset_ends_a_connection_and_does_not_matter_to_the_count(bench: Bench) -> None:
    """Of a connection in some state only a real socket tells: ``test_watcher.py``."""
    code = source.program(
        INGRESS,
        PORTS,
        slot=SLOT,
        shared=bench.shared.fd,
        ring=bench.ring.fd,
        ring_size=bench.ring.size,
        observe=False,
        ends=True,
    )
    assert len(code) // 8 < 260
    program = LoadedProgram(code, INGRESS, "ends")
    for armed in (0, 1):
        bench.words[0], before = armed, bench.words[1]
        for packet in (tcp(RST), tcp(RST, b"why"), tcp(ACK), tcp(RST, target=SERVER + 1)):
            assert program.test(ip4(TCP, packet))[0] == 1
        assert bench.words[1] == before
        assert [_header(record)[3:6] for record in bench.ring.take()] == [(0, 0, source.ENDS)] * 2 * armed
    bench.words[0] = 0
    program.close()


def test_the_program_is_small(bench: Bench) -> None:
    assert len(bench.code(INGRESS, observe=False)) // 8 < 200
    assert max(len(bench.code(direction)) // 8 for direction in (INGRESS, EGRESS)) < 400


def test_labels_are_resolved_or_missed() -> None:
    p = Program()
    p.jump_if(r0, "==", 0, "nowhere")
    with pytest.raises(ValueError, match="no place called 'nowhere'"):
        p.code()
    p.label("nowhere")
    assert p.code() == bytes((0x15, 0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="two places"):
        p.label("nowhere")
