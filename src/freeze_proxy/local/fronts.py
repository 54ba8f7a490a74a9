"""What stands between clients and a server, and counts the exchanges: a relay, or nothing but a look at the packets."""

import _socket
from collections.abc import Callable
from dataclasses import dataclass

from freeze_proxy.ambient.observing import Observing
from freeze_proxy.keeper import Keeper
from freeze_proxy.local.sockets import SocketsAside
from freeze_proxy.loop import Loop
from freeze_proxy.relay import Relay
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address


class Front:
    """Tells the keeper of exchanges, from ``start`` on."""

    way = ""

    def start(self, target: Address, idle_stream: float | None) -> str:
        """The server answers at ``target``; returns where clients reach it. Raises ``FreezeError``."""
        raise NotImplementedError

    def stop_accepting(self) -> None:
        """Take no more connections."""

    def drained(self) -> bool:
        """Whether clients have got all that was on its way to them."""
        return True

    def stands_still(self) -> None:
        """The server is frozen."""

    def close(self) -> None:
        """It is over."""


class RelayFront(Front):
    """Every byte passes through this process."""

    way = "relay"

    def __init__(self, loop: Loop, keeper: Keeper, listener: _socket.socket, dry: bool) -> None:
        self._loop = loop
        self._keeper = keeper
        self._listener = listener
        self._dry = dry
        self._relay: Relay | None = None

    def start(self, target: Address, idle_stream: float | None) -> str:
        """Begin to accept."""
        self._relay = Relay(self._loop, self._keeper, self._listener, target, stands_still=not self._dry)
        self._relay.start(idle_stream)
        return written(self._listener.getsockname()[:2])  # the port, too, where any was asked for (0)

    def stop_accepting(self) -> None:
        """Close the listener."""
        if self._relay is not None:
            self._relay.stop_accepting()

    def drained(self) -> bool:
        """Closes every connection that waits for nothing."""
        return self._relay is None or self._relay.drained()


@dataclass(frozen=True)
class Seat:
    """Where a server's packets are seen: its cgroup of cgroup v2, its port, and a process in its network.

    ``any_socket``: what comes to a socket of another port wakes it, too.
    """

    cgroup: str
    port: int
    any_socket: bool = False
    pid: int | None = None


class AmbientFront(Front):
    """The packets pass by themselves, and are looked at from the side."""

    way = "ambient"

    def __init__(self, loop: Loop, keeper: Keeper, seat: Seat, grace: float, on_loss: Callable[[], None]) -> None:
        """``on_loss`` is called when packets came faster than they could be looked at. Raises ``FreezeError``."""
        self._loop = loop
        self._keeper = keeper
        self._seat = seat
        self._observing = Observing(
            loop, keeper, seat.cgroup, (seat.port,), grace=grace, any_socket=seat.any_socket, on_loss=on_loss
        )

    def start(self, target: Address, idle_stream: float | None) -> str:
        """From now on what has been seen counts."""
        self._observing.start(SocketsAside(self._loop, (self._seat.port,), self._seat.pid), idle_stream)
        self._keeper.requests = 0  # those so far were ours, to see whether it is ready
        return written(target)

    @property
    def blind(self) -> bool:
        """Whether not one packet has been seen, though somebody has connected."""
        return not self._observing.watch.packets

    def stands_still(self) -> None:
        """Look once more."""
        self._observing.stands_still()

    def close(self) -> None:
        """Take the programs away."""
        self._observing.close()
