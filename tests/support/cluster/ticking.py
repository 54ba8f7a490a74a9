"""A container as the node's kernel has it, whichever runtime runs it; and a workload that shows whether it runs."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.cluster import cgroups
from tests.support.wait import PATIENCE, until

Command = Sequence[str]

TICK = (
    "sh",
    "-c",
    # Waiting in read, and not by sleep, costs no process a tick.
    'trap "echo terminated; exit 0" TERM; echo started; mkfifo /tmp/never; exec 3<>/tmp/never 4>>/ticks/ticks; '
    "while :; do echo >&4; read -t 0.01 nothing <&3; done",
)
"""Writes a byte into a file that the test sees, every 10 ms; says "started" and "terminated" in its log."""


class Ticking:
    """A container that runs ``TICK``, or anything else if nobody asks for its ticks."""

    id: str
    name: str
    pid: int
    """Its first process, as the node counts processes."""
    folder: Path
    """Mounted in it as ``/ticks``."""

    @property
    def ticks(self) -> int:
        """How often it has ticked."""
        file = self.folder / "ticks"
        return file.stat().st_size if file.exists() else 0

    def await_ticks(self, within: float = PATIENCE) -> None:
        """It ticks from now on."""
        before = self.ticks
        until(lambda: self.ticks > before, f"{self.name} ticks", within)

    def stands_still(self, for_seconds: float = 0.1) -> bool:
        """Whether there is no tick for a while, long enough for many."""
        before = self.ticks
        time.sleep(for_seconds)  # that nothing comes is the point
        return self.ticks == before

    @property
    def alive(self) -> bool:
        """Whether its first process is there, and no zombie."""
        return cgroups.lives(self.pid)

    @property
    def frozen(self) -> bool:
        """Whether the kernel says so."""
        try:
            return self.alive and cgroups.frozen(self.pid)
        except FileNotFoundError:  # it has just ended
            return False

    def await_frozen(self, within: float = PATIENCE) -> None:
        until(lambda: self.frozen, f"the kernel says that {self.name} is frozen", within)

    def await_awake(self, within: float = PATIENCE) -> None:
        until(lambda: not self.frozen, f"the kernel says that {self.name} is awake", within)

    @property
    def cgroup(self) -> Path:
        """The cgroup by which it is to be frozen."""
        return cgroups.place(self.pid)

    def freeze_cgroup(self) -> None:
        """Freeze it as a freezer of cgroups does, but without one of ours."""
        v1 = self.cgroup / "freezer.state"
        if v1.exists():
            until(lambda: v1.write_text("FROZEN") and v1.read_text() == "FROZEN\n", f"{v1} is FROZEN")
        else:
            (self.cgroup / "cgroup.freeze").write_text("1")
            self.await_frozen()

    def thaw_cgroup(self) -> None:
        """Undo ``freeze_cgroup``."""
        v1 = self.cgroup / "freezer.state"
        if v1.exists():
            v1.write_text("THAWED")
        else:
            (self.cgroup / "cgroup.freeze").write_text("0")

    def kill(self, by: int = signal.SIGKILL) -> None:
        """A signal to its first process, from outside, with the runtime none the wiser."""
        os.kill(self.pid, by)
