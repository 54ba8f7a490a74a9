"""Freezing by SIGSTOP and SIGCONT, for where no cgroup can be written.

The whole process tree is stopped. Who belongs to it is looked up at each freeze: all that descend from the root, and,
where a cgroup is known to hold the target's processes alone, all in it. A child that daemonises still descends from
the root if the root takes in orphans (``PR_SET_CHILD_SUBREAPER``, prctl(2)), as the guard of ``freeze-proxy run`` does;
otherwise it is lost from sight, and goes on running.

Two differences from a cgroup that a program may notice: its parent learns of the stop (SIGCHLD), and a handler for
SIGCONT runs at each thaw.
"""

import os
import signal

from freeze_proxy.freezers import FreezeError, Freezer, processes

_MOST_LOOKS = 100
"""How often a tree is searched for new processes at once: one that forks without end would never let go."""


class ProcessFreezer(Freezer):
    """Stops all that descends from ``root``, and ``root`` itself unless ``spare_root``. Leaves alone what had been
    stopped by somebody else before."""

    kind = "process"

    def __init__(self, root: int, spare_root: bool = False, also: str | None = None) -> None:
        """``also``: the ``cgroup.procs`` file of a cgroup that holds the target's processes and no others."""
        self._root = root
        self._root_started = processes.started(root)
        self._spare_root = spare_root
        self._also = also
        self._stopped: dict[int, int] = {}  # PID to start time, of those that were stopped by this
        self.where = f"the process tree {'below ' if spare_root else 'of '}PID {root}"
        for pid in self._members():
            self._signal(pid, 0)  # may it be sent signals?
        self._found_stopped = {
            pid: processes.started(pid) for pid in self._members() if processes.state(pid) == processes.STOPPED
        }

    def freeze(self) -> bool:
        """Stop them; then look for those that were forked meanwhile, until there are none."""
        for _ in range(_MOST_LOOKS):
            if not self._stop_new():
                break
        return self.frozen()

    def still(self) -> bool:
        """Whether every process of the tree is stopped."""
        members = self._members()
        return bool(members) and all(processes.stands_still(pid) for pid in members)

    def frozen(self) -> bool:
        """Likewise, and nobody is new."""
        return not self._stop_new() and all(processes.stands_still(pid) for pid in self._stopped)

    def thaw(self) -> None:
        """Continue those that were stopped by this, children before parents."""
        for pid, started in reversed(self._stopped.items()):
            if processes.started(pid) == started:
                self._signal(pid, signal.SIGCONT)
        self._stopped.clear()

    def rescue(self) -> None:
        """Continue all that stand still, but those that stood still from the beginning."""
        for pid in reversed(self._members()):
            if self._found_stopped.get(pid) != processes.started(pid):
                self._signal(pid, signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """Summed over the tree; what a child used whose parent never waited for it is lost."""
        used = sum(processes.cpu_seconds(pid) for pid in self._members())
        return used + (processes.cpu_seconds(self._root, own=False) if self._spare_root else 0.0)

    def _members(self) -> list[int]:
        if processes.started(self._root) != self._root_started:
            raise FreezeError(f"The process {self._root} has ended.")
        members = processes.descendants(self._root)
        if not self._spare_root:
            members.insert(0, self._root)
        if self._also is not None:
            try:
                with open(self._also, encoding="ascii") as file:
                    members += [int(pid) for pid in file.read().split() if int(pid) not in members]
            except OSError:
                self._also = None
        return members

    def _stop_new(self) -> bool:
        new = False
        for pid in self._members():
            started = processes.started(pid)
            if started is None or self._stopped.get(pid) == started or processes.state(pid) == processes.STOPPED:
                continue  # gone, or stopped: by this already, or by somebody whose business it is to continue it
            if self._signal(pid, signal.SIGSTOP):
                self._stopped[pid] = started
                new = True
        return new

    @staticmethod
    def _signal(pid: int, number: int) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise FreezeError(
                f"Process {pid} ({processes.name(pid)}) belongs to another user and cannot be stopped; "
                "run freeze-proxy as root or as that user."
            ) from None
        return True
