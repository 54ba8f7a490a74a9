"""The relay stands between clients and one server: it accepts, and does to its connections what the gate wants.

It forwards verbatim: one connection to the server for one from a client, nothing added, changed or dropped. What it
says itself: 503 where a thaw failed, and the answer to an HTTP/2 PING that comes while the server stands still.
"""

import _socket
import errno

from freeze_proxy.connection import Connection, Connections
from freeze_proxy.keeper import Gated, Keeper
from freeze_proxy.loop import READ, Loop
from freeze_proxy.tcp import Address

ACCEPT_PAUSE = 0.1
"""Seconds without accepting after the process or the machine has run out of descriptors or memory."""

_ACCEPT_AT_ONCE = 64
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Relay(Gated):
    """Accepts on ``listener`` and relays to ``target``, by the will of ``keeper``'s gate."""

    __slots__ = ("_stands_still", "connections", "listener", "loop")

    def __init__(
        self, loop: Loop, keeper: Keeper, listener: _socket.socket, target: Address, *, stands_still: bool = True
    ) -> None:
        """``stands_still``: whether a freeze is one; in a dry run the server runs on."""
        self.loop = loop
        self.listener = listener
        self._stands_still = stands_still
        self.connections = Connections(loop, keeper, target)
        keeper.gated = self

    def start(self, idle_stream: float | None = None) -> None:
        """Begin to accept. ``idle_stream``: seconds of silence after which a stream counts as idle."""
        self.loop.watch(self.listener.fileno(), READ, self._accept)
        if idle_stream is not None:
            self._sweep(idle_stream / 4)

    def stop_accepting(self) -> None:
        """Close the listener; connections go on."""
        if self.listener.fileno() >= 0:
            self.loop.forget(self.listener.fileno())
            self.listener.close()

    def drained(self) -> bool:
        """Close every connection that waits for nothing; returns whether none is left."""
        for connection in list(self.connections.all):
            if not connection.busy:
                connection.close()
        return not self.connections.all

    # What the gate wants.

    def before_freeze(self) -> None:
        """Close idle connections to the server: its keep-alive timers would fire at the thaw, and race a request."""
        if self._stands_still:
            for connection in self.connections.all:
                connection.let_go()

    def release(self) -> None:
        """Send on all that was held."""
        for connection in self.connections.take_waiting():
            connection.release()

    def refuse(self) -> None:
        """Answer 503 to all that wait."""
        for connection in self.connections.take_waiting():
            connection.refuse()

    # The listener.

    def _accept(self, _events: int) -> None:
        listener = self.listener
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                fd, _address = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_MEANS:
                    self.loop.forget(listener.fileno())
                    self.loop.at(self.loop.now + ACCEPT_PAUSE, self._accept_again)
                    return
                continue  # a client that has left already (accept(2), "Error handling")
            client = _socket.socket(listener.family, _socket.SOCK_STREAM, 0, fd)
            client.setblocking(False)
            client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            self.connections.all.add(Connection(self.connections, client))

    def _accept_again(self) -> None:
        if self.listener.fileno() >= 0:
            self.loop.watch(self.listener.fileno(), READ, self._accept)

    def _sweep(self, period: float) -> None:
        for connection in self.connections.all:
            if connection.observer is not None:
                connection.observer.sweep()
        self.loop.at(self.loop.now + period, lambda: self._sweep(period))
