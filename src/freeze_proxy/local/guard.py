"""The guard: a process that outlives the proxy, so that nothing stays frozen when the proxy is gone.

It is forked before anything is made or frozen, and holds one end of a socket. When the other end closes, however the
proxy ended, it thaws the target; what ``freeze-proxy run`` has started it also ends, within a second, and removes its
cgroup. That cgroup is made by the guard, so that there is no moment at which nobody would remove it.

It is also the parent of COMMAND, and takes in its orphans (``PR_SET_CHILD_SUBREAPER``, prctl(2)): a server that
daemonises stays below it, and can be found, signalled and waited for.

What COMMAND gets from it is what it would have had without it: descriptors, environment, limits, ignored and blocked
signals. Four things differ: it leads a process group of its own, so that a terminal's signals reach it thawed; where
standard input is a terminal, it reads end-of-file, for a background process may not read from one; SIGPIPE is at its
default, since the interpreter of this program does not know how it was before; and COMMAND's process is killed when
the guard dies (``PR_SET_PDEATHSIG``).

If the guard is killed, the proxy ends the server, whose orphans it takes in as the guard did. If both are killed at
once, this is left: COMMAND's own process is killed by the kernel, at once on cgroup v2 and under SIGSTOP, and on
cgroup v1 as soon as somebody thaws it; stopped processes of its process group are continued by the kernel, which does
so for every orphaned group; other processes of a frozen cgroup stay frozen, and the cgroup stays.

The words on the socket: to the guard a line each, ``signal N`` and ``end``; from it a JSON list on a line each,
``["planned", SPEC, ABOUT]`` or ``["impossible", CODE, SENTENCE]`` first, then ``["started", PID]`` or
``["unstartable", CODE, SENTENCE]``, ``["signalled", N]`` for each signal, and ``["ended", CODE]``.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from freeze_proxy.freezers import FreezeError, Freezer, Gone, processes
from freeze_proxy.local.options import CANNOT_WORK, Failure

TERM_PATIENCE = 0.5
"""Seconds from SIGTERM to SIGKILL for what is left of COMMAND."""
_RESCUE_PATIENCE = 3600.0
"""Seconds for which a runtime is asked to thaw what it has paused, if it is away when freeze-proxy is."""
CANNOT_RUN, NOT_FOUND = 126, 127

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_ARG_START, _ARG_END = 45, 46  # in the fields of ``processes.stat``
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_TO_THE_GROUP = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends to all of a job, and programs such as shells and make count on."""
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Plan:
    """What the guard does about the target."""

    def freezer(self, guard: int) -> Freezer:
        """The freezer for the target; all that COMMAND becomes descends from the process ``guard``."""
        raise NotImplementedError

    def spec(self) -> list[str]:
        """From which ``plans.plan_from`` makes another such plan."""
        return []

    def join(self) -> None:
        """Called in the child that becomes COMMAND: go where it is to be frozen. Raises ``OSError``."""

    def kill(self) -> None:
        """SIGKILL to all that is left."""

    def clear(self) -> bool:
        """Remove what was made for it; returns whether nothing of it is left."""
        return True


class Command:
    """What to run: ``argv`` in the environment ``env``."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.env = dict(env)


class Guard:
    """The proxy's end."""

    def __init__(
        self, make_plan: Callable[[], tuple[Plan, str]], command: Command | None, may_thaw: bool = True
    ) -> None:
        """Returns when the guard is watching and there is a plan; raises ``Failure`` if there can be none.

        ``make_plan`` is called in the guard, and gives the plan and what to tell of it. With ``may_thaw=False`` the
        target, which is nobody's to freeze, is left alone.
        """
        ours, theirs = socket.socketpair()
        proxy = os.getpid()
        if command is not None:
            take_in_orphans()
        self.pid = os.fork()
        if not self.pid:
            try:
                ours.close()
                _Guarding(make_plan, command, may_thaw, theirs, proxy).main()
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.write(2, f"freeze-proxy: the guard failed: {error!r}\n".encode())
            finally:
                os._exit(1)
        theirs.close()
        self._socket = ours
        self._unread = b""
        self._ended = False
        self.gone = False
        self.spec: list[str] = []
        self.about = ""
        self._unheard: list[list[Any]] = []
        while not self._unheard and not self.gone:
            self._unheard = self._read()
        ours.setblocking(False)
        if not self._unheard:
            self.end()
            raise Failure("The guard process was ended by somebody before it could start.")
        word, first, sentence = self._unheard.pop(0)
        if word == "impossible":
            self.end()
            raise Failure(sentence, first)
        self.spec, self.about = first, sentence

    def fileno(self) -> int:
        """Readable when there is something to ``hear``, unless ``hear`` has not been called yet."""
        return self._socket.fileno()

    def hear(self) -> list[list[Any]]:
        """What it has said. ``gone`` is set when it can say no more."""
        heard, self._unheard = self._unheard, []
        return heard + self._read()

    def signal(self, number: int) -> None:
        """Send COMMAND a signal; there is no chance that its PID is another process's by then."""
        with contextlib.suppress(OSError):
            self._socket.send(f"signal {number}\n".encode())

    def end(self) -> None:
        """End what is left of COMMAND, clear up, and wait until the guard is done."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.send(b"end\n")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._socket.close()

    def leave_alone(self) -> None:
        """Go on without it: it thaws the target by itself, and tries until it has."""
        self._ended = True
        self._socket.close()

    def _read(self) -> list[list[Any]]:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]


class _Guarding:
    """The guard's own end."""

    def __init__(
        self,
        make_plan: Callable[[], tuple[Plan, str]],
        command: Command | None,
        may_thaw: bool,
        ours: socket.socket,
        proxy: int,
    ) -> None:
        self._make_plan = make_plan
        self._command = command
        self._may_thaw = may_thaw
        self._socket = ours
        self._proxy = proxy
        self._main: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._daemonised = False
        self._last: set[int] | None = None  # the daemons that have been told to end
        self._ending = False
        self._said_ended = False

    def main(self) -> None:
        os.setpgid(0, 0)  # a signal from the terminal is for the proxy, which thaws before it passes it on
        _rename(f"freeze-guard of {self._proxy}")
        ignored = {number for number in (*_DEAF_TO, signal.SIGCHLD) if signal.getsignal(number) == signal.SIG_IGN}
        for number in _DEAF_TO:
            signal.signal(number, signal.SIG_IGN)
        self._close_our_own()
        try:
            plan, about = self._make_plan()
        except Failure as failure:
            self._say("impossible", failure.code, str(failure))
            os._exit(0)
        try:
            freezer = plan.freezer(os.getpid())
        except FreezeError as error:
            self._say("impossible", CANNOT_WORK, str(error))
            plan.clear()
            os._exit(0)
        self._say("planned", plan.spec(), about)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if self._command is not None:
            take_in_orphans()
            self._start(self._command, plan, ignored, blocked)
        told = self._watch(wake_read)
        if self._command is not None or (self._may_thaw and not told):
            _rescue(freezer)
        if self._command is not None:
            end_descendants(plan, self._reap)
            plan.clear()
        os._exit(0)

    def _close_our_own(self) -> None:
        """Close what belongs to the proxy; all that was open before there was a proxy goes on to COMMAND."""
        for entry in os.listdir("/proc/self/fd"):
            fd = int(entry)
            with contextlib.suppress(OSError):
                if fd != self._socket.fileno() and not os.get_inheritable(fd):
                    os.close(fd)

    def _start(self, command: Command, plan: Plan, ignored: set[signal.Signals], blocked: set[int]) -> None:
        guard = os.getpid()
        cannot_join: list[str] = []
        report, reported = os.pipe2(os.O_CLOEXEC)

        def become() -> None:
            try:
                plan.join()
            except OSError as error:
                os.write(reported, f"{error.filename}: {error.strerror}".encode(errors="replace"))
                raise
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(1)  # it has died before the kernel knew what to do then
            for number in (*_DEAF_TO, signal.SIGCHLD):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

        name = command.argv[0] if command.argv[0].isprintable() else repr(command.argv[0])
        try:
            self._main = subprocess.Popen(
                command.argv,
                env=command.env,
                # In a process group of its own it may not read from a terminal.
                stdin=subprocess.DEVNULL if os.isatty(0) else None,
                close_fds=False,
                process_group=0,
                preexec_fn=become,
            )
        except FileNotFoundError:
            if "/" in command.argv[0] and os.path.exists(command.argv[0]):
                self._say("unstartable", CANNOT_RUN, f"{name} cannot be run: its interpreter is not there.")
            else:
                self._say("unstartable", NOT_FOUND, f"{name}: there is no such command.")
        except OSError as error:
            self._say("unstartable", CANNOT_RUN, f"{name} cannot be run: {error.strerror}.")
        except subprocess.SubprocessError:
            os.set_blocking(report, False)
            with contextlib.suppress(BlockingIOError):
                cannot_join.append(os.read(report, 4096).decode(errors="replace"))
            why = "".join(cannot_join) or "it could not be prepared"
            self._say("unstartable", CANNOT_WORK, f"{name} cannot be moved into its cgroup: {why}.")
        else:
            self._say("started", self._main.pid)
        finally:
            os.close(report)
            os.close(reported)

    def _watch(self, wake: int) -> bool:
        """Until the proxy says that it is the end, or is gone without a word; returns whether it has said so."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        unread = b""
        self._reap()
        while True:
            readable = [fd for fd, _ in poll.poll()]
            if wake in readable:
                os.read(wake, 4096)
                self._reap()
            if self._socket.fileno() in readable:
                try:
                    data = self._socket.recv(4096)
                except OSError:
                    return False
                if not data:
                    return False
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    word, _, number = line.partition(b" ")
                    if word == b"end":
                        return True
                    self._signal(int(number))
                    self._say("signalled", int(number))

    def _signal(self, number: int) -> None:
        if self._main is None:
            return
        if number in _ENDING:
            self._ending = True
        main = self._main.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._code is not None:
                # A daemon has left COMMAND's group with COMMAND's process.
                daemons = children()
                if number in _ENDING and self._last is None:
                    self._last = set(daemons)
                for pid in daemons:
                    os.kill(pid, number)
            elif number in _TO_THE_GROUP and os.getpgid(main) == main:
                os.killpg(main, number)
            else:
                os.kill(main, number)

    def _reap(self) -> None:
        for pid, code in reap():
            if self._main is not None and pid == self._main.pid:
                self._code = self._main.returncode = code
                self._daemonised = code == 0 and not self._ending and bool(processes.descendants(os.getpid()))
            elif self._daemonised and (self._last is None or pid in self._last):
                self._code = code
        self._tell_end()

    def _tell_end(self) -> None:
        """COMMAND has ended when its process has; but one that ends well and leaves others behind has daemonised.

        Then it ends when the last of those does that have been told to, or else the last of all; its code is COMMAND's.
        """
        if self._code is None or self._said_ended:
            return
        if self._daemonised:
            left = processes.descendants(os.getpid()) if self._last is None else self._last.intersection(children())
            if left:
                return
        self._said_ended = True
        self._say("ended", self._code)

    def _say(self, *words: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(words).encode() + b"\n")


def _rescue(freezer: Freezer) -> None:
    """Thaw; if a runtime has to be asked and is away, ask until it is there again."""
    deadline, pause = time.monotonic() + (0.0 if freezer.quick else _RESCUE_PATIENCE), 0.05
    while True:
        try:
            freezer.rescue()
            return
        except Gone:
            return
        except Exception:  # nobody else would thaw it
            if time.monotonic() > deadline:
                return
        time.sleep(pause)  # a runtime does not say when it is there again
        pause = min(pause * 2, 2.0)


def reap() -> list[tuple[int, int]]:
    """Waits for all children that have ended; returns their PIDs and exit codes, 128 + n for signal n."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(child[1])
            ended.append((child[0], code if code >= 0 else 128 - code))
    return ended


def end_descendants(plan: Plan, reap: Callable[[], object]) -> None:
    """SIGTERM, and soon after SIGKILL, to all that descends from this process."""
    own = os.getpid()

    def each(number: int) -> None:
        for pid in processes.descendants(own):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def all_ended_within(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while reap() or processes.descendants(own):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)  # bounded by the deadline; a SIGCHLD would cut it short, were one certain to come
        return True

    each(signal.SIGTERM)
    each(signal.SIGCONT)  # who is stopped does not hear it otherwise
    all_ended_within(TERM_PATIENCE)
    plan.kill()
    each(signal.SIGKILL)
    all_ended_within(TERM_PATIENCE)


def children() -> list[int]:
    """This process's own: where COMMAND's process has ended, the daemons that it left, and what they left."""
    own = os.getpid()
    return [pid for pid in processes.descendants(own) if processes.parent(pid) == own]


def take_in_orphans() -> None:
    """From now on, what descends from this process becomes its child when its parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _rename(title: str) -> None:
    """Show this process under another name: who ends all that is called freeze-proxy must not end the guard too.

    What ps and pkill show is the memory of the arguments, from ``arg_start`` to ``arg_end`` of proc(5).
    """
    _prctl(_PR_SET_NAME, b"freeze-guard")
    fields = processes.stat(os.getpid())
    if fields is not None and len(fields) > _ARG_END and fields[_ARG_START] != "0":
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        ctypes.memmove(start, title.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)


def _prctl(option: int, argument: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
