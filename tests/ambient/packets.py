"""Packets, byte by byte, and what the program in the kernel is to make of them, said once more in plain Python."""

import struct
from dataclasses import dataclass

from freeze_proxy.ambient.bpf import INGRESS
from freeze_proxy.ambient.program import DATAGRAM, FIN, FROM_SERVER, LEAVES, RST, SYN, UNCLEAR, WAKES

TCP, UDP, ICMP = 6, 17, 1
CLIENT, SERVER = 40000, 8080


def tcp(flags: int, payload: bytes = b"", source: int = CLIENT, target: int = SERVER, options: int = 0) -> bytes:
    offset = 5 + options
    return (
        struct.pack(">HHIIBBHHH", source, target, 1000, 2000, offset << 4, flags, 1, 0, 0)
        + bytes(4 * options)
        + payload
    )


def udp(payload: bytes = b"", source: int = CLIENT, target: int = SERVER) -> bytes:
    return struct.pack(">HHHH", source, target, 8 + len(payload), 0) + payload


def ip4(protocol: int, body: bytes, options: int = 0) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + options,
        0,
        20 + 4 * options + len(body),
        0,
        0,
        64,
        protocol,
        0,
        b"\1\2\3\4",
        b"\5\6\7\x08",
    )
    return _ethernet(0x0800) + head + bytes(4 * options) + body


def ip6(protocol: int, body: bytes) -> bytes:
    return _ethernet(0x86DD) + struct.pack(">IHBB16s16s", 6 << 28, len(body), protocol, 64, b"a" * 16, b"b" * 16) + body


def _ethernet(kind: int) -> bytes:
    return bytes(12) + kind.to_bytes(2, "big")


@dataclass(frozen=True)
class Verdict:
    """Whether a packet matters, and as what; how many of its bytes are the server's to read."""

    kind: int
    length: int = 0


def model(packet: bytes, direction: int, ports: tuple[int, ...], observe: bool) -> Verdict | None:
    """What the program does with a packet for a socket of which it knows nothing; ``None``: it lets it pass, unsaid."""
    ip = packet[14:]
    ingress = direction == INGRESS
    if len(ip) < 20:
        return None
    if ip[0] >> 4 == 4:
        at, protocol = (ip[0] & 15) * 4, ip[9]
    elif ip[0] >> 4 == 6 and len(ip) >= 40:
        at, protocol = 40, ip[6]
        if protocol in (0, 43, 60) and ingress:
            return Verdict(WAKES | UNCLEAR)
    else:
        return None
    least = {TCP: 20, UDP: 8}.get(protocol)
    if least is None or len(ip) < at + least:
        return None
    port = int.from_bytes(ip[at + 2 : at + 4] if ingress else ip[at : at + 2], "big")
    if ports and port not in ports:
        return None
    if protocol == UDP:
        return Verdict(DATAGRAM | (WAKES if ingress else FROM_SERVER), len(ip) - at - 8)
    flags, length = ip[at + 13], max(0, len(ip) - at - (ip[at + 12] >> 4) * 4)
    if not ingress:
        return Verdict(FROM_SERVER, length) if length or flags & (SYN | FIN | RST) else None
    if not flags & RST and (flags & SYN or length):
        return Verdict(WAKES, length)
    return Verdict(LEAVES, length) if flags & (FIN | RST) and observe else None
