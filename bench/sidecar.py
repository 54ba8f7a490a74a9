"""The sidecar in real pods: its image, containerd, networks of their own, and a daemon on the node (the tests' rig).

Four measurements:

- the first request after idle, as in ``wake``, from the node through the pod's network: sidecar, daemon and container;
- the CPU time of a request while the server is awake, beside the relay alone in another pod, in turns;
- memory after all that, a million requests and more;
- from the start of the process in its image until the data port listens.
"""

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.helpers import Json
from bench.machine import (
    LOAD_CORE,
    PROXY_CORE,
    ROOT,
    BenchError,
    cpu_ns,
    free_port,
    listening,
    memory_kib,
    on_cores,
    running,
    spread,
    wait_until,
)
from bench.programs import backend_command, own_folder
from bench.relay import SCENARIOS, Tell, compile_all, load
from bench.wake import FREEZERS, GRACE, Client, Stillness, figures, turns
from tests.support.cluster import cgroups
from tests.support.cluster.images import built
from tests.support.cluster.kubelet import Made
from tests.support.needs import need_program
from tests.support.pods import DATA, PORT, SERVER, InPod, Rig, rig, server

SMALL = next(one for one in SCENARIOS if one.name == "small-16")
RELAY = "relay"
REQUESTS = 1_000_000
"""At least so many have gone through the sidecar before its memory is looked at."""
_INTERPRETER = "/usr/bin/python3"


def run(quick: bool, tell: Tell) -> Json:
    """Build the images, and measure."""
    compile_all()
    with own_folder() as folder, on_cores(LOAD_CORE, PROXY_CORE), contextlib.ExitStack() as stack:
        try:
            tell("sidecar: the images are built")
            images = stack.enter_context(built(folder))
            return measure(stack.enter_context(rig(images, folder, "--log-level", "info")), folder, quick, tell)
        except pytest.skip.Exception as reason:
            return {"missing": str(reason)}
        except (pytest.fail.Exception, AssertionError) as reason:
            raise BenchError(str(reason)) from reason


def measure(node: Rig, folder: Path, quick: bool, tell: Tell) -> Json:
    """All four. ``folder`` is the benchmark's own."""
    wakes, rounds, seconds, starts = (40, 1, 1, 3) if quick else (1600, 10, 5, 30)
    return {
        "grace": GRACE,
        "wake": _wake(node, folder, wakes, tell),
        **_awake(node, folder, rounds, seconds, 0 if quick else REQUESTS, tell),
        "start_ms": _start(node, folder, starts, tell),
    }


# The first request after idle.


def _small(folder: Path) -> Made:
    return server([_INTERPRETER, "-I", "-S", ROOT / "bench/wake_server.py"], folder)


def _wake(node: Rig, folder: Path, wakes: int, tell: Tell) -> Json:
    with contextlib.ExitStack() as stack:
        frozen = stack.enter_context(InPod(node, {SERVER: _small(folder)}, {"GRACE": GRACE, "LOG_LEVEL": "info"}))
        rested = stack.enter_context(InPod(node, {SERVER: _small(folder)}, {"MODE": "off", "LOG_LEVEL": "info"}))
        # On a node, others are frozen as well; on cgroup v1 that makes a difference.
        beside = stack.enter_context(InPod(node, {SERVER: _small(folder)}, {"LOG_LEVEL": "info"}))
        beside.await_frozen()
        v1 = (frozen.server.cgroup / "freezer.state").exists()
        stillness = Stillness(frozen.where, *FREEZERS["cgroup1" if v1 else "cgroup2"])
        stack.callback(stillness.close)
        client, other = Client(DATA, frozen.host), Client(DATA, rested.host)
        stack.callback(client.close)
        stack.callback(other.close)
        samples = turns(client, other, stillness, wakes, lambda turn: tell(f"sidecar: wake, {turn:,} of {wakes:,}"))
        return {"wakes": wakes, "where": "cgroup1" if v1 else "cgroup2", **figures(samples)}


# Awake.


def _pin(pid: int, core: int) -> None:
    for process in (pid, *cgroups.processes_in([cgroups.place(pid)])):
        os.sched_setaffinity(process, {core})


def _backend(folder: Path, name: str) -> Made:
    """nginx, with a folder where Debian's insists on one."""
    made = server(list(backend_command(folder / name, PORT)), folder)
    state = folder / name / "state"
    state.mkdir()
    return made._replace(writable={**made.writable, "/var/lib/nginx": str(state)})


@contextlib.contextmanager
def _relay_alone(node: Rig, folder: Path) -> Iterator[tuple[str, int]]:
    """In a pod like the sidecar's: its address, and the relay's process."""
    command = [_INTERPRETER, "-I", "-S", ROOT / "bench/relay_alone.py", DATA, PORT, "gate", "0.0.0.0"]
    containers = {SERVER: _backend(folder, "beside"), RELAY: server([str(word) for word in command], folder)}
    pod = node.node.kubelet.pod(containers, network=True)
    try:
        wait_until(lambda: listening(DATA, pod.ip), 10, "the relay to listen")
        for name, core in ((SERVER, LOAD_CORE), (RELAY, PROXY_CORE)):
            _pin(pod[name].pid, core)
        yield pod.ip, pod[RELAY].pid
    finally:
        pod.delete()


def _awake(node: Rig, folder: Path, rounds: int, seconds: int, at_least: int, tell: Tell) -> Json:
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(InPod(node, {SERVER: _backend(folder, "own")}, {"LOG_LEVEL": "info"}))
        host, relay = stack.enter_context(_relay_alone(node, folder))
        _pin(pod.server.pid, LOAD_CORE)
        _pin(pod.sidecar.pid, PROXY_CORE)
        fresh = memory_kib(pod.sidecar.pid)
        where = {"sidecar": (pod.host, pod.sidecar.pid), RELAY: (host, relay)}
        taken: dict[str, list[Json]] = {name: [] for name in where}

        def one(name: str) -> None:
            address, pid = where[name]
            before = cpu_ns(pid)
            with on_cores(LOAD_CORE):
                said = load(SMALL, DATA, seconds, address)
            spent = cpu_ns(pid) - before
            if not said["requests"] or sum(said["errors"].values()):
                raise BenchError(f"The load through the {name} in a pod went wrong: {said}.")
            taken[name].append({"requests": said["requests"], "cpu_us": spent / said["requests"] / 1000})

        for turn in range(rounds):
            tell(f"sidecar: awake, round {turn + 1} of {rounds}")
            for name in where if turn % 2 else reversed(where):
                one(name)
        ratios = [ours["cpu_us"] / alone["cpu_us"] for ours, alone in zip(*taken.values(), strict=True)]
        while sum(each["requests"] for each in taken["sidecar"]) < at_least:
            tell("sidecar: memory, up to a million requests")
            one("sidecar")
        return {
            "awake": {
                **{name: spread([each["cpu_us"] for each in some]) for name, some in taken.items()},
                "ratio": spread(ratios),
                "rounds": rounds,
                "seconds": seconds,
            },
            "requests": pod.counted("requests_total"),
            "memory_kib": {"fresh": fresh, "after": memory_kib(pod.sidecar.pid)},
        }


# The start.


def _start(node: Rig, folder: Path, times: int, tell: Tell) -> Json:
    """In the root of a container made of the image, as its user, without the container's own start."""
    entry = node.images.inspect("sidecar")["Config"]["Entrypoint"]
    took = []
    with InPod(node, {SERVER: _small(folder)}, {"MODE": "off"}) as pod:
        inside = [need_program("chroot", "coreutils"), "--userspec=65532:65532", f"/proc/{pod.sidecar.pid}/root"]
        for turn in range(times):
            tell(f"sidecar: start, {turn + 1} of {times}")
            port = free_port()
            told = {
                "TARGET": "127.0.0.1:9",
                "MODE": "off",
                "LISTEN": f"127.0.0.1:{port}",
                "ADMIN": f"127.0.0.1:{free_port()}",
            }
            environment = {f"FREEZE_PROXY_{name}": value for name, value in told.items()}
            begin = time.perf_counter_ns()
            with running([*inside, *entry], core=PROXY_CORE, env=environment, stderr=subprocess.DEVNULL):
                wait_until(lambda port=port: listening(port), 10, "the sidecar to listen", pause=0.0002)  # type: ignore[misc]
                took.append((time.perf_counter_ns() - begin) / 1e6)
    return {**spread(took), "mean": statistics.fmean(took), "times": times}
