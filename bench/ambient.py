"""What ambient costs: awake beside no proxy, the relay and nginx; waking; a thousand frozen servers; a race.

Awake, all CPU time counts: of the load, of the server, and of what stands between them or beside. A packet on the
loopback is worked on in the sender's time, so that what the program in the kernel takes shows up as the load's or the
server's. Each way has a server of its own, the same nginx; one round takes every way through every load, and the order
rotates. Figures are medians over the rounds.
"""

import contextlib
import os
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import wake
from bench.machine import (
    LOAD_CORE,
    PROXY_CORE,
    BenchError,
    cpu_ns,
    family,
    free_port,
    interpreter,
    listening,
    memory_kib,
    on_cores,
    percentile,
    running,
    spread,
    wait_until,
)
from bench.programs import backend_command, candidates, own_folder, proxy
from bench.relay import SCENARIOS, Tell, compile_all, load
from freeze_proxy.ambient import Watch, Watcher
from freeze_proxy.freezers import cgroup
from freeze_proxy.freezers.cgroup import Cgroup2Freezer
from freeze_proxy.loop import READ, Loop

WAYS = {
    "direct": "no proxy",
    "wake": "ambient, packets that wake (source a)",
    "observe": "ambient, exchanges counted (source b)",
    "relay": "freeze-proxy run --relay",
    "nginx": "nginx",
}
LOADS = ("small-1", "small-16")
CROWD = 1000


@contextlib.contextmanager
def _in_cgroup() -> Iterator[str]:
    path = cgroup.create("cgroup2", f"freeze-proxy-bench-{os.getpid()}-{time.monotonic_ns()}")
    try:
        yield path
    finally:
        cgroup.kill(path)
        cgroup.remove(path, 5.0)


def _joined(path: str, command: Sequence[str]) -> list[str]:
    """The command, in a cgroup."""
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', path, *command]


@contextlib.contextmanager
def _ways(folder: Path, tell: Tell) -> Iterator[dict[str, tuple[int, list[int]]]]:
    """For each way: the port to load, and all processes that are at work there."""
    where: dict[str, tuple[int, list[int]]] = {}
    with contextlib.ExitStack() as stack:

        def started(name: str, command: Sequence[str], port: int) -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                running(command, core=PROXY_CORE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            wait_until(lambda: listening(port), 20, f"{WAYS[name]} to listen")
            where[name] = port, family(process.pid)
            return process

        def own(name: str) -> Path:
            made = folder / name
            made.mkdir()
            return made

        for name in WAYS:
            tell(f"start {name}")
            port = free_port()
            if name == "direct":
                started(name, backend_command(own(name), port), port)
            elif name == "wake":
                path = stack.enter_context(_in_cgroup())
                watcher = Watcher()
                stack.callback(watcher.close)
                stack.callback(watcher.watch(path, (port,), lambda _record: None).close)
                started(name, _joined(path, backend_command(own(name), port)), port)
            elif name in ("observe", "relay"):
                target = port if name == "observe" else free_port()
                door = ["--ambient"] if name == "observe" else ["--listen", f"127.0.0.1:{port}"]
                command = [sys.executable, "-m", "freeze_proxy", "run", *door, "--port", str(target)]
                started(name, [*command, "--log-format", "none", "--", *backend_command(own(name), target)], port)
            else:
                target = free_port()
                started(name, backend_command(own("behind"), target), target)
                behind = where[name][1]
                candidate = next(one for one in candidates(folder) if one.name == "nginx")
                process = stack.enter_context(proxy(candidate, folder, port, target))
                where[name] = port, behind + family(process.pid)
        yield where


def _awake(quick: bool, tell: Tell) -> dict[str, Any]:
    rounds, seconds = (1, 1) if quick else (9, 1)
    samples: dict[str, dict[str, list[dict[str, float]]]] = {each: {name: [] for name in WAYS} for each in LOADS}
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in LOADS]
    with own_folder() as folder, on_cores(LOAD_CORE), _ways(folder, tell) as where:
        for turn in range(rounds):
            for scenario in scenarios:
                names = list(WAYS)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    tell(f"awake, round {turn + 1} of {rounds}: {scenario.title}: {name}")
                    port, pids = where[name]
                    before, own = sum(map(cpu_ns, pids)), resource.getrusage(resource.RUSAGE_CHILDREN)
                    measured = load(scenario, port, seconds)
                    spent = sum(map(cpu_ns, pids)) - before
                    after = resource.getrusage(resource.RUSAGE_CHILDREN)
                    spent += int(((after.ru_utime - own.ru_utime) + (after.ru_stime - own.ru_stime)) * 1e9)
                    if sum(measured["errors"].values()):
                        raise BenchError(f"Requests failed with {WAYS[name]}: {measured['errors']}.")
                    samples[scenario.name][name].append(
                        {
                            "cpu_us": spent / measured["requests"] / 1000,
                            "requests_s": measured["requests"] / measured["duration"] * 1e6,
                            "p50_us": measured["p50"],
                            "p99_us": measured["p99"],
                        }
                    )
    return {
        "rounds": rounds,
        "loads": {
            scenario.name: {
                "title": scenario.title,
                "ways": {
                    name: {figure: spread([one[figure] for one in taken]) for figure in taken[0]}
                    | {
                        "more_cpu_us": statistics.median(
                            one["cpu_us"] - base["cpu_us"]
                            for one, base in zip(taken, samples[scenario.name]["direct"], strict=True)
                        )
                    }
                    for name, taken in samples[scenario.name].items()
                },
            }
            for scenario in scenarios
        },
    }


_BUSY = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"


@contextlib.contextmanager
def _no_processor_halts() -> Iterator[None]:
    """Each has something to do that waits for everything else (``SCHED_IDLE``, sched(7)), as on a node with other pods.

    One that has nothing to do halts, and a virtual machine's is then fetched back by its host, which takes its time.
    """
    with contextlib.ExitStack() as stack:
        for core in (LOAD_CORE, PROXY_CORE):
            command = [interpreter(), "-I", "-S", "-c", _BUSY]
            stack.enter_context(running(command, core=core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield


def _wakes(wakes: int, tell: Tell) -> dict[str, Any]:
    with _no_processor_halts():
        unhalted = wake.measure("cgroup2", wakes // 2, tell, ambient=True)
    return {"wake": wake.measure("cgroup2", wakes, tell, ambient=True), "wake_unhalted": unhalted}


_BOUND = """
import os, socket, sys, time
open(sys.argv[1], "w").write("0")
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("127.0.0.1", 0))
print(sink.getsockname()[1], flush=True)
time.sleep(3600)
"""


def _notices(watcher: Watcher, watch: Watch, port: int, times: int) -> dict[str, float]:
    """Microseconds from sending a datagram to a frozen server until its watcher is woken."""
    took = []
    poll = select.poll()
    poll.register(watcher.fd, select.POLLIN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(times):
            watch.arm()
            time.sleep(0.001)
            begun = time.perf_counter_ns()
            client.sendto(b"x", ("127.0.0.1", port))
            if not poll.poll(5000):
                raise BenchError("A packet for a frozen server was not noticed within 5 s.")
            took.append((time.perf_counter_ns() - begun) / 1000)
            watcher.read()
    return {"p50": percentile(took, 50), "p99": percentile(took, 99)}


def _crowd(quick: bool, tell: Tell) -> dict[str, Any]:
    """Many frozen servers: what watching them costs a process, and what one that is woken pays for the others."""
    size, span, times = (50, 1.0, 50) if quick else (CROWD, 5.0, 1000)
    with contextlib.ExitStack() as stack:
        watcher = Watcher(servers=size + 1)
        stack.callback(watcher.close)
        path = stack.enter_context(_in_cgroup())
        bound = subprocess.Popen(
            [interpreter(), "-I", "-S", "-c", _BOUND, f"{path}/cgroup.procs"], stdout=subprocess.PIPE
        )
        stack.callback(bound.wait)
        stack.callback(bound.kill)
        assert bound.stdout is not None
        port = int(bound.stdout.readline())
        one = watcher.watch(path, (port,), lambda _record: None)
        stack.callback(one.close)
        alone = _notices(watcher, one, port, times)
        before = memory_kib(os.getpid())["Rss"]
        watches: list[Watch] = []
        others: list[Cgroup2Freezer] = []
        for number in range(size):
            if number % 50 == 0:
                tell(f"crowd: {number} of {size} are frozen")
            path = stack.enter_context(_in_cgroup())
            process = subprocess.Popen(_joined(path, ["sleep", "1000"]))
            stack.callback(process.wait)
            stack.callback(process.kill)
            freezer = Cgroup2Freezer(path)
            stack.callback(freezer.close)
            stack.callback(freezer.thaw)
            watch = watcher.watch(path, (8080,), lambda _record: None, observe=number % 2 == 1)
            stack.callback(watch.close)
            others.append(freezer)
            watches.append(watch)
            watch.arm()
            wait_until(lambda path=path: cgroup.populated(path), 5, "a server to start")  # type: ignore[misc]
            freezer.freeze()
        wait_until(lambda: all(other.still() for other in others), 10, "all to stand still")
        after = memory_kib(os.getpid())["Rss"]
        charged = [[watch.kernel_bytes / 1024 for watch in watches[kind::2]] for kind in (0, 1)]
        tell("crowd: all are quiet")

        def read(_events: int) -> None:
            watcher.read()

        loop = Loop()
        loop.watch(watcher.fd, READ, read)
        loop.at(loop.now + span, loop.stop)
        used = time.thread_time_ns()  # of this thread, which waits as freeze-proxy does
        loop.run()
        used = time.thread_time_ns() - used
        loop.close()
        tell("crowd: one is woken, again and again")
        theirs = sum(other.cpu_seconds() for other in others)
        among = _notices(watcher, one, port, times)
        theirs = sum(other.cpu_seconds() for other in others) - theirs
    return {
        "servers": size,
        "seconds": span,
        "cpu_share": used / (span * 1e9),
        "kib_each": (after - before) / size,
        "kernel_kib_each": {"wake": statistics.mean(charged[0]), "observe": statistics.mean(charged[1])},
        "notice_us": {"alone": alone, "among": among},
        "others_cpu_seconds": theirs,
    }


def run(quick: bool, tell: Tell) -> dict[str, Any]:
    """Measure all of it."""
    if shutil.which("wrk") is None or shutil.which("nginx") is None:
        raise BenchError("wrk and nginx are needed for the load and the server: apt install wrk nginx-light.")
    compile_all()
    return {
        "awake": _awake(quick, tell),
        **_wakes(60 if quick else 4000, tell),
        "crowd": _crowd(quick, tell),
    }
