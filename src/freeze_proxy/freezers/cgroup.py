"""Freezing a cgroup by its own files: ``cgroup.freeze`` on cgroup v2, ``freezer.state`` on v1; throttling by CPU quota.

The files are opened once and stay open: a transition is one write and one read. Sources: the kernel's "Control Group
v2" (cgroup.freeze, cgroup.events, cgroup.kill, cpu.max) and "Cgroup Freezer" (v1) documents.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable

from freeze_proxy.freezers import FreezeError, Freezer, Gone, processes

THROTTLED = (1000, 100_000)
"""CPU quota and period of a throttled target, in microseconds: a hundredth of one core, the least that v1 allows."""


class _Files:
    """Control files of one cgroup, open."""

    def __init__(self, path: str, *names: str) -> None:
        self.path = path
        self._fds: dict[str, int] = {}
        try:
            for name in names:
                writable = os.access(os.path.join(path, name), os.W_OK)
                self._fds[name] = os.open(
                    os.path.join(path, name), (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
                )
        except OSError as error:
            self.close()
            kind = FreezeError if os.path.isdir(path) else Gone
            raise kind(f"{error.filename} cannot be opened: {error.strerror}.") from error

    def read(self, name: str) -> bytes:
        try:
            return os.pread(self._fds[name], 4096, 0)
        except KeyError:
            raise Gone(f"The cgroup {self.path} has been given back.") from None
        except OSError as error:
            raise self._failure(name, error) from error

    def read_anew(self, name: str) -> bytes:
        """What a file says that has just been opened.

        A ``cgroup.procs`` of v1 that is kept open shows the list of its first reading for as long as it is read more
        often than once a second: the kernel throws that list away only after a second without readers
        (``cgroup_pidlist_start`` in kernel/cgroup/cgroup-v1.c).
        """
        try:
            fd = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, 4096)
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise Gone(f"The cgroup {self.path} is gone.") from None
        except OSError as error:
            raise self._failure(name, error) from error

    def write(self, name: str, value: bytes) -> None:
        try:
            os.pwrite(self._fds[name], value, 0)
        except KeyError:
            raise Gone(f"The cgroup {self.path} has been given back.") from None
        except OSError as error:
            raise self._failure(name, error) from error

    def writing(self, name: str, value: bytes) -> Callable[[], object]:
        """``write`` in as few steps as there can be. Raises ``OSError``."""
        fd_of = self._fds.get
        return lambda: os.pwrite(fd_of(name, -1), value, 0)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _failure(self, name: str, error: OSError) -> FreezeError:
        if error.errno == errno.ENODEV:
            return Gone(f"The cgroup {self.path} is gone.")
        return FreezeError(f"{os.path.join(self.path, name)}: {error.strerror}.")


class Cgroup2Freezer(Freezer):
    """Freezes a cgroup of the v2 hierarchy, with all below it.

    A signal wakes a process in it, that finds it is to stand still and goes on doing so (``do_freezer_trap`` in the
    kernel's kernel/signal.c).
    """

    kind = "cgroup2"
    cpu_is_quick = True
    stirs = True

    def __init__(self, path: str) -> None:
        self.where = path
        self.way = (self.kind, path)
        self._files = _Files(path, "cgroup.freeze", "cgroup.events", "cpu.stat")
        self.haste = self._files.writing("cgroup.freeze", b"0")

    def freeze(self) -> bool:
        """Asynchronous: the kernel says in ``cgroup.events`` when the last task stands still."""
        self._files.write("cgroup.freeze", b"1")
        return self.still()

    def still(self) -> bool:
        """``frozen 1`` in ``cgroup.events``."""
        return b"frozen 1" in self._files.read("cgroup.events")

    def alive(self) -> bool:
        """``populated 1`` in ``cgroup.events``."""
        return b"populated 1" in self._files.read("cgroup.events")

    def thaw(self) -> None:
        """The tasks are runnable when the write returns."""
        self._files.write("cgroup.freeze", b"0")

    def cpu_seconds(self) -> float:
        """``usage_usec`` of ``cpu.stat``, which is there without the cpu controller."""
        return int(self._files.read("cpu.stat").split(None, 2)[1]) / 1e6

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


class Cgroup1Freezer(Freezer):
    """Freezes a cgroup of the v1 freezer hierarchy, with all below it."""

    kind = "cgroup1"

    def __init__(self, path: str) -> None:
        self.where = path
        self.way = (self.kind, path)
        self._files = _Files(path, "freezer.state")
        self.haste = self._files.writing("freezer.state", b"THAWED")

    def freeze(self) -> bool:
        """It may stay FREEZING while tasks fork or sleep uninterruptibly."""
        self._files.write("freezer.state", b"FROZEN")
        return self.still()

    def still(self) -> bool:
        """Reading the state brings it up to date."""
        return self._files.read("freezer.state") == b"FROZEN\n"

    def frozen(self) -> bool:
        """While it is FREEZING, the write is repeated."""
        if self.still():
            return True
        self._files.write("freezer.state", b"FROZEN")
        return self.still()

    def alive(self) -> bool:
        """Whether a process is in it or, where it manages cgroups of its own, below it."""
        return bool(self._files.read_anew("cgroup.procs")) or populated(self.where)

    def thaw(self) -> None:
        """The tasks are runnable when the write returns."""
        self._files.write("freezer.state", b"THAWED")

    def cpu_seconds(self) -> float:
        """Summed over its processes: the freezer hierarchy counts none."""
        return sum(processes.cpu_seconds(pid) for pid in members(self.where))

    def close(self) -> None:
        """Closes the file."""
        self._files.close()


class ThrottleFreezer(Freezer):
    """Instead of stopping it, leaves the target a hundredth of a core; puts the old quota back at the thaw."""

    kind = "throttle"

    def __init__(self, path: str, before: str | None = None) -> None:
        """``before``: the quota to put back, from who throttled it; by default what it is now."""
        self.where = path
        self._v2 = os.path.exists(os.path.join(path, "cpu.max"))
        if self._v2:
            self._quota, least = "cpu.max", f"{THROTTLED[0]} {THROTTLED[1]}"
            self._files = _Files(path, self._quota, "cpu.stat")
        else:
            self._quota, least = "cpu.cfs_quota_us", str(THROTTLED[0])
            self._files = _Files(path, self._quota)
        self._least = least.encode()
        self._before = self._files.read(self._quota).strip() if before is None else before.encode()
        self.haste = self._files.writing(self._quota, self._before)
        self.way = (self.kind, path, self._before.decode())

    def freeze(self) -> bool:
        """Takes effect in the current period already."""
        self._files.write(self._quota, self._least)
        return True

    def still(self) -> bool:
        """Whether the quota is down; it holds at once."""
        return self._files.read(self._quota).strip() == self._least

    def alive(self) -> bool:
        """Whether a process is in it or below it."""
        return populated(self.where)

    def thaw(self) -> None:
        """The kernel lets waiting tasks run as soon as the quota is raised."""
        self._files.write(self._quota, self._before)

    def cpu_seconds(self) -> float:
        """From ``cpu.stat`` on v2, summed over the processes on v1."""
        if self._v2:
            return int(self._files.read("cpu.stat").split(None, 2)[1]) / 1e6
        return sum(processes.cpu_seconds(pid) for pid in members(self.where))

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


# Where the hierarchies are, and where a process is in them.


def mounts() -> dict[str, tuple[str, str]]:
    """Mount point and mounted root of the hierarchies in this mount namespace, by ``cgroup2`` or v1 controller.

    From /proc/self/mountinfo (proc(5)).
    """
    found: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields, (kind, _source, options) = left.split(), right.split(None, 2)
            if not kind.startswith("cgroup"):
                continue
            root, point = (field.encode().decode("unicode_escape") if "\\" in field else field for field in fields[3:5])
            if kind == "cgroup2":
                found.setdefault("cgroup2", (point, root))
            elif kind == "cgroup":
                for controller in options.strip().split(","):
                    found.setdefault(controller, (point, root))
    return found


def place(hierarchy: str, pid: int | str = "self") -> str | None:
    """The directory of the cgroup that a process is in; ``None`` without that hierarchy, or where it is out of sight.

    ``hierarchy`` is ``cgroup2`` or a v1 controller. Raises ``FreezeError`` where there is no such process.
    """
    mount = mounts().get(hierarchy)
    if mount is None:
        return None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise FreezeError(f"There is no process {pid}.") from None
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers == ("" if hierarchy == "cgroup2" else hierarchy) or hierarchy in controllers.split(","):
            point, root = mount
            if root != "/":
                if not (path + "/").startswith(root + "/"):
                    return None
                path = path[len(root) :]
            if path.startswith("/.."):
                return None  # outside of this cgroup namespace
            return os.path.normpath(point + "/" + path)
    return None


# Cgroups as such.


def create(hierarchy: str, name: str) -> str:
    """A new cgroup below the one that this process is in. Raises ``FreezeError``."""
    parent = place(hierarchy)
    if parent is None:
        raise FreezeError(f"There is no {_SPOKEN.get(hierarchy, hierarchy)} hierarchy on this machine.")
    path = os.path.join(parent, name)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # of a process that had our PID before, and was killed together with its guard
    try:
        os.mkdir(path)
    except OSError as error:
        hint = ""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "; run as root, or in a delegated cgroup (systemd-run --user --scope -p Delegate=yes …)"
        raise FreezeError(f"No cgroup can be made in {parent}: {error.strerror}{hint}.") from error
    # On v2 a process is moved by who may write to the common ancestor, too.
    needed = [path, parent] if hierarchy == "cgroup2" else [path]
    if not all(os.access(os.path.join(directory, "cgroup.procs"), os.W_OK) for directory in needed):
        os.rmdir(path)
        raise FreezeError(f"Processes cannot be moved to cgroups in {parent}; it is not delegated to this user.")
    return path


_SPOKEN = {"cgroup2": "cgroup v2", "freezer": "cgroup v1 freezer", "cpu": "cgroup v1 cpu"}


def is_v2(path: str) -> bool:
    """Whether this is a cgroup of cgroup v2, and not its root: only others have this file."""
    return os.path.exists(os.path.join(path, "cgroup.freeze"))


def subtree(path: str) -> list[str]:
    """A cgroup and all below it, the lowest first."""
    return [directory for directory, _, _ in os.walk(path, topdown=False)]


def members(path: str) -> list[int]:
    """PIDs of all processes in a cgroup and below it."""
    pids: list[int] = []
    for directory in subtree(path):
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
            pids += [int(pid) for pid in file.read().split()]
    return pids


def populated(path: str) -> bool:
    """Whether there is a living process in a cgroup or below it."""
    try:
        with open(os.path.join(path, "cgroup.events"), encoding="ascii") as file:
            return "populated 1" in file.read()
    except OSError:
        return bool(members(path))


def kill(path: str) -> None:
    """SIGKILL to every process in a cgroup and below it, and thaw what is frozen of it: v1 lets nothing frozen die."""
    try:
        with open(os.path.join(path, "cgroup.kill"), "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        for pid in members(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for directory in reversed(subtree(path)):
        for name, thawed in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, thawed.encode())
                finally:
                    os.close(fd)


def remove(path: str, patience: float = 1.0) -> bool:
    """Remove a cgroup and all below it, once the last of its processes has gone; returns whether it is gone."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            for directory in subtree(path):
                os.rmdir(directory)
        if not os.path.isdir(path):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)  # Its processes are dying; there is no event for the last step of that on v1.
