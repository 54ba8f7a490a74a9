"""The program that the kernel runs on each packet to or from a server's sockets.

It decides two things. *Does this packet wake the server?* A SYN and new bytes for its ports do, over IPv4 and IPv6,
and so does a datagram; a bare ACK, a keep-alive, a repetition, a FIN and a RST do not. *Is it to be told of?* A waking
packet is, while the server is watched; where exchanges are counted, whatever opens, moves or closes a connection always
is, with its bytes. It never changes or drops a packet, and keeps no state but three numbers a server.

Being told means a record in the ring: a header as in ``HEADER`` and the bytes. The count of packets goes up *before*
the word ``WATCHED`` is read. Who sets that word and then looks at the count has either seen the packet or is woken by
it.

Its type is cgroup_skb: it is called where the packet begins with its IP header, for a socket that is in the cgroup.
"""

import socket
import struct

from freeze_proxy.ambient.assembly import Program, Register, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10
from freeze_proxy.ambient.bpf import INGRESS

# A server's words in the value that programs and this process share; its slots begin with one that is nobody's.
WATCHED, PACKETS, LOST = 0, 8, 16
"""The kinds of which a record wakes the reader; how many packets mattered; how many records found no room in the ring.
"""
LOST_BY_ALL = 0
"""In nobody's slot: the last of these summed over all servers."""
SLOT_SIZE = 32

HEADER = "=QIIIHBB16s16sHHI"
"""Nanoseconds of the monotonic clock, slot, sequence number, bytes in the packet and how many of them follow, kind,
TCP flags, remote and local address (IPv4: the first four bytes), remote and local port in network order, the number
of the piece where a packet's bytes come in several records."""
HEADER_SIZE = 64
_TIME = struct.Struct("=Q")
_AT, _SLOT, _SEQUENCE, _LENGTH, _COPIED, _KIND, _FLAGS = 0, 8, 12, 16, 20, 22, 23
KIND_AT = _KIND
_REMOTE, _LOCAL, _REMOTE_PORT, _LOCAL_PORT, _PIECE = 24, 40, 56, 58, 60

FROM_SERVER, WAKES, DATAGRAM, UNCLEAR, ENDS, LEAVES = 1, 2, 4, 8, 16, 32
"""Kinds, as bits: what the server sends; what wakes it; UDP; IPv6 with extension headers, which are not read; what
shows that the server has closed a connection, or that the client resets it; a FIN or RST of the client's, where
exchanges are counted. ``ENDS`` does not matter to the count."""
ANY = FROM_SERVER | WAKES | ENDS | LEAVES
"""One of these is in every record."""
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

SMALL, MEDIUM, LARGE = 512 - HEADER_SIZE, 1536 - HEADER_SIZE, 4096 - HEADER_SIZE
"""Bytes of a packet that fit into the three sizes of a record. A longer packet takes several."""
MOST_PIECES = 17
"""Of one packet, which has 64 KiB at most; of a longer one (BIG TCP) the rest is told of without its bytes."""

# Where the kernel has things (include/uapi/linux/bpf.h: __sk_buff, bpf_sock, bpf_tcp_sock).
_SKB_LEN, _SKB_DATA, _SKB_DATA_END, _SKB_SK = 0, 76, 80, 168
_SOCK_STATE, _TCP_RCV_NXT = 72, 16
_LISTENING = 10
_CLOSED_BY_SERVER = (4, 5, 9, 11)
"""FIN-WAIT-1 and -2, LAST-ACK, CLOSING (include/net/tcp_states.h): the server has sent its FIN (RFC 9293 §3.3.2). The
client answers that with an ACK at least."""
# Its functions for programs.
_KTIME_GET_NS, _SKB_LOAD_BYTES, _SK_FULLSOCK, _TCP_SOCK = 5, 26, 95, 96
_RINGBUF_RESERVE, _RINGBUF_SUBMIT, _RINGBUF_QUERY = 131, 132, 134
_NO_WAKEUP, _FORCE_WAKEUP = 1, 2
_TCP, _UDP = 6, 17
_EXTENSIONS = (0, 43, 60)
"""Hop-by-hop and destination options, routing header (RFC 8200 §4.1)."""

_H = -HEADER_SIZE  # the record's header is made on the stack, which ends at r10
_ROUND = _H - 8  # and below it the number of the piece
_TRANSPORT = _ROUND - 8 - 24  # below that a record's address, and the header of TCP or UDP


def came_at(record: bytes) -> float:
    """Seconds of the monotonic clock."""
    nanoseconds: int = _TIME.unpack_from(record, _AT)[0]
    return nanoseconds * 1e-9


def program(
    direction: int,
    ports: tuple[int, ...],
    *,
    slot: int,
    shared: int,
    ring: int,
    ring_size: int,
    observe: bool,
    ends: bool = False,
) -> bytes:
    """Its instructions, for one direction of one server.

    ``ports``: of the server's sockets, those that matter; none means all. ``slot``: the number of the server's words in
    the map ``shared``. ``observe``: tell of everything that counting exchanges needs. ``ends``, where it does not: tell
    of what ``ENDS`` as well.
    """
    p = Program()
    ingress = direction == INGRESS
    words = slot * SLOT_SIZE

    # r6: the packet's context, r9: its first byte, r2: its end, as far as its headers go.
    p.set(r6, "=", r1)
    p.load(r9, 4, r6, _SKB_DATA)
    p.load(r2, 4, r6, _SKB_DATA_END)
    for at in range(0, HEADER_SIZE, 8):
        p.store(8, r10, _H + at, 0)
    p.store(4, r10, _H + _SLOT, slot)

    # Which protocol, and r7: where its header begins.
    _have(p, r9, 20)
    p.load(r1, 1, r9, 0)
    p.set(r7, "=", r1)
    p.set(r1, ">>=", 4)
    p.jump_if(r1, "==", 6, "IPv6")
    p.jump_if(r1, "!=", 4, "pass")
    p.set(r7, "&=", 0x0F)
    p.set(r7, "<<=", 2)
    p.load(r1, 1, r9, 9)
    _copy(p, r9, 12 if ingress else 16, _H + _REMOTE, 4)
    _copy(p, r9, 16 if ingress else 12, _H + _LOCAL, 4)
    p.jump("transport")
    p.label("IPv6")
    _have(p, r9, 40)
    p.set(r7, "=", 40)
    p.load(r1, 1, r9, 6)
    for half in (0, 4, 8, 12):
        _copy(p, r9, (8 if ingress else 24) + half, _H + _REMOTE + half, 4)
        _copy(p, r9, (24 if ingress else 8) + half, _H + _LOCAL + half, 4)
    if ingress:
        for extension in _EXTENSIONS:
            p.jump_if(r1, "==", extension, "unclear")
    p.label("transport")
    p.jump_if(r1, "==", _TCP, "TCP")
    p.jump_if(r1, "!=", _UDP, "pass")

    # A datagram. r3: its header, r8: how many bytes it carries.
    _transport(p, 8)
    _ours(p, r3, ingress, ports, "datagram")
    p.label("datagram")
    _ports(p, r3, ingress)
    p.set(r7, "+=", 8)
    p.load(r8, 4, r6, _SKB_LEN)
    p.set(r8, "-=", r7)
    p.store(1, r10, _H + _KIND, DATAGRAM | (WAKES if ingress else FROM_SERVER))
    p.jump("bare")

    if ingress:
        p.label("unclear")
        p.set(r8, "=", 0)
        p.store(1, r10, _H + _KIND, WAKES | UNCLEAR)
        p.jump("bare")

    # A segment. r3: its header, r7: where its bytes begin, r8: how many there are.
    p.label("TCP")
    _transport(p, 20)
    _ours(p, r3, ingress, ports, "segment")
    p.label("segment")
    _ports(p, r3, ingress)
    p.load(r4, 1, r3, 12)
    p.set(r4, ">>=", 4)
    p.set(r4, "<<=", 2)
    p.set(r7, "+=", r4)
    p.load(r8, 4, r6, _SKB_LEN)
    p.set(r8, "-=", r7)
    p.load(r4, 4, r3, 4)
    p.swap_to_big(r4, 32)
    p.store(4, r10, _H + _SEQUENCE, r4)
    p.load(r5, 1, r3, 13)
    p.store(1, r10, _H + _FLAGS, r5)
    if ingress:
        p.jump_if(r5, "&", RST, "end of a connection")
        p.jump_if(r5, "&", SYN, "waking")
        p.jump_if(r8, "s>", 0, "bytes")
        p.jump_if(r5, "&", FIN, "end of a connection")
        p.jump("pass" if observe or not ends else "end of a connection")  # a bare ACK, or a keep-alive without a byte
        p.label("end of a connection")
        if observe:
            p.store(1, r10, _H + _KIND, LEAVES)
            p.jump("tell")
        elif not ends:
            p.jump("pass")
        else:
            p.address(r1, shared, words)
            p.load(r1, 8, r1, WATCHED)
            p.jump_if(r1, "==", 0, "pass")
            p.jump_if(r5, "&", RST, "over")
            p.load(r1, 8, r6, _SKB_SK)
            p.jump_if(r1, "==", 0, "pass")
            p.call(_SK_FULLSOCK)
            p.jump_if(r0, "==", 0, "pass")
            p.load(r1, 4, r0, _SOCK_STATE)
            for state in _CLOSED_BY_SERVER:
                p.jump_if(r1, "==", state, "over")
            p.jump("pass")
            p.label("over")
            p.store(1, r10, _H + _KIND, ENDS)
            _tell(p, 0, r8, words, shared, ring, ring_size, observe, counted=False)
            p.jump("pass")

        # Bytes are new where they go beyond what the socket has received; those of a keep-alive or a repetition do not.
        # One that has not got a state of its own yet, such as a listening one, has received nothing.
        p.label("bytes")
        p.load(r1, 8, r6, _SKB_SK)
        p.jump_if(r1, "==", 0, "waking")
        p.call(_SK_FULLSOCK)
        p.jump_if(r0, "==", 0, "waking")
        p.load(r1, 4, r0, _SOCK_STATE)
        p.jump_if(r1, "==", _LISTENING, "waking")
        p.set(r1, "=", r0)
        p.call(_TCP_SOCK)
        p.jump_if(r0, "==", 0, "waking")
        p.load(r1, 4, r10, _H + _SEQUENCE)
        p.set32(r1, "+=", r8)
        p.load(r2, 4, r0, _TCP_RCV_NXT)
        p.set32(r1, "-=", r2)
        p.jump_if32(r1, "s<=", 0, "pass")
        p.label("waking")
        p.store(1, r10, _H + _KIND, WAKES)
    else:
        p.store(1, r10, _H + _KIND, FROM_SERVER)
        p.jump_if(r5, "&", SYN | FIN | RST, "tell")
        p.jump_if(r8, "s<=", 0, "pass")

    p.label("tell")
    if observe:
        p.store(8, r10, _ROUND, 0)
        p.jump_if(r8, "s<=", 0, "bare")
        p.label("piece")
        p.store(4, r10, _H + _LENGTH, r8)
        p.jump_if(r8, "<=", SMALL, "small")
        p.jump_if(r8, "<=", MEDIUM, "medium")
        # r9: the bytes of this piece.
        p.set(r9, "=", r8)
        p.jump_if(r9, "<=", LARGE, "large")
        p.set(r9, "=", LARGE)
        p.store(4, r10, _H + _LENGTH, r9)
        p.label("large")
        _tell(p, LARGE, r9, words, shared, ring, ring_size, observe)
        p.set(r7, "+=", r9)
        p.set(r8, "-=", r9)
        p.jump_if(r8, "s<=", 0, "pass")
        p.load(r1, 4, r10, _H + _SEQUENCE)
        p.set32(r1, "+=", r9)
        p.store(4, r10, _H + _SEQUENCE, r1)
        p.load(r1, 8, r10, _ROUND)
        p.set(r1, "+=", 1)
        p.store(8, r10, _ROUND, r1)
        p.store(4, r10, _H + _PIECE, r1)
        p.jump_if(r1, "<", MOST_PIECES, "piece")
        p.jump("bare")
        for name, room in (("medium", MEDIUM), ("small", SMALL)):
            p.label(name)
            p.set(r9, "=", r8)
            _tell(p, room, r9, words, shared, ring, ring_size, observe)
            p.jump("pass")
    p.label("bare")
    p.jump_if(r8, "s>", 0, "length")
    p.set(r8, "=", 0)
    p.label("length")
    p.store(4, r10, _H + _LENGTH, r8)
    _tell(p, 0, r8, words, shared, ring, ring_size, observe)

    p.label("pass")
    p.set(r0, "=", 1)
    p.exit()
    return p.code()


def _transport(p: Program, size: int) -> None:
    """So many bytes of the header at r7 onto the stack, and r3 is where; go on only if there are as many.

    Who has CAP_BPF and not CAP_PERFMON may not add to the address of a packet what is not known beforehand.
    """
    p.set(r1, "=", r6)
    p.set(r2, "=", r7)
    p.set(r3, "=", r10)
    p.set(r3, "+=", _TRANSPORT)
    p.set(r4, "=", size)
    p.call(_SKB_LOAD_BYTES)
    p.jump_if(r0, "!=", 0, "pass")
    p.set(r3, "=", r10)
    p.set(r3, "+=", _TRANSPORT)


def _have(p: Program, start: Register, size: int) -> None:
    """Go on only if so many bytes from ``start`` are before the end in r2: the verifier insists on it."""
    p.set(r4, "=", start)
    p.set(r4, "+=", size)
    p.jump_if(r4, ">", r2, "pass")


def _copy(p: Program, base: Register, offset: int, to: int, size: int) -> None:
    p.load(r4, size, base, offset)
    p.store(size, r10, to, r4)


def _ours(p: Program, transport: Register, ingress: bool, ports: tuple[int, ...], then: str) -> None:
    """Go on at ``then`` if the server's port is one of these; both are in the network's order of bytes."""
    if ports:
        p.load(r4, 2, transport, 2 if ingress else 0)
        for port in ports:
            p.jump_if(r4, "==", socket.htons(port), then)
        p.jump("pass")


def _ports(p: Program, transport: Register, ingress: bool) -> None:
    _copy(p, transport, 0 if ingress else 2, _H + _REMOTE_PORT, 2)
    _copy(p, transport, 2 if ingress else 0, _H + _LOCAL_PORT, 2)


def _tell(
    p: Program,
    room: int,
    size: Register,
    words: int,
    shared: int,
    ring: int,
    ring_size: int,
    observe: bool,
    counted: bool = True,
) -> None:
    """Count the packet and write its record: the header, and ``size`` of its bytes, where there is room for any.

    ``size`` is between 1 and ``room`` then. Goes on at ``pass`` where the record is not wanted, or does not fit.
    """
    there = f"a record with room for {room}" if counted else "a record that is not counted"
    # First the count, then the look at WATCHED.
    p.address(r1, shared, words)
    if counted:
        p.set(r2, "=", 1)
        p.add_atomically(r1, PACKETS, r2)
    if not observe:
        p.load(r2, 8, r1, WATCHED)
        p.jump_if(r2, "==", 0, "pass")
    if room:
        p.store(2, r10, _H + _COPIED, size)
    p.call(_KTIME_GET_NS)
    p.store(8, r10, _H + _AT, r0)
    p.map(r1, ring)
    p.set(r2, "=", HEADER_SIZE + room)
    p.set(r3, "=", 0)
    p.call(_RINGBUF_RESERVE)
    p.jump_if(r0, "!=", 0, there)
    p.address(r1, shared, words)
    p.set(r2, "=", 1)
    p.add_atomically(r1, LOST, r2)
    p.address(r1, shared, LOST_BY_ALL)
    p.add_atomically(r1, 0, r2)
    p.jump("pass")
    p.label(there)
    p.store(8, r10, _ROUND - 8, r0)
    for at in range(0, HEADER_SIZE, 8):
        p.load(r1, 8, r10, _H + at)
        p.store(8, r0, at, r1)
    if room:
        p.set(r1, "=", r6)
        p.set(r2, "=", r7)
        p.set(r3, "=", r0)
        p.set(r3, "+=", HEADER_SIZE)
        p.set(r4, "=", size)
        p.call(_SKB_LOAD_BYTES)
    # Wake the reader where it waits for this, or before it is too late.
    p.address(r1, shared, words)
    p.load(r1, 8, r1, WATCHED)
    p.load(r2, 1, r10, _H + _KIND)
    p.set(r1, "&=", r2)
    p.jump_if(r1, "!=", 0, f"wake for {there}")
    p.map(r1, ring)
    p.set(r2, "=", 0)  # BPF_RB_AVAIL_DATA
    p.call(_RINGBUF_QUERY)
    # It is woken once while the ring is filling up: each waking costs an interrupt.
    p.set(r2, "=", _NO_WAKEUP)
    p.jump_if(r0, "<", ring_size // 4, f"submit {there}")
    p.jump_if(r0, ">", ring_size // 4 + 2 * (HEADER_SIZE + LARGE), f"submit {there}")
    p.label(f"wake for {there}")
    p.set(r2, "=", _FORCE_WAKEUP)
    p.label(f"submit {there}")
    p.load(r1, 8, r10, _ROUND - 8)
    p.call(_RINGBUF_SUBMIT)
