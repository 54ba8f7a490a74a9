"""Pods that come and go: a service that is scaled up and down, and pods that are deleted."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.cluster import knative
from tests.cluster.api import Api, ready
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.node import Container
from tests.support.wait import until

_PODS = "/api/v1/namespaces/default/pods"


class Scaling:
    """A service that is asked by so many at a time that it needs as many pods, and then by nobody."""

    def __init__(self, api: Api, cluster: Cluster, name: str, most: int) -> None:
        self._api = api
        self._cluster = cluster
        self._name = name
        self._most = most
        self.answers: list[int] = []
        self.errors: list[str] = []
        self._until = 0.0

    def _ask(self, client: Client) -> None:
        with client.http() as http:
            while time.monotonic() < self._until:
                try:
                    self.answers.append(http.get("/", params={"seconds": "0.3"}).status_code)
                except Exception as error:
                    self.errors.append(repr(error))

    def _ready(self) -> int:
        return sum(ready(pod) for pod in knative.pods(self._api, self._name))

    def run(self) -> None:
        """Up to so many, and down to one that is frozen."""
        client = Client(knative.route(self._api, self._name))
        self._until = time.monotonic() + 90
        with ThreadPoolExecutor(self._most) as pool:
            for _ in range(self._most):
                pool.submit(self._ask, client)
            try:
                until(
                    lambda: self._ready() == self._most, f"{self._most} pods of {self._name} are ready", 60, every=0.2
                )
                time.sleep(2)
            finally:
                self._until = 0.0
        until(lambda: len(self._alive()) == 1, "one is left", 60, every=0.2)
        Container(self._cluster.cgroup, self._alive()[0]).await_frozen()

    def _alive(self) -> list[dict[str, dict[str, str]]]:
        return [pod for pod in knative.pods(self._api, self._name) if "deletionTimestamp" not in pod["metadata"]]


class Deletion:
    """How long it takes until a pod is gone."""

    def __init__(self, api: Api, cluster: Cluster, name: str, frozen: bool) -> None:
        self._api = api
        self.pod = knative.pod(api, name)["metadata"]["name"]
        if frozen:
            Container(cluster.cgroup, knative.pod(api, name)).await_frozen()

    def run(self) -> float:
        """Seconds."""
        began = time.monotonic()
        self._api.delete(f"{_PODS}/{self.pod}")
        until(lambda: self._api.find(f"{_PODS}/{self.pod}") is None, f"{self.pod} is gone", 90, every=0.1)
        return time.monotonic() - began
