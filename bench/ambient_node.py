"""What a daemon with many ambient pods costs: ``python -m bench.ambient_node [PODS]``, in a network of its own.

Each pod is a cgroup of cgroup2 with a web server of busybox in it. A stand-in for the runtime tells the daemon of them
(``bench/cri_stand_in.py``), the tests' stand-in for the API server that they want to be frozen, and one server says for
all of them that queue-proxy has seen no request. All from the packet to the kernel is real.

Measured are the daemon's memory for each pod, its CPU time without pods and while all are frozen, how long the request
takes that wakes a pod, beside the next one, and what a probe of the kubelet's costs: for how long it keeps a pod awake.
"""

import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.helpers import helper
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError, cpu_ns, memory_kib, on_cores
from freeze_proxy.daemon.ambient.statistics import KIND, PORT, TABLE
from freeze_proxy.freezers import cgroup
from freeze_proxy.protobuf import classes
from tests.support.api_server import ApiServer
from tests.support.daemons import Daemon

SERVER_PORT = 8080
SPAN = 20.0
"""Seconds over which the daemon's CPU time is measured."""
PROBES = 5
NODE = "this-node"


@dataclass(frozen=True)
class Pod:
    """One pod: what it is called, where it serves, and its cgroup."""

    uid: str
    name: str
    ip: str
    container: str
    pid: int
    cgroup: str

    def frozen(self) -> bool:
        """Whether the kernel says so."""
        return "frozen 1" in Path(self.cgroup, "cgroup.events").read_text()

    def request(self) -> float:
        """Seconds that one takes."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.ip, SERVER_PORT, timeout=10)
        connection.request("GET", "/index.html")
        answer = connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
        connection.close()
        if answer.status != 200:
            raise BenchError(f"A pod answered {answer.status}.")
        return took


@contextlib.contextmanager
def pods(count: int, folder: str) -> Iterator[list[Pod]]:
    """So many of them, each at an address of its own."""
    Path(folder, "index.html").write_text("hello\n")
    top = cgroup.create("cgroup2", f"freeze-proxy-bench-{os.getpid()}")
    started: list[subprocess.Popen[bytes]] = []
    try:
        made = []
        for number in range(count):
            uid, container = str(uuid.uuid4()), os.urandom(32).hex()
            place = os.path.join(top, f"pod{uid}", container)
            os.makedirs(place)
            ip = f"127.77.{number // 250}.{number % 250 + 1}"
            serve = f"echo 0 >{place}/cgroup.procs; exec busybox httpd -f -p {ip}:{SERVER_PORT} -h {folder}"
            started.append(subprocess.Popen(["sh", "-c", serve]))
            made.append(Pod(uid, f"pod-{number}", ip, container, started[-1].pid, place))
        yield made
    finally:
        cgroup.kill(top)
        for each in started:
            each.wait()
        if not cgroup.remove(top, 10.0):
            raise BenchError(f"The benchmark's cgroups in {top} could not be removed.")


class Statistics(threading.Thread):
    """Says once a second that there has been no request, for whichever pod is asked about; ``asked`` counts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked = 0
        self._began = time.monotonic()

    def run(self) -> None:
        """In a thread of its own."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, "0.0.0.0", PORT)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stat = classes("bench.queue", TABLE)["Stat"]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                body = stat(process_uptime=1.0 + int(time.monotonic() - self._began)).SerializeToString()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {KIND}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        writer.close()


def _facts(pod: Pod) -> dict[str, Any]:
    """As the API server has it."""
    container = {"name": "user-container", "image": "none"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": "default",
            "uid": pod.uid,
            "annotations": {"freeze.extensions.knative.dev/attach": "ambient"},
        },
        "spec": {"nodeName": NODE, "containers": [container, {"name": "queue-proxy", "image": "none"}]},
        "status": {
            "phase": "Running",
            "podIP": pod.ip,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                container
                | {"imageID": "none", "ready": True, "restartCount": 0, "containerID": f"containerd://{pod.container}"}
            ],
        },
    }


def _until_frozen(some: list[Pod], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not all(pod.frozen() for pod in some):
        if time.monotonic() > end:
            raise BenchError(f"Only {sum(pod.frozen() for pod in some)} of {len(some)} pods are frozen.")
        time.sleep(0.1)


def measure(count: int) -> dict[str, float]:
    """All of it. Raises ``BenchError``."""
    figures: dict[str, float] = {"pods": count}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_cores(LOAD_CORE))
        crowd = stack.enter_context(pods(count, str(folder)))
        api = stack.enter_context(ApiServer(folder / "api"))
        asked = Statistics()
        asked.start()
        socket = folder / "cri.sock"
        known = [
            {
                "uid": pod.uid,
                "namespace": "default",
                "name": pod.name,
                "containers": [{"id": pod.container, "name": "user-container", "pid": pod.pid}],
            }
            for pod in crowd
        ]
        runtime = stack.enter_context(
            helper("bench.cri_stand_in", folder, {"socket": str(socket), "pods": known}, LOAD_CORE)
        )
        runtime.hear(20)
        prefix = ("taskset", "--cpu-list", str(PROXY_CORE))
        options = ("--ambient", "--node-name", NODE, "--log-level", "info")
        daemon = stack.enter_context(Daemon(folder / "daemon", api.kubeconfig(), socket, *options, prefix=prefix))
        fresh = memory_kib(daemon.pid)["Rss"]
        figures["CPU without a pod, share of a core"] = _share(daemon.pid)
        for pod in crowd:
            api.put(f"/api/v1/namespaces/default/pods/{pod.name}", _facts(pod))
        began = time.monotonic()
        _until_frozen(crowd, 30 + count * 0.2)
        figures["until all are frozen, s"] = time.monotonic() - began
        figures["KiB a pod"] = (memory_kib(daemon.pid)["Rss"] - fresh) / count
        time.sleep(2)
        questions, used, began = asked.asked, cpu_ns(daemon.pid), time.monotonic()
        time.sleep(SPAN)  # the span over which it is measured
        figures["CPU while all are frozen, share of a core"] = (
            (cpu_ns(daemon.pid) - used) / 1e9 / (time.monotonic() - began)
        )
        figures["questions to queue-proxies meanwhile"] = asked.asked - questions
        frozen, awake = [], []
        for pod in crowd[: min(count, 1000)]:
            frozen.append(pod.request())
            awake.append(pod.request())
        for name, values in (("frozen", frozen), ("awake", awake)):
            figures[f"request when {name}, p50 ms"] = statistics.median(values) * 1e3
            figures[f"request when {name}, p99 ms"] = sorted(values)[int(len(values) * 0.99)] * 1e3
        _until_frozen(crowd, 30 + count * 0.2)
        figures["awake after a probe, s"] = _probed(crowd[0])
    return figures


def _share(pid: int) -> float:
    """Of a core that a process uses."""
    used, began = cpu_ns(pid), time.monotonic()
    time.sleep(SPAN)  # the span over which it is measured
    return (cpu_ns(pid) - used) / 1e9 / (time.monotonic() - began)


def _probed(pod: Pod) -> float:
    """Seconds for which a pod is awake after a probe, at the median."""
    spans = []
    for _ in range(PROBES):
        began = time.monotonic()
        pod.request()
        while not pod.frozen():
            time.sleep(0.01)
        spans.append(time.monotonic() - began)
    return statistics.median(spans)


def main() -> None:
    """In a network of its own, where all addresses are free."""
    count = sys.argv[1] if len(sys.argv) > 1 else "250"
    if os.environ.get("FREEZE_PROXY_BENCH_NETWORK") != "own":
        os.environ["FREEZE_PROXY_BENCH_NETWORK"] = "own"
        script = f"ip link set lo up && exec {sys.executable} -m bench.ambient_node {int(count)}"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", script])
    try:
        print(json.dumps(measure(int(count)), indent=2))
    except BenchError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
