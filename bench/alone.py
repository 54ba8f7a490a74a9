"""What ``relay_alone.py`` runs; a module, so that it comes from compiled bytecode as all of a sidecar does."""

import _signal  # type: ignore[import-not-found] # what signal is made of; that itself costs enum's memory
import gc
import sys

from freeze_proxy.gate import Gate, Settings
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import Loop
from freeze_proxy.relay import Relay
from freeze_proxy.tcp import listen

LATE = 0.0003
"""Seconds that the soak's driver takes for an order."""
EVERY_FAILURE = 10
"""Of so many thaws of the soak's driver, one fails."""


class Nothing(Driver):
    """Has nothing to freeze, and says at once that it has done so."""

    __slots__ = ()

    def freeze(self, ticket: int) -> None:
        """Nothing stops."""
        self.keeper.done(ticket)

    def thaw(self, ticket: int) -> None:
        """Nothing starts."""
        self.keeper.done(ticket)


class Late(Driver):
    """Has nothing to freeze, takes its time over it, and fails at times."""

    __slots__ = ("_loop", "_thaws")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._thaws = 0

    def freeze(self, ticket: int) -> None:
        """Nothing stops, a little later."""
        self._loop.at(self._loop.now + LATE, lambda: self.keeper.done(ticket))

    def thaw(self, ticket: int) -> None:
        """Nothing starts, a little later or at the next try."""
        self._thaws += 1
        if self._thaws % EVERY_FAILURE:
            self._loop.at(self._loop.now + LATE, lambda: self.keeper.done(ticket))
        else:
            self._loop.at(self._loop.now + LATE, lambda: self.keeper.failed(ticket, "the soak wants it so"))


class Counting(Witness):
    """Counts what happens."""

    __slots__ = ("failures", "freezes", "thaws", "waits")

    def __init__(self) -> None:
        self.freezes = self.thaws = self.waits = self.failures = 0

    def frozen(self, at: float, took: float) -> None:
        """One more freeze."""
        self.freezes += 1

    def thawed(self, at: float, waited: float | None) -> None:
        """One more thaw, and perhaps one that was waited for."""
        self.thaws += 1
        self.waits += waited is not None

    def failed(self, what: str, reason: str) -> None:
        """One more failure."""
        self.failures += 1


def main() -> None:
    """Relay until SIGTERM."""
    port, target, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    loop = Loop()
    if mode == "soak":
        gate = Gate(Settings(grace=0.001))
    else:
        gate = Gate(Settings(grace=0.1, mode="off" if mode == "off" else "freeze"))
    driver = Late(loop) if mode == "soak" else Nothing()
    witness = Counting()
    keeper = Keeper(loop, gate, driver, witness)
    host = sys.argv[4] if len(sys.argv) > 4 else "127.0.0.1"
    relay = Relay(loop, keeper, listen((host, port)), ("127.0.0.1", target))

    def report(number: int, _frame: object) -> None:
        line = (
            f'{{"in_flight": {gate.in_flight}, "state": "{gate.state}", "requests": {keeper.requests}, '
            f'"connections": {len(relay.connections.all)}, "waiting": {len(relay.connections.waiting)}, '
            f'"freezes": {witness.freezes}, '
            f'"thaws": {witness.thaws}, "waited_for": {witness.waits}, "failures": {witness.failures}}}\n'
        )
        sys.stdout.write(line)
        sys.stdout.flush()
        if number == _signal.SIGTERM:
            raise SystemExit(0)

    _signal.signal(_signal.SIGUSR1, report)
    _signal.signal(_signal.SIGTERM, report)
    relay.start()
    keeper.ready()
    gc.freeze()
    loop.run()
