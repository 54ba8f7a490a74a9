"""Whether somebody runs a command in a container: ``kubectl exec``, or a probe of the kind ``exec``.

Frozen, it would hang: a probe fails when its time is over. A runtime refuses to enter a container that is frozen, but
one that it has entered before may be frozen with the command in it.

Such a process is known by its parent, which is outside: in a PID namespace above its own. The main process has such a
parent, too. Who shares the node's PID namespace cannot be told apart (pid_namespaces(7); ``NSpid`` in proc(5)).
"""

import time

from freeze_proxy.freezers.cgroup import members

MOST = 64
"""Processes that are looked at, of a container that has more: the youngest."""
LONGEST = 0.01
"""Seconds for all of them. The loop waits meanwhile, and one in 65,536 groups takes the kernel 20 ms by itself."""


def run_in(place: str, main: int) -> bool:
    """In the container whose cgroup this is, beside its ``main`` process."""
    depths: dict[int, tuple[int, int]] = {}

    def of(pid: int) -> tuple[int, int]:
        if pid not in depths:
            depths[pid] = _parent_and_depth(pid)
        return depths[pid]

    until = time.monotonic() + LONGEST
    for pid in sorted(members(place), reverse=True)[:MOST]:
        if time.monotonic() > until:
            break
        parent, depth = of(pid)
        if pid != main and depth and of(parent)[1] < depth:
            return True
    return False


def _parent_and_depth(pid: int) -> tuple[int, int]:
    """The PID of its parent, and in how many PID namespaces it has one of its own; zeros where it has ended."""
    parent = depth = 0
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == "PPid":
                    parent = int(value)
                elif name == "NSpid":
                    depth = len(value.split())
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return parent, depth
