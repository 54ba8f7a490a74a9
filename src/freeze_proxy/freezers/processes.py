"""What /proc knows of processes: who descends from whom, who stands still, how much CPU they used (proc(5))."""

import contextlib
import os
import signal
import time

_TICKS = os.sysconf("SC_CLK_TCK")
STOPPED = "T"
_PARENT, _CPU, _START = 1, slice(11, 15), 19


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; ``None`` where there is no such process, or it is hidden."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def name(pid: int) -> str:
    """The command's name, or ``?``."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def started(pid: int) -> int | None:
    """When it started, in clock ticks since boot: with the PID, its identity."""
    fields = stat(pid)
    return int(fields[_START]) if fields else None


def state(pid: int) -> str | None:
    """The letter for its state, such as ``STOPPED``."""
    fields = stat(pid)
    return fields[0] if fields else None


def everyone() -> list[int]:
    """All PIDs."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def descendants(root: int) -> list[int]:
    """PIDs of all that descend from ``root``, parents before children, without ``root``."""
    try:
        found = [root]
        for pid in found:
            found += children(pid)
        return found[1:]
    except FileNotFoundError:
        return _descendants_by_parent(root)


def children(pid: int) -> list[int]:
    """PIDs of its children. Raises ``FileNotFoundError`` where the kernel does not list them."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            if os.path.exists(f"/proc/{pid}/task/{thread}"):
                raise FileNotFoundError("this kernel does not list children (CONFIG_PROC_CHILDREN)") from None
    return found


def _descendants_by_parent(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in everyone():
        fields = stat(pid)
        if fields:
            children.setdefault(int(fields[_PARENT]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def stands_still(pid: int) -> bool:
    """Whether every thread of it is stopped, traced, dead or gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    for thread in threads:
        fields = stat_of_thread(pid, thread)
        if fields and fields[0] not in "TtZX":
            return False
    return True


def stat_of_thread(pid: int, thread: str) -> list[str] | None:
    """Like ``stat``, of one thread."""
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def cpu_seconds(pid: int, own: bool = True) -> float:
    """CPU time of a process and of the children it has waited for; with ``own=False`` of those children only."""
    fields = stat(pid)
    if not fields:
        return 0.0
    used = [int(ticks) for ticks in fields[_CPU]]
    return sum(used if own else used[2:]) / _TICKS


def parent(pid: int) -> int | None:
    """Its parent's PID."""
    fields = stat(pid)
    return int(fields[_PARENT]) if fields else None


_ASKS_TO_END = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGKILL),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH),  # nginx and httpd are told so to finish and leave
    signal.SIGRTMIN + 3,  # systemd is
}
_ENDINGS = sum(1 << number - 1 for number in _ASKS_TO_END)


_PROCESS = 2
"""The clock that goes by what the scheduler counts (``CPUCLOCK_SCHED`` in the kernel)."""
TRUSTED_FOR = 300.0
"""Seconds for which a look holds of a process that has not stirred since."""


class Pending:
    """The signals that wait for a process, which is kept open: a look is one read, and never of another process.

    Raises ``OSError`` where there is no such process, or no descriptor.
    """

    __slots__ = ("_clock", "_fd", "_looked", "_used")

    def __init__(self, pid: int) -> None:
        self._clock = (~pid << 3) | _PROCESS  # its CPU time's: clock_getcpuclockid(3)
        self._used: int | None = None
        self._looked = 0.0
        self._fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)

    def ask_to_end(self) -> bool:
        """Whether one of them is one by which servers are told to end (or to reload).

        A process that stands still cannot handle it before it is thawed. These are the signals that images name as
        their ``STOPSIGNAL``, pending for the process or its main thread (``SigPnd``, ``ShdPnd`` of /proc/PID/status,
        proc(5)). Raises ``ProcessLookupError`` when the process is gone.
        """
        used = self._cpu_time()
        status = os.pread(self._fd, _USUAL, 0)
        if len(status) == _USUAL:
            status += os.pread(self._fd, _LONGEST, _USUAL)  # the kernel has the rest ready
            self._open_anew()
        # One that is stopped or traced, or whose main thread has ended, is not woken by signals.
        stirs = b"\nState:\tS" in status and not _mask(status, b"\nSigBlk:\t") & _ENDINGS
        self._used, self._looked = used if stirs else None, time.monotonic()
        return bool((_mask(status, b"\nSigPnd:\t") | _mask(status, b"\nShdPnd:\t")) & _ENDINGS)

    def stirred(self) -> bool:
        """Whether one may wait since ``ask_to_end``, for a process that stood still then by a freezer that ``stirs``.

        It has used no CPU time, and blocks none of the signals: so none has come. To ask for that takes half a
        microsecond, a twentieth of a look. It is not relied upon for ever (``TRUSTED_FOR``).
        """
        if self._used is None or time.monotonic() > self._looked + TRUSTED_FOR:
            return True
        return self._used != self._cpu_time()

    def close(self) -> None:
        """Gives it back."""
        os.close(self._fd)

    def _cpu_time(self) -> int | None:
        """Of all its threads, in nanoseconds; ``None`` where it is gone."""
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:
            return None

    def _open_anew(self) -> None:
        """The same process's: as long as it is open, the kernel keeps memory for all that was read at once."""
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.close(self._fd)
            self._fd = fd


def asked_to_end(pid: int) -> bool:
    """``Pending.ask_to_end``, once. False where there is no such process."""
    try:
        pending = Pending(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    try:
        return pending.ask_to_end()
    except ProcessLookupError:
        return False
    finally:
        pending.close()


_USUAL, _LONGEST = 8192, 1 << 20
"""Bytes of /proc/PID/status: more than there mostly are, and more than the 65,536 groups take that a process may be in
(``NGROUPS_MAX``). They stand before the signals, and a process of a pod's chooses them."""


def _mask(status: bytes, field: bytes) -> int:
    """The signals of a ``field``, which begins with a newline: the name of a process cannot have one there.

    Where it is not to be found, all that ask to end: in doubt, awake.
    """
    _, found, rest = status.partition(field)
    return int(rest.partition(b"\n")[0], 16) if found else _ENDINGS
