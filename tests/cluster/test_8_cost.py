"""What freeze-proxy costs beside stock Knative, measured in the same run; the table is in the output and in a file."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import costs, knative
from tests.cluster.api import Api, ready
from tests.cluster.client import Client, timed
from tests.cluster.components import Cluster
from tests.cluster.node import QUEUE, SIDECAR, USER, Container, statuses

_NAMES = {"stock": "stock", "freeze-proxy": "traffic"}
_LOAD_SECONDS = 3
_FIRST = 25
_STARTS = 3
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Load:
    """What wrk saw. Times are seconds."""

    requests: int
    p50: float
    p99: float


def _wrk(client: Client, connections: int) -> Load:
    headers = [f"--header={name}: {value}" for name, value in client.route.headers.items()]
    command = ["wrk", "--latency", "--threads=1", f"--connections={connections}", f"--duration={_LOAD_SECONDS}s"]
    done = subprocess.run([*command, *headers, client.url], check=True, capture_output=True, text=True, timeout=30)
    assert "Non-2xx" not in done.stdout, done.stdout
    assert "Socket errors" not in done.stdout, done.stdout

    def percentile(which: int) -> float:
        found = re.search(rf"{which}%\s+([\d.]+)(us|ms|s)", done.stdout)
        assert found, done.stdout
        return float(found[1]) * _UNITS[found[2]]

    requests = re.search(r"(\d+) requests in", done.stdout)
    assert requests, done.stdout
    return Load(int(requests[1]), percentile(50), percentile(99))


class Measured:
    """One service."""

    def __init__(self, api: Api, cluster: Cluster, name: str) -> None:
        self.client = Client(knative.route(api, name))
        self.pod = knative.pod(api, name)
        self._cgroup = cluster.cgroup
        self.user = Container(cluster.cgroup, self.pod)

    def warm(self, connections: int) -> dict[str, float]:
        """Latencies, and the CPU of the whole pod for a request. Seconds."""
        before = self.user.cpu()
        load = _wrk(self.client, connections)
        return {"p50": load.p50, "p99": load.p99, "cpu": (self.user.cpu() - before) / load.requests}

    def first(self, frozen: bool) -> list[float]:
        """Seconds that the first request after a while takes, on a connection that was there before."""
        took = []
        with self.client.http() as http:
            timed(http)
            for _ in range(_FIRST):
                if frozen:
                    self.user.await_frozen()
                time.sleep(0.25)
                took.append(timed(http))
        return took

    def memory(self) -> dict[str, int]:
        """Bytes, by container."""
        names = [name for name in (QUEUE, SIDECAR, USER) if name in statuses(self.pod)]
        return {name: Container(self._cgroup, self.pod, name).memory() for name in names}


def _start(api: Api, name: str, annotations: dict[str, str]) -> float:
    """Seconds from the first sight of a service's pod until it is ready."""
    label = f"serving.knative.dev%2Fservice%3D{name}"
    knative.apply(api, knative.service(name, {}, {**knative.DIRECT, **annotations}))
    began, deadline = 0.0, time.monotonic() + 60
    while time.monotonic() < deadline:
        for _, pod in api.watch(f"/api/v1/namespaces/default/pods?labelSelector={label}", 60):
            began = began or time.monotonic()
            if ready(pod):
                took = time.monotonic() - began
                api.delete(f"{knative.SERVING}/services/{name}")
                return took
        time.sleep(0.05)
    raise AssertionError(f"the pod of {name} is not ready")


@pytest.fixture(scope="module")
def measured(api: Api, cluster: Cluster, with_sidecar: None, say: Callable[[str], None]) -> dict[str, Any]:
    say("Measuring what it costs.")
    services = {what: Measured(api, cluster, name) for what, name in _NAMES.items()}
    results: dict[str, Any] = {what: {} for what in _NAMES}
    for what, service in services.items():
        for connections in (1, 16):
            results[what][f"warm-{connections}"] = service.warm(connections)
        results[what]["first"] = service.first(what != "stock")
        results[what]["memory"] = service.memory()
        results[what]["start"] = []
    for number in range(_STARTS):
        for what in _NAMES:
            annotations = {"freeze.extensions.knative.dev/inject": "false"} if what == "stock" else {}
            results[what]["start"].append(_start(api, f"started-{what}-{number}", annotations))
    results["versions"] = os.environ["CLUSTER_VERSIONS"]
    results["taken"] = time.strftime("%Y-%m-%d")
    results["cores"] = os.cpu_count()
    return results


def test_what_it_costs(measured: dict[str, Any], say: Callable[[str], None]) -> None:
    say(f"The costs:\n\n{costs.table(measured)}\n")
    results = Path(os.environ["CLUSTER_RESULTS"])
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(measured, indent=1) + "\n")
    ours, stock = measured["freeze-proxy"], measured["stock"]
    # Bounds for defects, not for figures: the machine may be busy with other things.
    assert costs.median(ours["first"]) < costs.median(stock["first"]) + 0.02
    assert ours["memory"][SIDECAR] < 20 << 20
    assert ours["warm-16"]["cpu"] < 2 * stock["warm-16"]["cpu"]
