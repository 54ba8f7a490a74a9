"""How long a freeze and a thaw take: from the order until the target stands still, and until it runs.

Standing still is what the kernel says (``cgroup.events``, ``freezer.state``, ``waitid``); running is an answer from the
target to a byte that had been waiting for it. Both are looked for without pause, so what is measured is the kernel's
time and not that of a waiter. Everything happens in cgroups of the benchmark's own.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.machine import LOAD_CORE, PROXY_CORE, ROOT, BenchError, interpreter, on_cores, percentile, running
from bench.relay import Tell
from freeze_proxy.freezers import FreezeError, Freezer, cgroup
from freeze_proxy.freezers.process import ProcessFreezer

SHAPES = ((1, 0), (10, 0), (100, 0), (1000, 0), (10, 4))
"""Threads, and how many of them compute."""
PATIENCE = 5.0


class Signals(Freezer):
    """SIGSTOP and SIGCONT to one child process, without looking for others: what the kernel needs for them."""

    kind = "SIGSTOP"

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def freeze(self) -> bool:
        """The kernel tells the parent once the last thread has stopped."""
        os.kill(self._pid, signal.SIGSTOP)
        return self.frozen()

    def frozen(self) -> bool:
        """Whether that has been told."""
        return os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG) is not None

    def thaw(self) -> None:
        """Continues it."""
        os.kill(self._pid, signal.SIGCONT)


@contextlib.contextmanager
def _in_cgroup(hierarchy: str, pid: int) -> Iterator[Freezer]:
    path = cgroup.create(hierarchy, f"freeze-proxy-bench-{os.getpid()}")
    try:
        with open(os.path.join(path, "cgroup.procs"), "w") as file:
            file.write(str(pid))
        kind = cgroup.Cgroup2Freezer if hierarchy == "cgroup2" else cgroup.Cgroup1Freezer
        freezer = kind(path)
        try:
            yield freezer
        finally:
            freezer.thaw()
            freezer.close()
    finally:
        cgroup.kill(path)
        if not cgroup.remove(path, 5.0):
            raise BenchError(f"The benchmark's cgroup {path} could not be removed.")


@contextlib.contextmanager
def _by_signal(kind: Callable[[int], Freezer], pid: int) -> Iterator[Freezer]:
    freezer = kind(pid)
    try:
        yield freezer
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _ways() -> dict[str, Callable[[int], contextlib.AbstractContextManager[Freezer]]]:
    return {
        "cgroup2": lambda pid: _in_cgroup("cgroup2", pid),
        "cgroup1": lambda pid: _in_cgroup("freezer", pid),
        "sigstop": lambda pid: _by_signal(Signals, pid),
        "process": lambda pid: _by_signal(ProcessFreezer, pid),
    }


TITLES = {
    "cgroup2": "cgroup v2",
    "cgroup1": "cgroup v1",
    "sigstop": "SIGSTOP, one process",
    "process": "SIGSTOP, as freeze-proxy does: finding the process tree",
}


def _cycle(freezer: Freezer, target: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    """One freeze and thaw, in microseconds: to frozen, the thaw's call, to an answer."""
    assert target.stdin is not None
    assert target.stdout is not None
    now = time.perf_counter_ns
    begin = now()
    still = freezer.freeze()
    while not still:
        still = freezer.frozen()
        if now() - begin > PATIENCE * 1e9:
            raise BenchError(f"{freezer.kind}: not frozen within {PATIENCE:g} s.")
    frozen = now()
    os.write(target.stdin.fileno(), b"?")
    order = now()
    freezer.thaw()
    thawed = now()
    if os.read(target.stdout.fileno(), 1) != b"?":
        raise BenchError("The target of the freezers has ended.")
    answered = now()
    return (frozen - begin) / 1000, (thawed - order) / 1000, (answered - order) / 1000


def _measure(way: str, threads: int, busy: int, cycles: int) -> dict[str, Any]:
    command = [interpreter(), "-I", "-S", str(ROOT / "bench/freezer_target.py"), str(threads), str(busy)]
    pipe = subprocess.PIPE
    with running(command, core=PROXY_CORE, stdin=pipe, stdout=pipe, bufsize=0) as target, on_cores(LOAD_CORE):
        assert target.stdin is not None
        assert target.stdout is not None
        if target.stdout.read(1) != b"!":
            raise BenchError(f"A process of {threads} threads could not be started.")
        taken = []
        with _ways()[way](target.pid) as freezer:
            for _ in range(cycles):
                # All threads must be back where they were: asleep.
                time.sleep(0.002 + threads * 20e-6)
                taken.append(_cycle(freezer, target))
        target.kill()
    figures: dict[str, Any] = {"threads": threads, "busy": busy, "cycles": cycles}
    for name, values in zip(("frozen_us", "thaw_call_us", "running_us"), zip(*taken, strict=True), strict=True):
        figures[name] = {
            "p50": percentile(values, 50), "p99": percentile(values, 99), "min": min(values), "max": max(values),
        }  # fmt: skip
    return figures


def run(quick: bool, tell: Tell) -> dict[str, Any]:
    """Measure every way and shape."""
    results: dict[str, Any] = {"titles": TITLES, "missing": {}, "ways": {}}
    for way in TITLES:
        rows = []
        for threads, busy in SHAPES:
            tell(f"freezers: {TITLES[way]}, {threads} threads{f', {busy} busy' if busy else ''}")
            try:
                rows.append(_measure(way, threads, busy, 10 if quick else 50 if threads >= 1000 else 300))
            except (FreezeError, PermissionError) as error:
                results["missing"][way] = str(error)
                break
        if rows:
            results["ways"][way] = rows
    return results
