"""What users send: each kind of it to a server that is frozen when it comes, and is frozen again afterwards."""

import itertools
import random
import socket
import time

from tests.cluster import knative
from tests.cluster.api import Api
from tests.cluster.client import SERVING, Client
from tests.cluster.components import Cluster
from tests.cluster.node import Container

PORT = 8080
"""The server's."""


class Service:
    """One of the services: how to reach it, and what becomes of it."""

    def __init__(self, api: Api, cluster: Cluster, name: str) -> None:
        self.client = Client(knative.route(api, name))
        pod = knative.pod(api, name)
        self.ip: str = pod["status"]["podIP"]
        self.container = Container(cluster.cgroup, pod)


def kept_connection(service: Service) -> None:
    """Requests one after the other, with pauses in which the server is frozen, and a body that comes in pieces."""
    with service.client.http() as client:
        for _ in range(3):
            service.container.await_frozen()
            answer = client.get("/")
            assert answer.text.endswith("by HTTP/1.1\n")
            for _ in range(20):
                client.get("/").raise_for_status()
        service.container.await_frozen()
        answer = client.post("/echo", content=iter([b"x" * 100_000] * 10), headers={"Transfer-Encoding": "chunked"})
        assert len(answer.content) == 1_000_000
    service.container.await_frozen()


def http2(service: Service) -> None:
    """HTTP/2 with prior knowledge."""
    with service.client.http(http2=True) as client:
        for _ in range(3):
            service.container.await_frozen()
            answer = client.get("/")
            assert (answer.http_version, answer.text.split()[-1]) == ("HTTP/2", "HTTP/2.0")
            answers = service.client.streams(10, seconds=0.2)
            assert [each.status_code for each in answers] == [200] * 10


def grpc(service: Service) -> None:
    """Calls, and a stream: while it is open it is a request in flight."""
    with service.client.channel() as channel:
        for _ in range(3):
            service.container.await_frozen()
            assert service.client.check(channel) == SERVING
        service.container.await_frozen()
        stream = service.client.watch(channel)
        assert next(stream) == SERVING
        _is_awake_for(service.container, 1)
        stream.cancel()  # type: ignore[attr-defined]
        service.container.await_frozen()


def websocket(service: Service, silence: float = 1) -> None:
    """A message, so many seconds in which nothing is said, and another."""
    service.container.await_frozen()
    with service.client.talk() as talk:
        talk.send("hello")
        assert talk.recv(10) == "hello"
        _is_awake_for(service.container, silence)
        talk.send(b"x" * 100_000)
        assert talk.recv(10) == b"x" * 100_000
    service.container.await_frozen()


def events(service: Service) -> None:
    """Server-sent events arrive when they are sent."""
    service.container.await_frozen()
    arrived: list[float] = []
    with service.client.http() as client, client.stream("GET", "/events", params={"every": "0.3"}) as answer:
        arrived.extend(time.monotonic() for line in answer.iter_lines() if line)
    assert len(arrived) == 10
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrived)]
    assert min(gaps) > 0.1, gaps
    assert max(gaps) < 0.8, gaps
    service.container.await_frozen()


def silent_request(service: Service, seconds: float) -> float:
    """A request in which nothing is said for so long; how long it took."""
    began = time.monotonic()
    before = len(service.container.ticks())
    service.client.get(seconds=seconds)
    took = time.monotonic() - began
    ticked = len(service.container.ticks()) - before
    assert ticked > 9 * seconds, f"it was frozen in between: {ticked} ticks"
    return took


def race(service: Service, tries: int) -> list[float]:
    """Requests at the moment at which an ambient pod is frozen once more; how long each took, in seconds.

    A connection that is opened wakes it for the grace alone: so the moment is known.
    """
    chance = random.Random(service.ip)
    took = []
    with service.client.http() as client:
        client.get("/").raise_for_status()
        for _ in range(tries):
            service.container.await_frozen()
            socket.create_connection((service.ip, PORT)).close()
            time.sleep(chance.uniform(0.09, 0.13))
            began = time.perf_counter()
            client.get("/").raise_for_status()
            took.append(time.perf_counter() - began)
    service.container.await_frozen()
    return took


def _is_awake_for(container: Container, seconds: float) -> None:
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        assert not container.frozen, f"{container.pod} is frozen"
        time.sleep(0.05)
