"""TCP sockets as the relay uses them: non-blocking, on the loop, and with flow control.

Imported by a sidecar, so of the standard library's sockets only ``_socket``: ``socket`` is a megabyte more.
"""

import _socket
import posix

from freeze_proxy.loop import READ, WRITE, Loop

BACKLOG = 1024
_RESET_ON_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {1, 0}: close sends RST
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE, SPLICE_F_NONBLOCK

Address = tuple[str, int]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def tcp_socket(address: Address) -> _socket.socket:
    """A non-blocking TCP socket of the address's family; the host is an IPv4 or IPv6 address."""
    family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
    return _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)


def listen(address: Address) -> _socket.socket:
    """A listening socket. Raises ``OSError`` where the address is taken or not this machine's."""
    listener = tcp_socket(address)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _nothing(_events: int) -> None:
    """Handles the events of a side that is closed; there are none."""


class Side:
    """One socket of a connection: what it is watched for, and the unsent ``tail`` of what goes to it."""

    __slots__ = ("_events", "_handler", "_loop", "fd", "finished", "socket", "tail")

    def __init__(self, loop: Loop, socket: _socket.socket, handler: "Callable[[int], None]") -> None:
        self._loop = loop
        self.fd = socket.fileno()
        self._handler = handler
        self._events = READ
        self.socket = socket
        self.tail = b""
        self.finished = False  # our FIN is sent
        loop.watch(self.fd, READ, handler)

    def _want(self, events: int) -> None:
        # Watched for nothing, it is not watched at all: a hang-up would be reported without end.
        if events != self._events:
            if not events:
                self._loop.forget(self.fd)
            elif not self._events:
                self._loop.watch(self.fd, events, self._handler)
            else:
                self._loop.change(self.fd, events)
            self._events = events

    def read(self, on: bool) -> None:
        """Read from it, or leave what it sends in the kernel."""
        self._want(self._events | READ if on else self._events & ~READ)

    def handle_with(self, handler: "Callable[[int], None]") -> None:
        """Hand its events to another handler from now on."""
        events = self._events
        self._want(0)
        self._handler = handler
        self._want(events)

    def keep(self, tail: bytes) -> None:
        """Send this when it can take it."""
        self.tail += tail
        self._want(self._events | WRITE)

    def flush(self) -> bool:
        """Send of the tail what it takes; returns whether that was all. Raises ``OSError`` where it is gone."""
        try:
            sent = self.socket.send(self.tail)
        except BlockingIOError:
            return False
        self.tail = self.tail[sent:]
        if self.tail:
            return False
        self._want(self._events & ~WRITE)
        return True

    def finish(self) -> None:
        """Say that nothing more will come: send FIN."""
        if not self.finished:
            self.finished = True
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                pass  # It is gone already, as reading from it will tell.

    def close(self, reset: bool = False) -> None:
        """Close it after this round of events; with ``reset``, by RST."""
        self._want(0)
        if reset:
            self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        self._loop.close_after(self.socket)
        self._handler = _nothing  # it holds the connection, which holds this: the memory would wait for a collection


class Pipe:
    """What splice(2) needs between two sockets. It is empty between any two calls, so all connections share one."""

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        """Raises ``OSError`` where there are no descriptors left."""
        self._read, self._write = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)

    def fill(self, fd: int, most: int) -> int:
        """Take bytes from a socket; returns how many. Raises ``OSError`` like ``recv``."""
        return posix.splice(fd, self._write, most, None, None, _SPLICE_FLAGS)

    def empty(self, fd: int, size: int) -> bytes:
        """Send what was taken; returns what the socket did not take. Raises ``OSError`` like ``send``."""
        left = size
        try:
            while left:
                left -= posix.splice(self._read, fd, left, None, None, _SPLICE_FLAGS)
        except BlockingIOError:
            return self._rest(left)
        except OSError:
            self._rest(left)
            raise
        return b""

    def _rest(self, left: int) -> bytes:
        rest = b""
        while len(rest) < left:
            rest += posix.read(self._read, left - len(rest))
        return rest
