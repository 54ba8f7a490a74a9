"""Many cgroups of the benchmark's own, each with a process asleep, named and placed as a kubelet's containers are."""

import contextlib
import os
import secrets
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from bench.machine import BenchError
from freeze_proxy.freezers import cgroup

LIFETIME = "900"
"""Seconds after which a process ends by itself, should the benchmark be killed."""


@dataclass(frozen=True)
class Member:
    """One cgroup: the container's id that it is named for, the process in it, and the file that tells its state."""

    id: str
    pid: int
    state: str

    def frozen(self) -> bool:
        """Whether the kernel says so."""
        with open(self.state, encoding="ascii") as file:
            said = file.read()
        return said == "FROZEN\n" or "frozen 1" in said


@contextlib.contextmanager
def crowd(pods: int, each: int) -> Iterator[list[list[Member]]]:
    """So many pods' cgroups with so many containers' cgroups in each: in the v1 freezer if there is one, else in v2.

    Raises ``FreezeError`` where no cgroup can be made.
    """
    hierarchy, file = ("freezer", "freezer.state") if "freezer" in cgroup.mounts() else ("cgroup2", "cgroup.events")
    top = cgroup.create(hierarchy, f"freeze-proxy-bench-{os.getpid()}")
    pids: list[int] = []
    try:
        made = []
        for _ in range(pods):
            pod = os.path.join(top, f"pod{uuid.uuid4()}")
            os.mkdir(pod)
            made.append([_member(pod, file, pids) for _ in range(each)])
        yield made
    finally:
        cgroup.kill(top)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)  # one that had not been moved yet
            os.waitpid(pid, 0)
        if not cgroup.remove(top, 10.0):
            raise BenchError(f"The benchmark's cgroups in {top} could not be removed.")


def _member(pod: str, file: str, pids: list[int]) -> Member:
    identity = secrets.token_hex(32)
    path = os.path.join(pod, identity)
    os.mkdir(path)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # or the benchmark may be ended between the next two lines
    try:
        pid = os.posix_spawnp("sleep", ["sleep", LIFETIME], {"PATH": os.defpath}, setsigmask=[])
        pids.append(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as procs:
        procs.write(str(pid))
    return Member(identity, pid, os.path.join(path, file))
