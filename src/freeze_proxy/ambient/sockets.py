"""Which connections a server has, and what waits in them: the kernel's word, by netlink (sock_diag(7))."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from freeze_proxy.freezers import FreezeError

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST, _DUMP = 0x001, 0x300
_DONE, _ERROR = 3, 2
_ESTABLISHED, _FIN_WAIT1, _CLOSE_WAIT, _LISTEN = 1, 4, 8, 10
_UNCONNECTED = 7
"""A datagram socket that takes them from anybody."""
_OPEN = (1 << _ESTABLISHED) | (1 << _FIN_WAIT1) | (1 << 5) | (1 << _CLOSE_WAIT)
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBBxI2s2s16s16sI8s")
_ANSWER = struct.Struct("=BBxx2s2s16s16sI8xIII")
_CLONE_NEWNET = 0x40000000


UNKNOWN = frozenset({(b"what cannot be looked at", 0)})


@dataclass(frozen=True, slots=True)
class Seen:
    """How the sockets of a server are: whether somebody listens, and its connections, as in ``conversations.KEY``.

    ``waiting``: in which of them bytes, or connections, wait for the server, and how many.
    """

    listens: bool
    connections: frozenset[bytes]
    waiting: frozenset[tuple[bytes, int]]

    @property
    def known(self) -> bool:
        """Whether it could be looked at."""
        return self.waiting is not UNKNOWN


class Sockets:
    """Those with these ports in the network that the process ``pid`` is in. Raises ``FreezeError``.

    While it is open, that network stays.
    """

    def __init__(self, ports: tuple[int, ...], pid: int | None = None) -> None:
        self._ports = ports
        try:
            self._netlink = _there(pid) if pid is not None and _elsewhere(pid) else _netlink()
        except OSError as error:
            raise FreezeError(f"The server's sockets cannot be looked at: {error.strerror}.") from error

    def open(self) -> list[bytes]:
        """Its connections, each in the words of ``conversations.KEY``."""
        return [key for _, _, key in self._all(_OPEN)]

    def look(self) -> Seen:
        """How they all are."""
        streams, datagrams = list(self._all(_OPEN | 1 << _LISTEN)), self._datagrams()
        return Seen(
            any(state == _LISTEN for state, _, _ in streams) or any(state == _UNCONNECTED for state, _, _ in datagrams),
            frozenset(key for state, _, key in streams if state != _LISTEN),
            frozenset((key, waiting) for _, waiting, key in streams + datagrams if waiting),
        )

    def ask(self, told: Callable[[Seen], None]) -> None:
        """``told`` is called, now or later, with what a ``look`` tells."""
        told(self.seen())

    def seen(self) -> Seen:
        """``look``, without raising: what cannot be looked at counts as something that waits."""
        try:
            return self.look()
        except FreezeError:
            return Seen(True, frozenset(), UNKNOWN)

    def close(self) -> None:
        """Lets the network go."""
        self._netlink.close()

    def _all(self, states: int) -> Iterator[tuple[int, int, bytes]]:
        for port in self._ports:
            for family in (socket.AF_INET, socket.AF_INET6):
                yield from self._dump(family, states, port)

    def _datagrams(self) -> list[tuple[int, int, bytes]]:
        """The same of UDP. A kernel may know nothing of its sockets (CONFIG_INET_UDP_DIAG): then none."""
        return [
            each
            for port in self._ports
            for family in (socket.AF_INET, socket.AF_INET6)
            for each in self._dump(family, 0xFFFFFFFF, port, socket.IPPROTO_UDP)
        ]

    def _dump(
        self, family: int, states: int, port: int, protocol: int = socket.IPPROTO_TCP
    ) -> list[tuple[int, int, bytes]]:
        asked = _ASKED.pack(family, protocol, 0, states, port.to_bytes(2, "big"), b"", b"", b"", 0, b"\xff" * 8)
        header = _HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 0, 0)
        found: list[tuple[int, int, bytes]] = []
        try:
            self._netlink.send(header + asked)
            while True:
                data = self._netlink.recv(1 << 16)
                at = 0
                while at + _HEADER.size <= len(data):
                    length, kind, *_ = _HEADER.unpack_from(data, at)
                    if kind in (_DONE, _ERROR):
                        return found
                    _, state, local, remote, source, target, _, _, waiting, _ = _ANSWER.unpack_from(
                        data, at + _HEADER.size
                    )
                    found.append((state, waiting, plain(target) + plain(source) + remote + local))
                    at += (length + 3) & ~3
        except OSError as error:
            raise FreezeError(f"The server's sockets cannot be looked at: {error.strerror}.") from error


def plain(address: bytes) -> bytes:
    """As in a packet: a socket for both families shows IPv4 addresses mapped (RFC 4291 §2.5.5.2)."""
    return address[12:].ljust(16, b"\0") if address.startswith(b"\0" * 10 + b"\xff\xff") else address


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)


def _elsewhere(pid: int) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino


def _there(pid: int) -> socket.socket:
    """Made by a thread that enters the other network (setns(2)), and ends."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                made.append(_netlink())
            finally:
                os.close(namespace)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
