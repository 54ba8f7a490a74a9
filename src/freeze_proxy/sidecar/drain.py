"""The way out: thaw, freeze no more, serve until no request will come, end.

It begins with the preStop hook or with SIGTERM, whichever comes first. No request will come when queue-proxy says so
at its own preStop path (``url``), or is gone; without such a path, when none has begun for ``quiet`` seconds. Then the
preStop hook is answered and, once SIGTERM has come too and the last exchange has ended, the sidecar ends. All this
takes no longer than the pod's grace, less a second; and a second SIGTERM ends it at once.
"""

from freeze_proxy.keeper import Keeper
from freeze_proxy.loop import Loop
from freeze_proxy.relay import Relay
from freeze_proxy.sidecar.probes import Probe
from freeze_proxy.sidecar.probing import NOBODY, Probing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_EVERY = 0.05
"""Seconds between two looks whether the last exchange has ended."""
BEFORE_THE_END = 1.0
"""Seconds before the grace is over at which it ends by itself."""


class Drain:
    """One sidecar's. ``ended`` is called when it is over."""

    __slots__ = (
        "_asked",
        "_begun",
        "_calls",
        "_ended",
        "_grace",
        "_keeper",
        "_leave",
        "_loop",
        "_quiet",
        "_relay",
        "_requests",
        "_say",
        "_since",
        "_url",
        "drained",
    )

    def __init__(
        self,
        loop: Loop,
        keeper: Keeper,
        relay: Relay,
        *,
        url: Probe | None,
        quiet: float,
        grace: float,
        ended: "Callable[[], None]",
        say: "Callable[[str], None]",
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._relay = relay
        self._url = url
        self._quiet = quiet
        self._grace = grace
        self._ended = ended
        self._say = say
        self._begun = False
        self._leave = False
        self._asked = False
        self._requests = 0
        self._since = 0.0  # since when none has begun
        self._calls: list[Callable[[], None]] = []
        self.drained = False
        """Whether no request will come."""

    def begin(self, leave: bool) -> None:
        """Begin, if that has not been; ``leave``: and end when it is over."""
        if leave and self._leave:
            self._ended()
            return
        self._leave = self._leave or leave
        if not self._begun:
            self._begun = True
            self._requests, self._since = self._keeper.requests, self._loop.now
            self._keeper.disarm()
            self._loop.at(self._loop.now + max(0.0, self._grace - BEFORE_THE_END), self._too_late)
            if self._url is not None:
                Probing(self._loop, self._url, "127.0.0.1", self._told)
            self._look()

    def on_drained(self, call: "Callable[[], None]") -> None:
        """The preStop hook: begin, and call when no request will come."""
        self.begin(leave=False)
        if self.drained:
            call()
        else:
            self._calls.append(call)

    def _told(self, result: str) -> None:
        if not result or result.startswith(NOBODY):
            self._asked = True
        else:  # It knows nothing of draining, and may go on sending.
            self._url = None

    def _look(self) -> None:
        if not self.drained:
            if self._keeper.requests != self._requests or self._keeper.gate.in_flight:
                self._requests, self._since = self._keeper.requests, self._loop.now
            if self._asked if self._url is not None else self._loop.now >= self._since + self._quiet:
                self._be_drained()
        if self.drained and self._leave and not self._keeper.gate.in_flight and self._relay.drained():
            self._ended()
            return
        self._loop.at(self._loop.now + LOOK_EVERY, self._look)

    def _be_drained(self) -> None:
        self.drained = True
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def _too_late(self) -> None:
        if self._keeper.gate.in_flight:
            self._say(f"The pod's grace of {self._grace:g} s is over, with {self._keeper.gate.in_flight} in flight.")
        self._be_drained()
        if self._leave:
            self._ended()
