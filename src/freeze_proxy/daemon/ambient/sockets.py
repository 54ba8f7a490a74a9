"""The sockets of a pod, as /proc tells them (proc_net_tcp, the kernel's documentation): that takes no capability.

It takes time: to find those of one network, the kernel goes through its table of all connections, some milliseconds on
a machine with much memory. So it is done in a thread wherever somebody else may wait for the loop meanwhile.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from freeze_proxy.ambient.sockets import Seen, Sockets, plain
from freeze_proxy.daemon.ambient.turns import Turns
from freeze_proxy.freezers import FreezeError

_LISTEN, _UNCONNECTED = b"0A", b"07"
_NOBODY = b":0000"
_PIECE = 16 * 1024
_MOST_BYTES = 1024 * 1024
MOST = 64
"""Ports; who listens on more has all its packets looked at."""
_EPHEMERAL = 32768
"""From here on the kernel gives ports to UDP sockets that ask for any (ip_local_port_range): clients, as a rule."""


Line = tuple[bytes, bytes, bytes, int, int]
"""Local and remote address, state, bytes that wait to be read, inode."""


class PodSockets(Sockets):
    """Like ``Sockets``, of the pod of a process: those with these local ports, whichever container's they are.

    Without ports nothing is known of them.
    """

    def __init__(self, ports: tuple[int, ...], pid: int) -> None:
        self._own_ports = frozenset(ports)
        self._pid = pid
        self.listened_on: frozenset[int] = frozenset()  # by anybody in the pod, at the last look

    def close(self) -> None:
        """Nothing is held."""

    def look(self) -> Seen:
        """See ``Sockets``."""
        return super().look() if self._own_ports else Seen(True, frozenset(), frozenset())

    def _all(self, states: int) -> Iterator[tuple[int, int, bytes]]:
        lines = [line for name in ("tcp", "tcp6") for line in _all_lines(f"/proc/{self._pid}/net/{name}")]
        self.listened_on = frozenset(_port(local) for local, _, state, _, _ in lines if state == _LISTEN)
        for local, remote, state, waiting, _ in lines:
            if 1 << int(state, 16) & states and _port(local) in self._own_ports:
                yield int(state, 16), waiting, _address(remote) + _address(local) + _number(remote) + _number(local)

    def _datagrams(self) -> list[tuple[int, int, bytes]]:
        lines = [line for name in ("udp", "udp6") for line in _all_lines(f"/proc/{self._pid}/net/{name}")]
        self.listened_on |= _of_servers(lines)
        return [
            (int(state, 16), waiting, _address(remote) + _address(local) + _number(remote) + _number(local))
            for local, remote, state, waiting, _ in lines
            if _port(local) in self._own_ports
        ]


class SlowlySeen(PodSockets):
    """The same, whose ``ask`` looks in a thread of ``pool``, and tells on the loop of ``turns``.

    ``known`` are the ports on which somebody in the pod listened before, whoever that was. Of others, ``more`` is told
    first, once.
    """

    def __init__(
        self,
        ports: frozenset[int],
        known: frozenset[int],
        pid: int,
        turns: Turns,
        pool: ThreadPoolExecutor,
        more: Callable[[frozenset[int]], None],
    ) -> None:
        super().__init__(tuple(ports), pid)
        self._known = known
        self._turns = turns
        self._pool = pool
        self._more = more

    def ask(self, told: Callable[[Seen], None]) -> None:
        """See ``Sockets``."""

        def looked(done: Future[Seen]) -> None:
            if not done.cancelled():
                self._turns.soon_from_thread(partial(tell, done.result()))

        def tell(seen: Seen) -> None:
            if more := self.listened_on - self._known:
                self._known |= more
                self._more(more)
            told(seen)

        self._pool.submit(self.seen).add_done_callback(looked)


def _address(written: bytes) -> bytes:
    """As in a packet, 16 bytes: words of 32 bits are written as the machine has them."""
    words = bytes.fromhex(written.rpartition(b":")[0].decode())
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return plain(words) if len(words) == 16 else words.ljust(16, b"\0")


def _number(written: bytes) -> bytes:
    return _port(written).to_bytes(2, "big")


def listening(pid: int) -> dict[int, set[int]]:
    """Ports on which somebody listens in the network of a process, and the inodes of the sockets that do.

    Of UDP those that take datagrams from anybody. Empty where there are none, or where the process is gone.
    """
    found: dict[int, set[int]] = {}
    for name in ("tcp", "tcp6"):
        for local, _, state, _, inode in _lines(f"/proc/{pid}/net/{name}", until=_LISTEN):
            if state == _LISTEN:
                found.setdefault(_port(local), set()).add(inode)
    for name in ("udp", "udp6"):
        lines = _lines(f"/proc/{pid}/net/{name}")
        servers = _of_servers(lines)
        for local, _, _, _, inode in lines:
            if _port(local) in servers:
                found.setdefault(_port(local), set()).add(inode)
    return found


def _of_servers(datagrams: list[Line]) -> frozenset[int]:
    return frozenset(
        _port(local)
        for local, remote, state, _, _ in datagrams
        if state == _UNCONNECTED and remote.endswith(_NOBODY) and _port(local) < _EPHEMERAL
    )


def of(place: str, sockets: Mapping[int, set[int]]) -> frozenset[int]:
    """Of the ports that ``listening`` tells, those on which a container does; ``place`` is its cgroup.

    It shares its network with the other containers of the pod. Who has a socket open is found by looking at all that
    its processes have open, which takes microseconds for each. Where that is not permitted (it takes CAP_SYS_PTRACE for
    those of another user), all ports of the pod are taken: what is watched are the container's own sockets anyway.
    """
    if not sockets:
        return frozenset()
    try:
        own = _sockets_in(place)
    except PermissionError:
        return frozenset(sockets)
    return frozenset(port for port, inodes in sockets.items() if inodes & own)


def _sockets_in(place: str) -> set[int]:
    found: set[int] = set()
    for folder, _, _ in os.walk(place):
        for pid in _processes(folder):
            try:
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        found.add(int(target[8:-1]))
            except (FileNotFoundError, ProcessLookupError):
                continue  # the process has ended, or has just closed it
    return found


def _processes(folder: str) -> list[str]:
    try:
        with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _port(address: bytes) -> int:
    return int(address.rpartition(b":")[2], 16)


def _all_lines(path: str) -> list[Line]:
    """Each socket. Raises ``FreezeError`` where there are too many: one that is missing must not be held to be gone.

    Most of so many have been closed, and the kernel keeps those for a minute.
    """
    found, whole = _read(path)
    if not whole:
        raise FreezeError(f"There are too many sockets in {path} to look at all of them.")
    return found


def _lines(path: str, until: bytes = b"") -> list[Line]:
    """Each socket, as far as the bounds go; of TCP's, those that listen stand first."""
    return _read(path, until)[0]


def _read(path: str, until: bytes = b"") -> tuple[list[Line], bool]:
    """Sockets, and whether these are all of them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return [], True
    found: list[Line] = []
    rest, size = b"", 0
    try:
        while piece := os.read(fd, _PIECE):
            size += len(piece)
            if size > _MOST_BYTES:
                return found, False
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                fields = line.split(None, 10)
                if len(fields) >= 10 and fields[0].endswith(b":"):
                    found.append(
                        (fields[1], fields[2], fields[3], int(fields[4].rpartition(b":")[2], 16), int(fields[9]))
                    )
            if until and found and found[-1][2] != until:
                break
    except OSError:
        return found, False
    finally:
        os.close(fd)
    return found, True
