"""What freeze-proxy costs beside stock Knative, measured in the same run; the table is in the output and in a file."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster import costs, knative
from tests.cluster import installed as freeze_proxy
from tests.cluster.ambient import ASKS
from tests.cluster.api import Api, ready
from tests.cluster.client import Client, timed
from tests.cluster.components import Cluster
from tests.cluster.node import QUEUE, SIDECAR, USER, Container, statuses
from tests.cluster.runtime import CHOSEN

_NAMES = {"stock": "stock", "freeze-proxy": "traffic", "ambient": f"{CHOSEN}traffic"}
_ASKS = {"stock": {"freeze.extensions.knative.dev/inject": "false"}, "freeze-proxy": {}, "ambient": ASKS}
"""Annotations."""
_LOAD_SECONDS = 3
_FIRST = {"stock": 25, "freeze-proxy": 25, "ambient": 6}
_STARTS = 2
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

    def warm(self, connections: int, daemon: Container) -> dict[str, float]:
        """Latencies and the CPU of the whole pod for a request, in seconds; the daemon's meanwhile, in cores."""
        parts = {"cpu": self.user, "daemon": daemon}
        before = {name: part.cpu() for name, part in parts.items()}
        load = _wrk(self.client, connections)
        spent = {name: part.cpu() - before[name] for name, part in parts.items()}
        return {
            "p50": load.p50,
            "p99": load.p99,
            "cpu": spent["cpu"] / load.requests,
            "daemon": spent["daemon"] / _LOAD_SECONDS,
        }

    def memory(self) -> dict[str, int]:
        """Bytes, by container."""
        names = [name for name in (QUEUE, SIDECAR, USER) if name in statuses(self.pod)]
        return {name: Container(self._cgroup, self.pod, name).memory() for name in names}


def _first(services: dict[str, Measured]) -> dict[str, list[float]]:
    """Seconds that the first request after a while takes, on a connection that was there before.

    An ambient pod is frozen only some seconds after the last one: the others are asked meanwhile.
    """
    took: dict[str, list[float]] = {what: [] for what in services}
    with contextlib.ExitStack() as opened:
        connections = {what: opened.enter_context(service.client.http()) for what, service in services.items()}
        for http in connections.values():
            timed(http)
        while any(len(took[what]) < number for what, number in _FIRST.items()):
            for what, service in services.items():
                if what == "ambient" and not service.user.frozen:
                    continue
                if what == "freeze-proxy":
                    service.user.await_frozen()
                time.sleep(0.25)
                took[what].append(timed(connections[what]))
    return took


def _start(api: Api, name: str, annotations: dict[str, str], sidecar: bool) -> float:
    """Seconds from the first sight of a service's pod until it is ready."""
    label = f"serving.knative.dev%2Fservice%3D{name}"
    knative.apply(api, knative.service(name, {}, {**knative.DIRECT, **annotations}))
    began, deadline = 0.0, time.monotonic() + 60
    while time.monotonic() < deadline:
        for _, pod in api.watch(f"/api/v1/namespaces/default/pods?labelSelector={label}", 60):
            began = began or time.monotonic()
            if ready(pod):
                took = time.monotonic() - began
                assert (SIDECAR in statuses(pod)) is sidecar
                api.delete(f"{knative.SERVING}/services/{name}")
                return took
        time.sleep(0.05)
    raise AssertionError(f"the pod of {name} is not ready")


@pytest.fixture(scope="module")
def measured(
    api: Api, cluster: Cluster, with_sidecar: None, with_ambient: None, say: Callable[[str], None]
) -> dict[str, Any]:
    say("Measuring what it costs.")
    services = {what: Measured(api, cluster, name) for what, name in _NAMES.items()}
    results: dict[str, Any] = {what: {} for what in _NAMES}
    daemon = Container(cluster.cgroup, freeze_proxy.daemons_pod(api), "daemon")
    for what, service in services.items():
        for connections in (1, 16):
            results[what][f"warm-{connections}"] = service.warm(connections, daemon)
        results[what]["memory"] = service.memory()
        results[what]["start"] = []
    for what, first in _first(services).items():
        results[what]["first"] = first
    for number in range(_STARTS):
        for what, annotations in _ASKS.items():
            name = f"{CHOSEN}started-{what}-{number}"  # all by the same runtime
            results[what]["start"].append(_start(api, name, annotations, sidecar=what == "freeze-proxy"))
    return results


def test_what_it_costs(measured: dict[str, Any], say: Callable[[str], None]) -> None:
    say(f"The costs:\n\n{costs.table(measured)}\n")
    costs.keep(measured, costs.TAKEN)
    ours, stock, ambient = (measured[name] for name in ("freeze-proxy", "stock", "ambient"))
    # Bounds for defects, not for figures: the machine may be busy with other things.
    for each in (ours, ambient):
        assert costs.median(each["first"]) < costs.median(stock["first"]) + 0.02
        assert each["warm-16"]["cpu"] < 2 * stock["warm-16"]["cpu"]
    assert ours["memory"][SIDECAR] < 20 << 20
    assert costs.median(ambient["start"]) < costs.median(stock["start"]) + 1
