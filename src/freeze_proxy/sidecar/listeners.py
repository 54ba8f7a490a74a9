"""Which sockets listen on a port of this pod: seen without touching them, so a frozen server need not answer.

A server that has been replaced has other sockets, and other inodes; one that is gone has none.
"""

import posix

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = b"0A"
_PIECE = 64 * 1024
_MOST = 1024 * 1024
"""Bytes of a table that are read: those that listen stand first in it."""


def listening(port: int) -> "frozenset[int]":
    """The inodes of the sockets that listen on this TCP port, whatever their address (proc_net_tcp, the kernel's docs).

    Empty where there are none, or where the tables cannot be read.
    """
    wanted = b":%04X" % port
    found = set()
    for table in _TABLES:
        for line in _lines(table):
            fields = line.split()
            if len(fields) < 10 or fields[3] == b"st":
                continue
            if fields[3] != _LISTEN:
                break
            if fields[1].endswith(wanted):
                found.add(int(fields[9]))
    return frozenset(found)


def _lines(table: str) -> "list[bytes]":
    try:
        fd = posix.open(table, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return []  # there is no IPv6 here, say
    data = b""
    try:
        while len(data) < _MOST and (piece := posix.read(fd, _PIECE)):
            data += piece
    except OSError:
        return []
    finally:
        posix.close(fd)
    return data.splitlines()
