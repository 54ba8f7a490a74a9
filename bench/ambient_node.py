"""What a daemon with many ambient pods costs, and how soon one of them wakes: ``python -m bench.ambient_node [PODS]``.

It makes a network of its own, where all addresses are free. Each pod is a cgroup of cgroup2 with a server in it. A
stand-in for the runtime tells the daemon of them (``bench/cri_stand_in.py``), the tests' stand-in for the API server
that they want to be frozen, and one server says for all of them that queue-proxy has seen no request. All from the
packet to the kernel is real.

Most pods are a *crowd*: a web server of busybox each in its own network, half of them with a queue-proxy, that nobody
asks anything. A few are woken, and have the server of the wake's benchmark (``bench/wake.py``); the first byte of its
answer is timed as there. One of them is woken again and again, while it is counted what the crowd pays for that.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import wake
from bench.helpers import helper
from bench.machine import LOAD_CORE, ROOT, BenchError, cpu_ns, interpreter, memory_kib
from bench.relay import Tell
from freeze_proxy.annotations import PREFIX
from freeze_proxy.daemon.ambient.statistics import KIND, PORT, TABLE
from freeze_proxy.daemon.rounds import AT_A_TIME
from freeze_proxy.freezers import cgroup
from freeze_proxy.protobuf import classes
from tests.support.api_server import ApiServer
from tests.support.daemons import Daemon

SERVER_PORT = 8080
PODS = 1000
SPAN = 30.0
"""Seconds over which the daemon's CPU time is measured."""
PROBES = 3
SIGNALS = 5
NODE = "this-node"
ASKS = {f"{PREFIX}attach": "ambient"}
QUICKLY = ASKS | {f"{PREFIX}grace": wake.GRACE}


@dataclass(frozen=True)
class Pod:
    """One pod: where it serves, its cgroup, its server, and what it asks for."""

    uid: str
    name: str
    ip: str
    container: str
    cgroup: str
    server: subprocess.Popen[bytes]
    annotations: dict[str, str]
    queue_proxy: bool

    def frozen(self) -> bool:
        """Whether the kernel says so."""
        return "frozen 1" in Path(self.cgroup, "cgroup.events").read_text()

    def request(self) -> None:
        """A probe, say."""
        connection = http.client.HTTPConnection(self.ip, SERVER_PORT, timeout=10)
        connection.request("GET", "/index.html")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise BenchError(f"A pod answered {answer.status}.")

    def cpu_us(self) -> int:
        """CPU time of its cgroup."""
        return int(Path(self.cgroup, "cpu.stat").read_text().split(None, 2)[1])

    def switches(self) -> int:
        """How often its server has given up its processor: as often as it has been woken."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "_ctxt_switches:" in line)


class Pods:
    """Makes them; ``close`` ends them all."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._top = cgroup.create("cgroup2", f"freeze-proxy-bench-{os.getpid()}")
        self.all: list[Pod] = []
        Path(folder, "index.html").write_text("hello\n")

    def one(self, annotations: dict[str, str], queue_proxy: bool, small: bool = False) -> Pod:
        """Each is at an address of its own. ``small``: busybox serves, which takes less memory."""
        number = next(self._numbers)
        uid, container = str(uuid.uuid4()), os.urandom(32).hex()
        place = os.path.join(self._top, f"pod{uid}", container)
        os.makedirs(place)
        ip = f"127.77.{number // 250}.{number % 250 + 1}"
        if small:
            # In a network of its own, as pods are: the daemon looks through all sockets of a pod's.
            command = ["unshare", "--net", "busybox", "httpd", "-f", "-p", str(SERVER_PORT), "-h", self._folder]
        else:
            command = [interpreter(), "-I", "-S", str(ROOT / "bench/wake_server.py")]
        own = {"HOST": ip, "PORT": str(SERVER_PORT)}
        joined = ["sh", "-c", 'echo 0 >"$0/cgroup.procs"; exec "$@"', place, *command]
        server = subprocess.Popen(joined, env=os.environ | own)
        pod = Pod(uid, f"pod-{number}", ip, container, place, server, annotations, queue_proxy)
        self.all.append(pod)
        return pod

    def close(self) -> None:
        """Raises ``BenchError`` where something is left."""
        cgroup.kill(self._top)
        for each in self.all:
            each.server.wait()
        if not cgroup.remove(self._top, 10.0):
            raise BenchError(f"The benchmark's cgroups in {self._top} could not be removed.")


class Statistics(multiprocessing.Process):
    """Says once a second that there has been no request, for whichever pod is asked about; ``asked`` counts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._asked = multiprocessing.Value("Q", 0)
        self._began = time.monotonic()

    @property
    def asked(self) -> int:
        """How often it has been."""
        return int(self._asked.value)

    def run(self) -> None:
        """In a process of its own, so that whoever measures is not held up."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, "0.0.0.0", PORT)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stat = classes("bench.queue", TABLE)["Stat"]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self._asked.value += 1
                body = stat(process_uptime=1.0 + int(time.monotonic() - self._began)).SerializeToString()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {KIND}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        writer.close()


def _facts(pod: Pod) -> dict[str, Any]:
    """As the API server has it."""
    container = {"name": "user-container", "image": "none"}
    others = [{"name": "queue-proxy", "image": "none"}] if pod.queue_proxy else []
    state = {"imageID": "none", "ready": True, "restartCount": 0, "containerID": f"containerd://{pod.container}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "uid": pod.uid, "annotations": pod.annotations},
        "spec": {"nodeName": NODE, "containers": [container, *others]},
        "status": {
            "phase": "Running",
            "podIP": pod.ip,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container | state],
        },
    }


def _known(pod: Pod) -> dict[str, Any]:
    """As the runtime has it."""
    containers = [{"id": pod.container, "name": "user-container", "pid": pod.server.pid}]
    return {"uid": pod.uid, "namespace": "default", "name": pod.name, "containers": containers}


def _until_frozen(some: list[Pod]) -> None:
    end = time.monotonic() + 30 + len(some) * 0.2
    while left := [pod for pod in some if not pod.frozen()]:
        if time.monotonic() > end:
            raise BenchError(f"{len(left)} of {len(some)} pods are not frozen.")
        time.sleep(0.1)


def _share(pid: int, span: float) -> float:
    """Of a core that a process uses."""
    used, began = cpu_ns(pid), time.monotonic()
    time.sleep(span)  # the span over which it is measured
    return (cpu_ns(pid) - used) / 1e9 / (time.monotonic() - began)


def _woken_in_turn(some: list[Pod], resting: list[Pod], turns: int) -> wake.Samples:
    """Wake each of these by a new connection, some of the others awake still: queue-proxy takes its time to say.

    ``resting``: as many that nobody freezes, each asked as seldom: caches forget either.
    """
    rng = random.Random(7)
    taken: dict[str, list[float]] = {when: [] for when in wake.WHEN}
    clients = [
        (wake.Client(SERVER_PORT, pod.ip, keep=False), _stillness(pod), wake.Client(SERVER_PORT, other.ip, keep=False))
        for pod, other in zip(some, resting, strict=True)
    ]
    for turn in range(turns):
        client, stillness, rested = clients[turn % len(clients)]
        stillness.wait()
        pause = rng.uniform(0.05, 0.1)  # so that few are awake at a time
        for asked in ("frozen", "rested") if turn // len(clients) % 2 else ("rested", "frozen"):
            time.sleep(pause)
            if asked == "rested":
                taken["rested"].append(rested.new())
            else:
                taken["frozen"].append(client.new())
                taken["awake"].append(client.new())
    for _, stillness, _ in clients:
        stillness.close()
    return {"new": taken}


def _stillness(pod: Pod) -> wake.Stillness:
    return wake.Stillness(pod.cgroup, *wake.FREEZERS["cgroup2"])


def measure(count: int, quick: bool, tell: Tell) -> dict[str, Any]:
    """All of it. Raises ``BenchError``."""
    span, turns, settle = (0.5, 40, 0.5) if quick else (SPAN, 2000, 3.0)
    figures: dict[str, Any] = {"pods": count, "seconds": span}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = Statistics()
        asked.start()
        stack.callback(asked.kill)
        pods = Pods(str(folder))
        stack.callback(pods.close)
        tell(f"ambient pods: start {count}")
        rested = pods.one({}, False)
        often, plain = pods.one(QUICKLY, False), pods.one(ASKS, False)
        some = [pods.one(ASKS, True) for _ in range(min(100, count // 4))]
        resting = [pods.one({}, False) for _ in some]
        crowd = [pods.one(ASKS, bool(number % 2), small=True) for number in range(count - 2 - len(some))]
        asking = [often, plain, *some, *crowd]
        api = stack.enter_context(ApiServer(folder / "api"))
        socket = folder / "cri.sock"
        spec = {"socket": str(socket), "pods": [_known(pod) for pod in asking]}
        runtime = stack.enter_context(helper("bench.cri_stand_in", folder, spec, LOAD_CORE))
        runtime.hear(20)
        options = ("--ambient", "--node-name", NODE, "--log-level", "info")
        daemon = stack.enter_context(Daemon(folder / "daemon", api.kubeconfig(), socket, *options))
        time.sleep(settle)  # until it has settled
        tell("ambient pods: without one")
        fresh = memory_kib(daemon.pid)["Rss"]
        figures["cpu_without"] = _share(daemon.pid, span)
        began = time.monotonic()
        for pod in asking:
            api.put(f"/api/v1/namespaces/default/pods/{pod.name}", _facts(pod))
        tell("ambient pods: until all are frozen")
        _until_frozen(asking)
        figures["until_frozen_s"] = time.monotonic() - began
        figures["kib_each"] = (memory_kib(daemon.pid)["Rss"] - fresh) / count
        tell("ambient pods: all are frozen")
        time.sleep(settle + (0 if quick else count / AT_A_TIME))  # until it has looked at each once
        questions = asked.asked
        figures["cpu_frozen"] = _share(daemon.pid, span)
        figures["questions"] = asked.asked - questions

        tell("ambient pods: one is woken, again and again")
        kept, usual, stillness = (
            wake.Client(SERVER_PORT, often.ip),
            wake.Client(SERVER_PORT, rested.ip),
            _stillness(often),
        )
        theirs, woken = sum(pod.cpu_us() for pod in crowd), sum(pod.switches() for pod in crowd)
        figures["observed"] = wake.figures(wake.turns(kept, usual, stillness, turns, lambda _turn: None))
        figures["others"] = {
            "cpu_us": sum(pod.cpu_us() for pod in crowd) - theirs,
            "woken": sum(pod.switches() for pod in crowd) - woken,
        }
        tell("ambient pods: others are woken, one after another")
        figures["counted"] = wake.figures(_woken_in_turn(some, resting, turns // 8))
        for client in (kept, usual):
            client.close()
        stillness.close()
        _until_frozen(asking)
        tell("ambient pods: probes, and signals to end")
        figures["awake_for_a_probe_s"] = {
            "observed": _probed(plain, 1 if quick else PROBES),
            "counted": _probed(some[-1], 1 if quick else PROBES),
        }
        figures["heard_s"] = [_told_to_end(pod) for pod in some[:SIGNALS]]
    return figures


def _probed(pod: Pod, times: int) -> float:
    """Seconds for which a pod is awake after a probe, at the median."""
    spans = []
    for _ in range(times):
        _until_frozen([pod])
        began = time.monotonic()
        pod.request()
        while not pod.frozen():
            time.sleep(0.01)
        spans.append(time.monotonic() - began)
    return statistics.median(spans)


def _told_to_end(pod: Pod) -> float:
    """Seconds from a signal that nobody has announced to the end of a frozen server."""
    began = time.monotonic()
    pod.server.send_signal(signal.SIGTERM)
    pod.server.wait(60)
    return time.monotonic() - began


def run(quick: bool, tell: Tell) -> dict[str, Any]:
    """Measure all of it, in a network of its own."""
    script = f"ip link set lo up && exec {sys.executable} -m bench.ambient_node {16 if quick else PODS} {int(quick)}"
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            last = line.strip()
            tell(last)
        said = process.stdout.read()
    if process.returncode:
        raise BenchError(last)
    figures: dict[str, Any] = json.loads(said)
    return figures


def main() -> None:
    """In this network, with so many pods; as a command by itself in one of its own."""
    if len(sys.argv) < 3:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else PODS
        script = f"ip link set lo up && exec {sys.executable} -m bench.ambient_node {count} 0"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", script])
    try:
        figures = measure(int(sys.argv[1]), sys.argv[2] == "1", lambda what: print(what, file=sys.stderr, flush=True))
        print(json.dumps(figures, indent=1))
    except BenchError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
