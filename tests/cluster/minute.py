"""Services with probes of each kind that nobody asks anything for a minute, and what is seen of them meanwhile."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tests.cluster import knative
from tests.cluster.api import Api, Json, condition
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.node import Container, statuses

SECONDS = 60
HTTP = {"httpGet": {"path": "/", "httpHeaders": [{"name": "X-Probe", "value": "yes"}]}}
TCP: Json = {"tcpSocket": {"port": 0}}
GRPC = {"grpc": {"port": 8080}}
EXEC = {"exec": {"command": ["/ko-app/server", "check"]}}
_OFTEN = {"periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 3}
_STARTUP = {"periodSeconds": 1, "failureThreshold": 30}


def both(how: Json, *, port: str = "http1") -> Json:
    """The tests' server, whose readiness and liveness are asked in the same way."""
    return {"ports": [{"name": port, "containerPort": 8080}], "readinessProbe": how, "livenessProbe": how}


def _container(how: Json, *, port: str = "http1", startup: bool = False) -> Json:
    """The same, asked often."""
    container = both({**how, **_OFTEN}, port=port)
    if startup:
        container["startupProbe"] = {"httpGet": {"path": "/", "port": 8080}, **_STARTUP}
    return container


KINDS: dict[str, Json] = {
    "none": {},
    "http": _container(HTTP),
    "http-startup": _container(HTTP, startup=True),
    "tcp": _container(TCP),
    "grpc": _container(GRPC, port="h2c"),
    "exec": _container(EXEC),
    "exec-startup": {**_container(HTTP), "startupProbe": {**EXEC, **_STARTUP}},
}
"""The containers, by the kind of their probes."""


class Minute:
    """Begins when all of the services are frozen, and goes on beside other tests until ``end``.

    ``services`` by the kind of their probes. They are left alone for so many ``seconds``.
    """

    def __init__(
        self,
        api: Api,
        cluster: Cluster,
        say: Callable[[str], None],
        services: dict[str, Json],
        seconds: float = SECONDS,
    ) -> None:
        self._api = api
        self._say = say
        self.seconds = seconds
        knative.apply(api, *services.values())
        names = {kind: each["metadata"]["name"] for kind, each in services.items()}
        knative.await_services(api, *names.values(), within=90)
        self.containers = {kind: Container(cluster.cgroup, knative.pod(api, name)) for kind, name in names.items()}
        # Where a startup or an exec probe is, the first freeze waits for the first request.
        clients = [Client(knative.route(api, name)) for name in names.values()]
        with ThreadPoolExecutor(len(clients)) as pool:
            for answer in pool.map(lambda client: client.http(http2=client.route.port == 81).get("/"), clients):
                answer.raise_for_status()
        for container in self.containers.values():
            container.await_frozen(20)
        say(f"{len(self.containers)} services with probes are frozen; they are left alone for {seconds:.0f} s.")
        self.not_ready: list[str] = []
        self.seen: set[str] = set()
        self.awake: dict[str, int] = dict.fromkeys(self.containers, 0)
        self.looks = 0
        self.lasted = 0.0
        """Seconds, once it has ended."""
        self.ticked: dict[str, int] = {}
        """How often each has ticked meanwhile."""
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._noted_from = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        time.sleep(0.3)  # what they printed last may be on the way to its file
        self._ticks = {kind: len(container.ticks()) for kind, container in self.containers.items()}
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._watch, self._look)]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        """Whatever becomes of the pods."""
        path = "/api/v1/namespaces/default/pods"
        names = {container.pod for container in self.containers.values()}
        while not self._ended.is_set():
            for kind, pod in self._api.watch(path, int(self.seconds) + 60):
                if self._ended.is_set():
                    return
                name = pod["metadata"]["name"]
                if name not in names:
                    continue
                self.seen.add(name)
                restarted = [each for each, status in statuses(pod).items() if status["restartCount"]]
                if kind == "DELETED" or condition(pod, "Ready") != "True" or restarted:
                    self.not_ready.append(f"{name}: {kind} {condition(pod, 'Ready')} restarted: {restarted}")

    def _look(self) -> None:
        """Ten times a second, whether they are frozen."""
        while not self._ended.wait(0.1):
            self.looks += 1
            for kind, container in self.containers.items():
                self.awake[kind] += not container.frozen

    def end(self) -> None:
        """Return when the time is over."""
        left = self._began + self.seconds - time.monotonic()
        if left > 0:
            self._say(f"{left:.0f} s are left of it.")
            time.sleep(left)
        self._ended.set()
        self._threads[1].join()
        self.lasted = time.monotonic() - self._began
        self.ticked = {kind: len(each.ticks()) - self._ticks[kind] for kind, each in self.containers.items()}

    def events(self) -> list[Any]:
        """What the cluster has noted of these pods as a warning since the minute began."""
        listed = self._api.get("/api/v1/namespaces/default/events?fieldSelector=type=Warning")["items"]
        names = {container.pod for container in self.containers.values()}
        return [
            each
            for each in listed
            if each["involvedObject"]["name"] in names and (each["lastTimestamp"] or "") > self._noted_from
        ]
