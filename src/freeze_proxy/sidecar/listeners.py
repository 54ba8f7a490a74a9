"""Which sockets listen on a port of this pod: seen without touching them, so a frozen server need not answer.

A server that has been replaced has other sockets, and other inodes; one that is gone has none.

The kernel is asked through a socket (sock_diag(7)), which takes a tenth of a millisecond. The tables below /proc/net
say the same, but for their ends the kernel walks through the connections of the whole node: 25 ms were seen in a pod,
and 100 ms on a busy node, at each probe.
"""

import posix
from _socket import AF_INET, AF_INET6, AF_NETLINK, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_RAW, socket
from sys import byteorder

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_LISTENING = 1 << 10  # TCP_LISTEN, as a bit
_HEAD, _REQUEST, _INODE = 16, 56, 68
"""Bytes of a nlmsghdr and of an inet_diag_req_v2; where idiag_inode is in an inet_diag_msg."""
_MOST = 64 * 1024

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = b"0A"
_LINE = 150
"""Bytes of a line of a table, or somewhat less: with a read of so few the kernel looks no further than it has to."""


def listening(port: int) -> "frozenset[int]":
    """The inodes of the sockets that listen on this TCP port, whatever their address.

    Empty where there are none, or where the kernel does not tell.
    """
    try:
        return _asked(port)
    except OSError:  # this kernel has no tcp_diag, say, or the pod may not ask it
        return _read(port)


def _asked(port: int) -> "frozenset[int]":
    found: set[int] = set()
    kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _SOCK_DIAG)
    try:
        for family in (AF_INET, AF_INET6):
            wanted = bytes((family, IPPROTO_TCP, 0, 0)) + _LISTENING.to_bytes(4, byteorder) + port.to_bytes(2, "big")
            kernel.send(
                (_HEAD + _REQUEST).to_bytes(4, byteorder)
                + _BY_FAMILY.to_bytes(2, byteorder)
                + _DUMP.to_bytes(2, byteorder)
                + bytes(8)
                + wanted.ljust(_REQUEST, b"\0")
            )
            while _collect(kernel.recv(_MOST), found):
                pass
    finally:
        kernel.close()
    return frozenset(found)


def _collect(answer: bytes, found: "set[int]") -> bool:
    """Take the inodes from a part of the answer; whether there is more to come. ``OSError`` if it is a refusal."""
    at = 0
    while at + _HEAD <= len(answer):
        length = int.from_bytes(answer[at : at + 4], byteorder)
        kind = int.from_bytes(answer[at + 4 : at + 6], byteorder)
        body = at + _HEAD
        if kind == _ERROR:
            raise OSError(-int.from_bytes(answer[body : body + 4], byteorder, signed=True), "sock_diag")
        if kind == _DONE or length < _HEAD:
            return False
        found.add(int.from_bytes(answer[body + _INODE : body + _INODE + 4], byteorder))
        at += (length + 3) & ~3
    return True


def _read(port: int) -> "frozenset[int]":
    """The same from the tables (proc_net_tcp, the kernel's documentation): those that listen stand first in them."""
    wanted = b":%04X" % port
    found = set()
    for table in _TABLES:
        try:
            fd = posix.open(table, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            continue  # there is no IPv6 here, say
        try:
            rest = b""
            while piece := posix.read(fd, _LINE):
                *lines, rest = (rest + piece).split(b"\n")
                sockets = [fields for line in lines if len(fields := line.split()) >= 10 and fields[3] != b"st"]
                found |= {int(each[9]) for each in sockets if each[3] == _LISTEN and each[1].endswith(wanted)}
                if any(each[3] != _LISTEN for each in sockets):
                    break
        except OSError:
            pass
        finally:
            posix.close(fd)
    return frozenset(found)
