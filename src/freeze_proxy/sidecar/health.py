"""Whether the server is ready and alive: what is answered to those who ask, and whether it may be frozen.

The rules:

1. While the server is awake, whoever asks gets the result of a run of the original probe that ended after they asked.
   Those that ask during a run share it. No freeze begins during a run; but it is no exchange, and the grace runs on.
2. While it is not awake, the last result is the answer: a server that stands still cannot have changed.
3. It may be frozen once its readiness has passed and, where an exchange is awaited, one has ended. One whose readiness
   or liveness fails stays awake until that passes again: a pod that is not ready gets no request, and nothing would
   thaw it.
4. One that has restarted has to show anew that it is ready. That is seen by its containers, when they are frozen; and
   while they are frozen by the sockets that listen on its port, which are looked at, and not touched.
5. Until it may be frozen, it is probed from here, too: perhaps nobody else does.
"""

from freeze_proxy.gate import AWAKE
from freeze_proxy.keeper import Keeper
from freeze_proxy.loop import Loop
from freeze_proxy.sidecar.probes import Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Run(Protocol):
        """A probe that is being run."""

        def stop(self) -> None:
            """End it, without a result."""

    Begin = Callable[[Probe, Callable[[str], None]], Run]
    Answer = Callable[[str], None]

NOT_YET = "has not been ready yet"
SHORTEST_PERIOD = 0.05
"""Seconds between two probes of our own at least; Knative's probes with a period of 0 come as often."""


class Check:
    """Some probes that all have to pass. ``last``: nothing, they did; else what the server does instead."""

    __slots__ = ("_asking", "_begin", "_keeper", "_next", "_probes", "_running", "_told", "last", "passed")

    def __init__(self, keeper: Keeper, probes: list[Probe], begin: "Begin", last: str, told: "Answer") -> None:
        """``told`` is called with each result."""
        self._keeper = keeper
        self._probes = probes
        self._begin = begin
        self._told = told
        self._asking: list[Answer] = []
        self._next: list[Answer] = []
        self._running = 0
        self.last = last
        self.passed = False

    def ask(self, answer: "Answer") -> None:
        """Answer with the result of a run, or with the last one where there can be no run."""
        if self._keeper.gate.state != AWAKE:
            answer(self.last)
            return
        self._asking.append(answer)
        if not self._running:
            self._run()

    def _run(self) -> None:
        reasons: list[str] = []
        self._running = len(self._probes)
        self._keeper.pin()

        def done(reason: str) -> None:
            if reason:
                reasons.append(reason)
            self._running -= 1
            if not self._running:
                self._ended("; ".join(reasons))

        for probe in self._probes:
            self._begin(probe, done)

    def _ended(self, result: str) -> None:
        self.last = result
        self.passed = not result
        asking, self._asking = self._asking, []
        self._told(result)
        self._keeper.unpin()
        for answer in asking:
            answer(result)


class Health:
    """Of one server, by its ``readiness`` and by the ``liveness`` of containers.

    ``begin`` runs a probe, ``listening`` tells which sockets listen on the server's port, ``say`` is given a sentence
    when readiness begins to fail, and when it passes again.
    """

    __slots__ = (
        "_await_exchange",
        "_keeper",
        "_listening",
        "_liveness",
        "_looking",
        "_loop",
        "_period",
        "_readiness",
        "_said",
        "_say",
        "_sockets",
        "_well",
    )

    def __init__(
        self,
        loop: Loop,
        keeper: Keeper,
        readiness: list[Probe],
        liveness: dict[str, list[Probe]],
        begin: "Begin",
        listening: "Callable[[], frozenset[int]]",
        await_exchange: bool,
        say: "Callable[[str], None]",
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._listening = listening
        self._await_exchange = await_exchange
        self._say = say
        self._said = ""
        self._sockets: frozenset[int] = frozenset()
        self._well = False  # it may be frozen
        self._looking = False
        self._period = max(SHORTEST_PERIOD, min(probe.period for probe in readiness))
        self._readiness = Check(keeper, readiness, begin, NOT_YET, self._ready_told)
        self._liveness = {name: Check(keeper, probes, begin, "", self._live_told) for name, probes in liveness.items()}

    def start(self) -> None:
        """Begin to look whether it is ready."""
        self._look()

    def ask_ready(self, answer: "Answer") -> None:
        """Answers nothing if the server is ready, else what it does instead."""
        self._look_at_sockets()
        self._readiness.ask(answer)

    def ask_live(self, container: str, answer: "Answer") -> bool:
        """The same for its liveness; of all containers, where none is named. Returns whether there is such a one."""
        if container and container not in self._liveness:
            return False
        self._look_at_sockets()
        checks = [self._liveness[container]] if container else list(self._liveness.values())
        if not checks:
            answer("")
            return True
        left, reasons = [len(checks)], []

        def one(reason: str) -> None:
            left[0] -= 1
            if reason:
                reasons.append(reason)
            if not left[0]:
                answer("; ".join(reasons))

        for check in checks:
            check.ask(one)
        return True

    def restarted(self, why: str) -> None:
        """The server is another one: it has to show that it is ready."""
        if self._well:
            self._say(f"{why} It stays awake until it is ready.")
            self._readiness.passed = False
            self._unwell()

    def _look(self) -> None:
        """Rule 5."""
        self._looking = not self._well
        if self._looking:
            if self._readiness.passed:
                self._settle()  # An exchange is awaited, or somebody's liveness: there is nothing to probe.
            else:
                self._readiness.ask(lambda _result: None)
            self._loop.at(self._loop.now + self._period, self._look)

    def _ready_told(self, result: str) -> None:
        if result:
            if self._said != result and self._readiness_passed_before():
                self._say(f"The server is not ready any more: it {result}.")
            self._said = result
            self._unwell()
            return
        if self._said and self._sockets:
            self._say("The server is ready again.")
        self._said = ""
        self._sockets = self._listening()
        self._settle()

    def _live_told(self, result: str) -> None:
        if result:
            self._unwell()
        else:
            self._settle()

    def _readiness_passed_before(self) -> bool:
        return bool(self._sockets) and not self._said

    def _settle(self) -> None:
        """Let it be frozen, if it may."""
        keeper = self._keeper
        if self._well or not self._readiness.passed or any(check.last for check in self._liveness.values()):
            return
        if self._await_exchange and keeper.requests <= keeper.gate.in_flight:
            return  # None has ended; the next look finds out.
        self._well = True
        keeper.ready()

    def _unwell(self) -> None:
        if self._well:
            self._well = False
            self._keeper.unready()
            if not self._looking:
                self._looking = True
                self._loop.at(self._loop.now + self._period, self._look)

    def _look_at_sockets(self) -> None:
        """Rule 4."""
        if self._well and self._keeper.gate.state != AWAKE and self._listening() != self._sockets:
            self.restarted("The server's sockets are not those that it had: it has restarted.")
