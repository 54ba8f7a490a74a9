"""Whatever fails beside them, requests are answered; afterwards freezing goes on by itself."""

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import installed, knative
from tests.cluster.api import Api
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.node import SIDECAR, Container, statuses
from tests.support.wait import until

_SERVICES = {"traffic": 0.25, "by-activator": 0.25, "ambient-traffic": 3.5}
"""Services, and the seconds from one request to the next: enough for the server to be frozen in between."""
_AWAY = 30.0
"""Seconds for which the API server is stopped."""


class Clients:
    """One for each service: it asks again and again, with pauses in which the server would be frozen."""

    def __init__(self, api: Api) -> None:
        self.errors: list[str] = []
        self.answered = dict.fromkeys(_SERVICES, 0)
        self.slowest = 0.0
        self._ended = threading.Event()
        clients = {name: Client(knative.route(api, name)) for name in _SERVICES}
        self._threads = [
            threading.Thread(target=self._ask, args=(name, client), daemon=True) for name, client in clients.items()
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, name: str, client: Client) -> None:
        while not self._ended.wait(_SERVICES[name]):
            began = time.monotonic()
            try:
                client.get()
                self.answered[name] += 1
            except Exception as error:
                self.errors.append(f"{name}: {error!r}")
            self.slowest = max(self.slowest, time.monotonic() - began)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def clients(api: Api, with_sidecar: None, with_ambient: None) -> Iterator[Clients]:
    """They ask during the whole test. Every request is to be answered."""
    made = Clients(api)
    until(lambda: all(made.answered.values()), "all services answer")
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def containers(api: Api, cluster: Cluster, with_sidecar: None, with_ambient: None) -> list[Container]:
    return [Container(cluster.cgroup, knative.pod(api, name)) for name in _SERVICES]


def _all_is_well(api: Api, clients: Clients, containers: list[Container]) -> None:
    """Requests go on, and between them the same containers are frozen."""
    before = dict(clients.answered)
    until(lambda: all(clients.answered[name] > before[name] for name in _SERVICES), "they are answered", 20)
    clients.end()
    assert clients.errors == []
    for container in containers:
        container.await_frozen(30)
    for name in _SERVICES:
        pod = knative.pod(api, name)
        assert not any(each["restartCount"] for each in statuses(pod).values()), pod["status"]


def test_the_daemons_pod_is_deleted(api: Api, clients: Clients, containers: list[Container]) -> None:
    path = f"/api/v1/namespaces/{installed.NAMESPACE}/pods"
    old = installed.daemons_pod(api)["metadata"]["name"]
    api.delete(f"{path}/{old}")
    until(lambda: api.find(f"{path}/{old}") is None, "the old pod is gone", 40, every=0.1)
    installed.await_ready(api)
    _all_is_well(api, clients, containers)


def test_the_webhook_is_scaled_to_zero(api: Api, clients: Clients, containers: list[Container]) -> None:
    """Pods that come meanwhile have no sidecar, and serve."""
    api.patch(f"{installed.WEBHOOK}/scale", {"spec": {"replicas": 0}})
    running = f"/api/v1/namespaces/{installed.NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=freeze-proxy-webhook"
    until(lambda: not api.get(running)["items"], "no webhook runs", 60, every=0.2)
    knative.apply(api, knative.service("meanwhile", {}))
    knative.await_services(api, "meanwhile")
    assert SIDECAR not in statuses(knative.pod(api, "meanwhile"))
    assert Client(knative.route(api, "meanwhile")).get().text.startswith("hello")
    api.patch(f"{installed.WEBHOOK}/scale", {"spec": {"replicas": 2}})
    installed.await_ready(api)
    _all_is_well(api, clients, containers)


def test_the_api_server_is_stopped(api: Api, cluster: Cluster, clients: Clients, containers: list[Container]) -> None:
    began = time.monotonic()
    cluster.api_server.end(signal.SIGKILL)
    frozen = set()
    while time.monotonic() < began + _AWAY:
        frozen |= {container.pod for container in containers if container.frozen}
        time.sleep(0.05)
    assert frozen == {container.pod for container in containers}, "freezing needs no API server once a token is known"
    cluster.api_server.start()
    until(cluster.node_is_ready, "the node is ready", 60, every=0.2)
    _all_is_well(api, clients, containers)


def _started_anew(cluster: Cluster, name: str) -> Callable[[], None]:
    daemon = {"kubelet": cluster.kubelet, "containerd": cluster.containerd}[name]

    def again() -> None:
        daemon.end()
        time.sleep(1)
        daemon.start()

    return again


def _ending(api: Api) -> list[str]:
    """Pods that are being deleted. One whose stop a runtime has not heard may take its whole grace of 300 s then."""
    pods = api.get("/api/v1/namespaces/default/pods")["items"]
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]]


@pytest.mark.parametrize("name", ["kubelet", "containerd"])
def test_it_is_restarted(api: Api, cluster: Cluster, clients: Clients, containers: list[Container], name: str) -> None:
    until(lambda: not _ending(api), "no pod is about to end", 60, every=0.2)
    _started_anew(cluster, name)()
    time.sleep(5)  # what the kubelet makes of what it finds, it does within seconds
    until(cluster.node_is_ready, "the node is ready", 60, every=0.2)
    installed.await_ready(api)
    _all_is_well(api, clients, containers)
