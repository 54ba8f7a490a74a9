"""The guard: a process that outlives the proxy, so that nothing stays frozen when the proxy is gone.

It is forked before anything is frozen and holds one end of a socket. When the other end closes, however the proxy
ended, it thaws the target; what ``freeze-proxy run`` has started it also ends, within a second, and removes its cgroup.

It is also the parent of COMMAND, and takes in its orphans (``PR_SET_CHILD_SUBREAPER``, prctl(2)): a server that
daemonises stays below it, and can be found, signalled and waited for.

The words on the socket, a line each: to the guard ``signal N`` and ``end``; from it ``started PID``,
``unstartable CODE SENTENCE`` and ``ended CODE``.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from freeze_proxy.freezers import FreezeError, Freezer, processes

TERM_PATIENCE = 0.5
"""Seconds from SIGTERM to SIGKILL for what is left of COMMAND."""
CANNOT_RUN, NOT_FOUND = 126, 127

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Plan:
    """What the guard does about the target."""

    def freezer(self, guard: int) -> Freezer:
        """The freezer for the target; all that COMMAND becomes descends from the process ``guard``."""
        raise NotImplementedError

    def join(self) -> None:
        """Called in the child that becomes COMMAND: go where it is to be frozen."""

    def kill(self) -> None:
        """SIGKILL to all that is left."""

    def clear(self) -> None:
        """Remove what was made for it."""


class Command:
    """What to run: ``argv`` in the environment ``env``."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.env = dict(env)


class Guard:
    """The proxy's end."""

    def __init__(self, plan: Plan, command: Command | None) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                _Guarding(plan, command, theirs, ours).main()
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.write(2, f"freeze-proxy: the guard failed: {error!r}\n".encode())
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._unread = b""
        self.gone = False

    def fileno(self) -> int:
        """Readable when there is something to ``hear``."""
        return self._socket.fileno()

    def hear(self) -> list[list[str]]:
        """What it has said, as lines of up to three words. ``gone`` is set when it can say no more."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [line.decode(errors="replace").split(" ", 2) for line in lines]

    def signal(self, number: int) -> None:
        """Send COMMAND a signal; there is no chance that its PID is another process's by then."""
        with contextlib.suppress(OSError):
            self._socket.send(f"signal {number}\n".encode())

    def end(self) -> None:
        """End what is left of COMMAND, clear up, and wait until the guard is done."""
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.send(b"end\n")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._socket.close()


class _Guarding:
    """The guard's own end."""

    def __init__(self, plan: Plan, command: Command | None, ours: socket.socket, theirs: socket.socket) -> None:
        theirs.close()
        self._plan = plan
        self._command = command
        self._socket = ours
        self._main: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._ending = False
        self._said_ended = False

    def main(self) -> None:
        os.setpgid(0, 0)  # a signal from the terminal is for the proxy, which thaws before it passes it on
        _prctl(_PR_SET_NAME, b"freeze-guard")
        ignored = {number for number in _DEAF_TO if signal.getsignal(number) == signal.SIG_IGN}
        for number in _DEAF_TO:
            signal.signal(number, signal.SIG_IGN)
        self._close_inherited()
        freezer = self._plan.freezer(os.getpid())
        if self._command is not None:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            self._start(self._command, ignored)
        self._watch()
        with contextlib.suppress(FreezeError):
            freezer.rescue()
        if self._command is not None:
            self._end_rest()
            self._plan.clear()
        os._exit(0)

    def _close_inherited(self) -> None:
        keep = {0, 1, 2, self._socket.fileno()}
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) not in keep:
                with contextlib.suppress(OSError):
                    os.close(int(entry))

    def _start(self, command: Command, ignored: set[signal.Signals]) -> None:
        def become() -> None:
            self._plan.join()
            for number in _DEAF_TO:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        try:
            self._main = subprocess.Popen(
                command.argv,
                env=command.env,
                # In a process group of its own it may not read from a terminal.
                stdin=subprocess.DEVNULL if os.isatty(0) else None,
                process_group=0,
                preexec_fn=become,
            )
        except FileNotFoundError:
            self._say(f"unstartable {NOT_FOUND} {command.argv[0]}: there is no such command.")
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._say(f"unstartable {CANNOT_RUN} {command.argv[0]} cannot be run: {reason}.")
        else:
            self._say(f"started {self._main.pid}")

    def _watch(self) -> None:
        """Until the proxy says so, or is gone."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        unread = b""
        self._reap()
        while True:
            readable, _, _ = select.select([self._socket.fileno(), wake_read], [], [])
            if wake_read in readable:
                os.read(wake_read, 4096)
                self._reap()
            if self._socket.fileno() in readable:
                try:
                    data = self._socket.recv(4096)
                except OSError:
                    return
                if not data:
                    return
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    word, _, number = line.partition(b" ")
                    if word == b"end":
                        return
                    self._signal(int(number))

    def _signal(self, number: int) -> None:
        if number in _ENDING:
            self._ending = True
        targets = descendants_of_first_rank() if self._code is not None else [self._main.pid] if self._main else []
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self._tell_end()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if self._main is not None and pid == self._main.pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
                self._main.returncode = code
        self._tell_end()

    def _tell_end(self) -> None:
        """COMMAND has ended when its process has; but one that ends well and leaves others behind has daemonised."""
        if self._code is None or self._said_ended:
            return
        if self._code == 0 and not self._ending and processes.descendants(os.getpid()):
            return
        self._said_ended = True
        self._say(f"ended {self._code}")

    def _end_rest(self) -> None:
        """SIGTERM, and soon after SIGKILL, to all that descends from COMMAND."""
        deadline = time.monotonic() + TERM_PATIENCE
        for pid in processes.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        while self._descendants() and time.monotonic() < deadline:
            time.sleep(0.005)  # bounded by the deadline; a SIGCHLD would cut it short, were one certain to come
        self._plan.kill()
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + TERM_PATIENCE
        while self._descendants() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _descendants(self) -> list[int]:
        self._reap()
        return processes.descendants(os.getpid())

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(line.encode() + b"\n")


def descendants_of_first_rank() -> list[int]:
    """The guard's own children: where COMMAND's process has ended, the daemons that it left."""
    own = os.getpid()
    return [pid for pid in processes.descendants(own) if processes.parent(pid) == own]


def _prctl(option: int, argument: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
