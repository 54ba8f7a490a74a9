"""One server being kept: front, gate, freezer and guard in one process."""

import _socket
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable

from freeze_proxy.freezers import FreezeError, Gone, cgroup, processes
from freeze_proxy.gate import FROZEN, Gate
from freeze_proxy.keeper import Keeper, Witness
from freeze_proxy.local.driver import DryFreezer, driver_for
from freeze_proxy.local.fronts import AmbientFront, Front, RelayFront, Seat
from freeze_proxy.local.guard import Command, Guard, Plan, end_descendants, reap
from freeze_proxy.local.ledger import Ledger
from freeze_proxy.local.options import CANNOT_WORK, NEVER_LISTENED, Failure, Options
from freeze_proxy.local.status import LAST_PATIENCE, Reporter, table
from freeze_proxy.loop import READ, Loop, Timer
from freeze_proxy.readiness import Readiness
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address

_STATUS_PERIOD = 0.2
_NOT_PASSED_ON = {
    getattr(signal, f"SIG{name}")
    for name in (
        *("KILL", "STOP", "TSTP", "CONT", "CHLD", "PIPE"),  # for this process itself
        *("SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "XCPU", "XFSZ"),  # by what this process does itself
    )
}
_OF_A_TERMINAL = {signal.SIGTTIN, signal.SIGTTOU}
"""Where there is a terminal, they are the kernel's word to this process; elsewhere they can only be for COMMAND."""
_LAST = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_DRAIN = 2.0
"""Seconds that clients have to fetch what the server said before it ended."""
_BEFORE_SIGNAL = 0.01
"""Seconds from a thaw to the signal for which it was done."""
_AFTER_SIGNAL = 0.5
"""Seconds that COMMAND runs at least after it was sent a signal, to do what the signal asks for."""
_LOOK_PERIOD = 1.0
"""Seconds between two looks whether there is anybody left in a cgroup, or has been asked to end."""
_TO_END = 30.0
"""Seconds that a server which was there before runs after it was sent a signal while frozen."""


class Both(Witness):
    """Passes on what happens to the ledger and to the reporter, and to the front that the server stands still."""

    __slots__ = ("_ledger", "_reporter", "front")

    def __init__(self, ledger: Ledger, reporter: Reporter) -> None:
        self._ledger = ledger
        self._reporter = reporter
        self.front = Front()

    def frozen(self, at: float, took: float) -> None:
        """To all."""
        self._ledger.frozen(at, took)
        self._reporter.frozen(at, took)
        self.front.stands_still()

    def thawing(self) -> None:
        """To the ledger: nobody should wait for the reporter."""
        self._ledger.thawing()

    def thawed(self, at: float, waited: float | None) -> None:
        """To both."""
        self._ledger.thawed(at, waited)
        self._reporter.thawed(at, waited)

    def failed(self, what: str, reason: str) -> None:
        """To both."""
        self._ledger.failed(what, reason)
        self._reporter.failed(what, reason)

    def refused(self, exchanges: int) -> None:
        """To both; not where requests go straight to the server, and wait on."""
        if self.front.way == "relay":
            self._ledger.refused(exchanges)
            self._reporter.refused(exchanges)


class Session:
    """One server being kept, from the first try to reach it to the last thaw."""

    def __init__(
        self,
        options: Options,
        way: _socket.socket | Seat,
        guard: Guard,
        plan: Plan,
        command: Command | None,
    ) -> None:
        """``way``: where clients come in to be relayed, or where the packets of a server that is its own door are seen.

        Raises ``Failure``.
        """
        self._options = options
        self._guard = guard
        self._plan = plan
        try:
            freezer = plan.freezer(guard.pid)
        except FreezeError as error:
            guard.end()
            raise Failure(str(error)) from error
        self._real_freezer = freezer
        settings = options.settings
        self._dry = settings.mode in ("dry-run", "off")
        self._freezer = DryFreezer(freezer) if self._dry else freezer
        self._loop = Loop()
        self._ledger = Ledger(self._freezer, self._loop.now)
        witness = Both(self._ledger, options.reporter)
        self._driver = driver_for(self._loop, self._freezer)
        self._keeper = Keeper(self._loop, Gate(settings), self._driver, witness)
        try:
            self._front: Front = (
                AmbientFront(self._loop, self._keeper, way, settings.grace, self._on_loss)
                if isinstance(way, Seat)
                else RelayFront(self._loop, self._keeper, way, self._dry)
            )
        except FreezeError as error:
            guard.end()
            raise Failure(f"{error} --relay does without.") from error
        witness.front = self._front
        self._served = False
        self._readiness: Readiness | None = None
        self._timeout: Timer | None = None
        self._failure: Failure | None = None
        self._code = 0
        self._ending = False  # COMMAND has been told to end, or we to leave
        self._ended = False
        self._signals: list[int] = []  # for COMMAND, when it has run a moment
        self._command = command
        self._pid: int | None = None

    def keep(self, targets: list[Address], about: str) -> int:
        """Wait for the server at one of these addresses, keep it until it ends, and return the exit code.

        ``about`` is what to tell of the freezer besides. Raises ``Failure``.
        """
        wakeup = self._watch_signals()
        try:
            self._targets, self._about = targets, about
            self._loop.watch(self._guard.fileno(), READ, self._on_guard)
            self._loop.soon(lambda: self._on_guard(READ))  # for what it has said already
            path, timeout = self._options.ready_path, self._options.start_timeout
            self._readiness = Readiness(self._loop, targets, path, self._on_ready)
            self._timeout = self._loop.at(self._loop.now + timeout, self._on_timeout)
            self._loop.run()
        finally:
            signal.set_wakeup_fd(-1)
            self._finish()
            wakeup.close()
        if self._failure is not None:
            raise self._failure
        return self._code

    # Events.

    def _on_ready(self, target: Address) -> None:
        """The server answers: from now on it is served, and may be frozen."""
        assert self._timeout is not None
        self._timeout.cancel()
        self._readiness = None
        options, front = self._options, self._front
        if isinstance(front, AmbientFront) and front.blind:
            self._fail(
                Failure(
                    f"{written(target)} answers, but its packets are not seen: it does not listen from the cgroup that "
                    "is frozen. Leave --ambient out, or say --relay."
                )
            )
            return
        try:
            listening = front.start(target, options.settings.idle_stream)
        except FreezeError as error:
            self._fail(Failure(str(error)))
            return
        self._served = True
        self._ledger.start(self._loop.now)
        self._keeper.ready()
        mode, grace = options.settings.mode, options.settings.grace
        what = {
            "freeze": f"freezing {self._freezer.where} ({self._freezer.kind})",
            "throttle": f"throttling {self._freezer.where}",
            "dry-run": f"dry run: nothing is frozen, though {self._freezer.where} would be",
            "off": "freezing nothing",
        }[mode]
        door = "ambient: nothing stands before it" if front.way == "ambient" else f"→ {written(target)}"
        sentence = f"http://{listening} {door}, {what}"
        if mode != "off":
            sentence += f" after {grace * 1e3:g} ms without a request"
        sentence += f". {self._about}" if self._about else "."
        facts = {
            "way": front.way,
            "listen": listening,
            "target": written(target),
            "pid": self._pid,
            "freezer": self._freezer.kind,
            "where": self._freezer.where,
            "grace_ms": round(grace * 1e3, 3),
            "mode": mode,
            "guard": self._guard.pid,
        }
        options.reporter.start(sentence, facts)
        if options.reporter.wants_status:
            self._status()

    def _on_loss(self) -> None:
        self._options.reporter.note(
            "lost",
            "packets came faster than they could be looked at: requests may not have been counted, and the connections "
            "that are open count as in flight until they close.",
        )

    def _on_guard(self, _events: int) -> None:
        for word, *rest in self._guard.hear():
            if word == "started":
                self._pid = int(rest[0])
            elif word == "unstartable":
                self._fail(Failure(rest[1], int(rest[0])))
            elif word == "signalled":
                self._loop.at(self._loop.now + _AFTER_SIGNAL, self._keeper.ended)
            elif word == "ended":
                self._on_ended(int(rest[0]))
        if self._guard.gone:
            self._loop.forget(self._guard.fileno())
            if self._ended:
                return  # It was ended when COMMAND had ended already.
            self._fail(Failure("The guard process was ended by somebody; the server is not kept without it."))

    def _on_ended(self, code: int) -> None:
        """COMMAND has ended."""
        self._ended = True
        self._code = code
        if not self._served:
            if not self._ending:
                how = f"with exit code {code}" if code <= 128 else f"by signal {code - 128}"
                sentence = f"The server ended {how} before it could be reached at {self._where_expected()}."
                self._fail(Failure(sentence, code or CANNOT_WORK))
            self._loop.stop()
            return
        self._part(self._loop.now + _DRAIN)

    def watch_process(self, pidfd: int, what: str) -> None:
        """``what`` is attached to ends when this process does."""

        def ended(_events: int) -> None:
            self._loop.forget(pidfd)
            self._on_target_ended(what)

        self._loop.watch(pidfd, READ, ended)

    def watch_cgroup(self, path: str) -> None:
        """The server that is attached to ends when nobody is left in this cgroup, or another has taken its name."""
        first = _identity(path)

        def look() -> None:
            if _identity(path) == first and cgroup.populated(path):
                self._loop.at(self._loop.now + _LOOK_PERIOD, look)
            else:
                self._on_target_ended("the server")

        look()

    def watch_endings(self, main: Callable[[], Iterable[int]]) -> None:
        """Whoever asks one of these processes to end while it is frozen does not ask in vain.

        It cannot handle the signal before it is thawed. It then has a while to end; if the signal was for something
        else, to read its settings anew say, it is frozen again after that.
        """

        def look() -> None:
            again = self._loop.now + _LOOK_PERIOD
            if self._keeper.gate.state == FROZEN and any(processes.asked_to_end(pid) for pid in main()):
                self._options.reporter.note("asked", "it has been sent a signal, and is thawed to handle that.")
                self._hold()
                again = self._loop.now + _TO_END
                self._loop.at(again, self._keeper.ended)
            self._loop.at(again, look)

        look()

    def _on_target_ended(self, what: str) -> None:
        self._ended = True
        if not self._served:
            self._fail(
                Failure(f"{what[0].upper()}{what[1:]} ended before it could be reached at {self._where_expected()}.")
            )
            return
        self._options.reporter.note("gone", f"{what} has ended.")
        self._part(self._loop.now + _DRAIN)

    def _part(self, deadline: float) -> None:
        """Freeze no more, take no more connections, and stop when the exchanges in flight have ended."""
        self._keeper.disarm()
        self._front.stop_accepting()
        self._drain(deadline)

    def _drain(self, deadline: float) -> None:
        """Stop when clients have fetched what is on its way to them."""
        if self._front.drained() or self._loop.now >= deadline:
            self._loop.stop()
        else:
            self._loop.at(self._loop.now + 0.01, lambda: self._drain(deadline))

    def _on_timeout(self) -> None:
        assert self._readiness is not None
        seconds, why = self._options.start_timeout, self._readiness.last
        sentence = f"The server at {self._where_expected()} was not ready within {seconds:g} s: {why}."
        self._fail(Failure(sentence, NEVER_LISTENED))

    def _where_expected(self) -> str:
        return " or ".join(written(target) for target in self._targets)

    def _fail(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        self._loop.stop()

    def _status(self) -> None:
        gate, now = self._keeper.gate, self._loop.now
        awake = gate.state != FROZEN
        self._options.reporter.status(awake, gate.in_flight, self._keeper.requests, self._ledger.share_frozen(now))
        self._loop.at(now + _STATUS_PERIOD, self._status)

    # Signals.

    def _watch_signals(self) -> socket.socket:
        """Turn signals into reads of the loop."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        kept = _NOT_PASSED_ON | (_OF_A_TERMINAL if _has_terminal() else set())
        for number in signal.valid_signals() - kept | {signal.SIGTSTP, signal.SIGCHLD}:
            # One that is ignored here is ignored by COMMAND too, unless it sets a handler.
            ignored = signal.getsignal(number) == signal.SIG_IGN
            if not ignored or (self._command is not None and number != signal.SIGCHLD):
                signal.signal(number, lambda *_: None)

        def read(_events: int) -> None:
            for number in ours.recv(256):
                self._on_signal(number)

        self._loop.watch(ours.fileno(), READ, read)
        self._wakeup_writer = theirs
        return ours

    def _on_signal(self, number: int) -> None:
        """It is COMMAND's, or, where the server is not ours, for ourselves."""
        if number == signal.SIGCHLD:
            reap()  # the guard, or, where this is a container's first process, any orphan
        elif number == signal.SIGTSTP:
            self._hold()
            self._stop_a_while()
            self._keeper.ended()
        elif self._command is not None:
            self._pass_on(number)
        elif number in (*_LAST, signal.SIGHUP):
            self._leave()

    def _pass_on(self, number: int) -> None:
        """Send COMMAND a signal, thawed first.

        Not at once after the thaw: before its threads have taken up their system calls again, a signal may reach any of
        them, and interrupt none, and many a program would see it only when the next request comes.
        """
        was_awake = self._keeper.gate.open and not self._signals
        if number in _LAST:
            self._ending = True
            self._keeper.disarm()
        self._hold()  # until a while after the guard has sent it
        if was_awake:
            self._guard.signal(number)
            return
        if not self._signals:
            self._loop.at(time.monotonic() + _BEFORE_SIGNAL, self._send_signals)
        self._signals.append(number)

    def _hold(self) -> None:
        """Have it awake until the keeper's ``ended``. No request waits for this, so it is not counted as a wait."""
        self._keeper.wake()
        self._keeper.held()

    def _send_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            self._guard.signal(number)

    def _stop_a_while(self) -> None:
        """Like any other job that is stopped; SIGCONT goes on here."""
        self._options.reporter.suspend()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _leave(self) -> None:
        """Leave a server that was there before: thawed, and when the exchanges in flight have ended. Twice: at once."""
        self._keeper.disarm()
        if not self._served or self._ending:
            self._loop.stop()
            return
        self._ending = True
        self._part(float("inf"))

    # The end.

    def _finish(self) -> None:
        """Thaw, end what we started, and give the numbers."""
        self._driver.close()
        left_to_guard = False
        try:
            if self._command is not None:
                self._real_freezer.rescue()
            elif not self._keeper.gate.open:
                self._freezer.thaw()
        except Gone:
            pass
        except FreezeError as error:
            if self._command is None and not self._guard.gone:
                left_to_guard = True
                self._failure = Failure(
                    f"{error} {self._real_freezer.where} stays frozen; the guard goes on trying to thaw it."
                )
        self._front.close()
        now = self._loop.now
        report = self._ledger.report(now, self._keeper.requests)
        if left_to_guard:
            self._guard.leave_alone()
        else:
            self._guard.end()
        if self._guard.gone and self._command is not None:
            end_descendants(self._plan, reap)
        self._real_freezer.close()
        self._loop.close()
        report |= {
            "way": self._front.way,
            "freezer": self._freezer.kind,
            "where": self._freezer.where,
            "exit_code": self._code,
        }
        options = self._options
        if self._served:
            options.reporter.end(report)
            if options.print_table:
                options.reporter.output.write(table(report), LAST_PATIENCE)
        if self._served and options.report is not None:
            try:
                with open(options.report, "w", encoding="utf-8") as file:
                    json.dump(report, file, indent=2)
                    file.write("\n")
            except OSError as error:
                self._failure = self._failure or Failure(
                    f"The report {options.report} cannot be written: {error.strerror}."
                )


def _identity(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
