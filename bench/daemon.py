"""The daemon of a node: how long a freeze and a thaw take through it and in other ways, and how much of both it bears.

Two measurements. The first is on a node that is real as far as freezing goes: containerd, runc and dockerd, pods made
over CRI as a kubelet makes them (the rig of the tests, ``tests/support/cluster``). Every way of pausing has a container
of its own, and all take turns. In between, pods that the daemon has never heard of freeze for the first time.

The second is about numbers: a thousand cgroups of the benchmark's own, each with a process asleep, which a stand-in for
the runtime (``bench/cri_stand_in.py``) tells the daemon of; everything from the request to the kernel is real.

In both, tokens are reviewed by the tests' stand-in for the API server, in a process of its own.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.crowd import Member, crowd
from bench.helpers import Json, helper
from bench.machine import (
    LOAD_CORE,
    PROXY_CORE,
    ROOT,
    BenchError,
    cpu_ns,
    memory_kib,
    on_cores,
    percentile,
    running,
    wait_until,
)
from bench.programs import own_folder
from bench.relay import Tell
from freeze_proxy.freezers import FreezeError
from tests.support.cluster import cgroups
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.dockerd import Dockerd
from tests.support.cluster.kubelet import Container, Kubelet, Pod
from tests.support.daemons import Daemon

TITLES = {
    "write": "a bare write to the cgroup, v1",
    "write-v2": "a bare write to the cgroup, v2",
    "daemon": "freeze-proxy daemon",
    "daemon-2": "freeze-proxy daemon, two containers",
    "daemon-containerd": "freeze-proxy daemon, `--freezer containerd`",
    "tasks": "containerd, Tasks API",
    "docker": "Docker, Engine API",
    "runc": "runc, by command",
}
SLEEP = ("sleep", "900")
RATE = 2000
"""Transitions a second."""
LIFETIME = 3600
"""Seconds for which tokens are good."""


# What the daemon needs beside it.


class Api:
    """The stand-in for the API server, reached as whoever issues tokens."""

    def __init__(self, place: Json) -> None:
        self.kubeconfig: str = place["kubeconfig"]
        self.ca: str = place["ca"]
        self.port = int(place["address"].rpartition(":")[2])
        self.credential: str = json.loads(Path(self.kubeconfig).read_text())["users"][0]["user"]["token"]
        context = ssl.create_default_context(cafile=self.ca)
        self._connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)

    def token(self, uid: str, name: str, namespace: str = "default") -> str:
        """A token of this pod."""
        asked = {"uid": uid, "name": name, "namespace": namespace, "lifetime": LIFETIME}
        self._connection.request("POST", "/admin/token", json.dumps(asked), {"Content-Type": "application/json"})
        return str(json.loads(self._connection.getresponse().read())["result"])

    def of(self, pod: Pod) -> str:
        """A new token of this pod."""
        return self.token(pod.uid, pod.name, pod.namespace)


@contextlib.contextmanager
def _api(folder: Path) -> Iterator[Api]:
    command = [sys.executable, "-m", "tests.support.api_server", "--folder", str(folder / "api")]
    pipe = subprocess.PIPE
    with running(command, core=LOAD_CORE, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError("The stand-in for the API server has ended; see what it said above.")
        yield Api(json.loads(line))


def _daemon(folder: Path, api: Api, socket: Path, *options: str, prefix: Sequence[str] = ()) -> Daemon:
    """Not started yet; it logs as it does by default."""
    return Daemon(folder, api.kubeconfig, socket, "--log-level", "info", *options, prefix=prefix)


# In every way there is.


def _way(kind: str, arguments: Sequence[str | int], states: list[str], often: int = 1) -> Json:
    return {"kind": kind, "arguments": list(arguments), "states": states, "often": often}


def _state(pid: int) -> str:
    place = cgroups.place(pid)
    return str(place / ("freezer.state" if (place / "freezer.state").exists() else "cgroup.events"))


def _cgroup(container: Container) -> tuple[str, str]:
    path, name = os.path.split(_state(container.pid))
    return "cgroup1" if name == "freezer.state" else "cgroup2", path


class Node:
    """A containerd, a dockerd where there is one, and what runs on them. ``missing``: ways that are not to be had."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.missing: dict[str, str] = {}
        self.containerd = Containerd()
        stack.callback(self.containerd.close)
        self.containerd.start()
        self.kubelet = Kubelet(self.containerd)
        stack.callback(self.kubelet.close)
        self.dockerd: Dockerd | None = None
        try:
            dockerd = Dockerd(self.containerd)
        except pytest.skip.Exception as reason:
            self.missing["docker"] = str(reason)
        else:
            stack.callback(dockerd.close)
            dockerd.start()
            dockerd.ensure()
            self.dockerd = dockerd

    def pods(self, count: int) -> list[Pod]:
        """Pods of a container that sleeps and one that is left alone."""
        containers = {"user-container": SLEEP, "queue-proxy": SLEEP}
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda _: self.kubelet.pod(containers), range(count)))

    def neighbour(self) -> tuple[str, str]:
        """A container to be frozen beside the others: what ``pausing.Write`` takes."""
        return _cgroup(self.kubelet.pod(("user-container",))["user-container"])

    def ways(self, api: Api, direct: Daemon, through: Daemon, often: int) -> dict[str, Json]:
        """All of them, each with a container of its own; ``often``: how many times a round the quick ones are done."""
        socket, namespace = str(self.containerd.socket), self.containerd.namespace

        def one(*names: str) -> tuple[Pod, list[Container], list[str]]:
            pod = self.kubelet.pod(names or ("user-container",))
            containers = list(pod.containers.values())
            return pod, containers, [_state(container.pid) for container in containers]

        made: dict[str, Json] = {}
        _, (container,), states = one()
        hierarchy, path = _cgroup(container)
        made["write" if hierarchy == "cgroup1" else "write-v2"] = _way("write", (hierarchy, path), states, often)
        if hierarchy == "cgroup1":
            _, (container,), _ = one()
            place = cgroups.places(container.pid).get("")
            if place is not None and container.id in place.name and (place / "cgroup.freeze").exists():
                made["write-v2"] = _way("write", ("cgroup2", str(place)), [str(place / "cgroup.events")], often)
        for name, daemon, count in (("daemon", direct, 1), ("daemon-2", direct, 2), ("daemon-containerd", through, 1)):
            pod, _, states = one(*("user-container", "second")[:count])
            times = often if daemon is direct else 1
            made[name] = _way("daemon", (daemon.port, api.of(pod)), states, times)
        _, (container,), states = one()
        made["tasks"] = _way("tasks", (socket, namespace, container.id), states)
        if self.dockerd is not None:
            docker = self.dockerd.run("bench")
            made["docker"] = _way("docker", (str(self.dockerd.socket), docker.id), [_state(docker.pid)])
        _, (container,), states = one()
        root = str(self.containerd.folder / "runc" / namespace)
        made["runc"] = _way("command", (self.containerd.programs["runc"], root, container.id), states)
        return {name: made[name] for name in TITLES if name in made}


def _figures(values: Sequence[float]) -> dict[str, float]:
    points = {f"p{point:g}": percentile(values, point) for point in (50, 99, 99.9)}
    return {**points, "min": min(values), "max": max(values), "count": len(values)}


def _ways(folder: Path, api: Api, quick: bool, tell: Tell) -> Json:
    rounds, often, firsts = (12, 3, 3) if quick else (400, 5, 30)
    with contextlib.ExitStack() as stack:
        tell("daemon: containerd and dockerd start")
        node = Node(stack)
        direct = stack.enter_context(_daemon(folder / "direct", api, node.containerd.socket))
        through = stack.enter_context(
            _daemon(folder / "through", api, node.containerd.socket, "--freezer", "containerd")
        )
        tell(f"daemon: {firsts} pods that nobody knows start")
        unknown = node.pods(firsts)
        ways = node.ways(api, direct, through, often)
        spec = {
            "rounds": rounds,
            "neighbour": node.neighbour(),
            "ways": ways,
            "firsts": {
                "port": direct.port,
                "tokens": [(api.of(pod), api.of(pod)) for pod in unknown],
                "api": {"ca": api.ca, "port": api.port, "credential": api.credential},
            },
        }
        with helper("bench.pausing", folder, spec) as client:
            for said in client.until("samples", 30):
                if "round" in said:
                    tell(f"daemon: every way in turns, {max(0, said['round']):,} of {rounds:,}")
        samples, first = said["samples"], said["firsts"]
        tell("daemon: the pods are deleted")
    return {
        "rounds": rounds,
        "missing_ways": {TITLES[name]: why for name, why in node.missing.items()},
        "titles": {name: TITLES[name] for name in ways},
        "ways": {
            when: {name: {order: _figures(values) for order, values in taken.items()} for name, taken in every.items()}
            for when, every in samples.items()
        },
        "first": {name: _figures(values) for name, values in first.items()},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the runtimes, as they say it themselves."""
    said = {}
    for name, program in (("containerd", "containerd"), ("runc", "runc"), ("Docker", "dockerd")):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            out = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, timeout=10).stdout
            if found := re.search(r"\d+\.\d+[\w.+~-]*", out):
                said[name] = found.group()
    return said


# A thousand containers.


class Shares:
    """How containers are shared out among pods; the last ``idle`` of each pod are ``queue-proxy``, and never frozen."""

    def __init__(self, words: str, pods: list[list[Member]], idle: int = 0) -> None:
        self.words = words
        self.each = len(pods[0]) - idle
        self.frozen = [pod[: self.each] for pod in pods]
        self.pods: list[Json] = [
            {
                "uid": str(uuid.uuid4()),
                "namespace": "default",
                "name": f"pod-{number}",
                "containers": [
                    {"id": member.id, "name": self._name(place), "pid": member.pid} for place, member in enumerate(pod)
                ],
            }
            for number, pod in enumerate(pods)
        ]

    def _name(self, place: int) -> str:
        return f"container-{place}" if place < self.each else "queue-proxy"


def _load(
    folder: Path, api: Api, shares: Shares, rate: float, seconds: float, tell: Tell, environment: Sequence[str] = ()
) -> Json:
    """So many requests a second to these pods. ``environment``: what ``env`` is told for the daemon."""
    words, each, many = shares.words, shares.each, len(shares.pods)
    folder.mkdir()
    socket = folder / "cri.sock"
    tell(f"daemon: {words}, tokens")
    with contextlib.ExitStack() as stack:
        runtime = {"socket": str(socket), "pods": shares.pods}
        stand_in = stack.enter_context(helper("bench.cri_stand_in", folder, runtime, LOAD_CORE))
        stand_in.hear(20)
        prefix = ("env", *environment, "taskset", "--cpu-list", str(PROXY_CORE))
        daemon = stack.enter_context(_daemon(folder / "daemon", api, socket, prefix=prefix))
        fresh = _memory(daemon)
        tokens = [api.token(pod["uid"], pod["name"]) for pod in shares.pods]
        spec = {"port": daemon.port, "tokens": tokens, "rate": rate, "seconds": seconds}
        client = stack.enter_context(helper("bench.transitions", folder, spec, LOAD_CORE))
        for said in client.until("ready", 30):
            if "known" in said:
                tell(f"daemon: {words}, {said['known']:,} of {many:,} known")
        before = cpu_ns(daemon.pid)
        began = time.monotonic()
        client.go()
        for said in client.until("sent", 45):
            if "second" in said:
                tell(f"daemon: {words}, {said['second']} of {seconds:g} s")
        spent, lasted = cpu_ns(daemon.pid) - before, time.monotonic() - began
        # What the kernel says of each must be what its pod was told.
        differ = sum(
            member.frozen() != frozen
            for pod, frozen in zip(shares.frozen, said["frozen"], strict=True)
            for member in pod
        )
        daemon.ask("/metrics")
        memory, known = _memory(daemon), daemon.metric("freeze_proxy_pods")
        held = daemon.metric("freeze_proxy_leases")
        client.leave(10)
        left = time.monotonic()
        everyone = list(itertools.chain.from_iterable(shares.frozen))
        wait_until(lambda: not any(member.frozen() for member in everyone), 20, "all to run without their leases")
        released = time.monotonic() - left
    freezes, thaws = said["freeze_us"], said["thaw_us"]
    return {
        "words": words,
        "pods": many,
        "each": each,
        "seconds": said["seconds"],
        "transitions_s": said["sent"] * each / said["seconds"],
        "sent": said["sent"],
        "answered": said["answered"],
        "lost": said["lost"],
        "wrong": said["wrong"],
        "differ": differ,
        "all": _figures(freezes + thaws),
        "freeze": _figures(freezes),
        "thaw": _figures(thaws),
        "behind": _figures(said["behind_us"]),
        "cpu_share": spent / (lasted * 1e9),
        "cpu_us": spent / 1000 / said["sent"],
        "memory_kib": {"fresh": fresh, "after": memory},
        "known": known,
        "leases": held,
        "released_s": released,
    }


def _memory(daemon: Daemon) -> Json:
    return {"daemon": memory_kib(daemon.pid), "supervisor": memory_kib(daemon.supervisor)}


def _loads(folder: Path, api: Api, quick: bool, tell: Tell) -> Json:
    results: Json = {"loads": {}, "memory": {}}
    pods = 50 if quick else 250
    with crowd(pods, 4) as members:
        singles = [[member] for pod in members for member in pod]
        loads = {
            "pods": (Shares(f"{len(singles):,} pods of one container", singles), 4 if quick else 60),
            "fours": (Shares(f"{pods} pods of four", members), 2 if quick else 15),
        }
        for name, (shares, seconds) in loads.items():
            results["loads"][name] = _load(folder / name, api, shares, RATE / shares.each, seconds, tell)
        # As an image would have it, all bytecode is there; but this benchmark leaves none where others look for it.
        compiled = ("--unset=PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={folder}/bytecode")
        for level in (0, 2):
            words = f"{pods} pods of a Knative service{', python -OO' if level else ''}"
            environment = (*compiled, f"PYTHONOPTIMIZE={level or ''}")
            for number, some in enumerate((members[:2], members)):
                shares = Shares(words, [pod[:2] for pod in some], idle=1)
                result = _load(folder / f"memory-{level}-{number}", api, shares, 500, 2, tell, environment)
            results["memory"]["optimised" if level else "plain"] = result
    return results


# All of it.


def run(quick: bool, tell: Tell) -> Json:
    """Measure; what this machine does not have stands under ``missing``, with a sentence."""
    results: Json = {"rate": RATE, "missing": {}}
    with own_folder() as folder, on_cores(LOAD_CORE, PROXY_CORE), _api(folder) as api:
        for name, part in (("ways", _ways), ("loads", _loads)):
            with _if_there(name, results):
                results |= part(folder, api, quick, tell)
    return results


@contextlib.contextmanager
def _if_there(part: str, results: Json) -> Iterator[None]:
    try:
        yield
    except (pytest.skip.Exception, FreezeError, PermissionError) as reason:
        results["missing"][part] = str(reason)
    except (pytest.fail.Exception, AssertionError) as reason:
        raise BenchError(str(reason)) from reason
