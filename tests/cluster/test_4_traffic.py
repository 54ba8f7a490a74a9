"""Real queue-proxy in front of the sidecar: whatever users send arrives, and wakes the server."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster import knative
from tests.cluster.api import Api
from tests.cluster.background import Background
from tests.cluster.client import SERVING, Client
from tests.cluster.comings import Scaling
from tests.cluster.components import Cluster
from tests.cluster.node import Container
from tests.support.wait import until

LONG = 30.0


class Service:
    """One of the services: how to reach it, and what becomes of it."""

    def __init__(self, api: Api, cluster: Cluster, name: str) -> None:
        self.client = Client(knative.route(api, name))
        self.container = Container(cluster.cgroup, knative.pod(api, name))


@pytest.fixture(scope="module")
def traffic(api: Api, cluster: Cluster, with_sidecar: None) -> Service:
    return Service(api, cluster, "traffic")


@pytest.fixture(scope="module")
def grpc(api: Api, cluster: Cluster, with_sidecar: None) -> Service:
    return Service(api, cluster, "grpc")


@pytest.fixture(scope="module")
def long_request(traffic: Service, api: Api, cluster: Cluster) -> Background[float]:
    """A request of thirty seconds, beside the tests that follow; in a service of its own."""
    client = Client(knative.route(api, "by-activator"))
    container = Container(cluster.cgroup, knative.pod(api, "by-activator"))

    def work() -> float:
        began = time.monotonic()
        before = len(container.ticks())
        client.get(seconds=LONG)
        took = time.monotonic() - began
        ticked = len(container.ticks()) - before
        assert ticked > 9 * LONG, f"it was frozen in between: {ticked} ticks"
        return took

    return Background(work)


@pytest.mark.parametrize("name", ["traffic", "by-activator"])
def test_requests_on_a_kept_connection(api: Api, cluster: Cluster, with_sidecar: None, name: str) -> None:
    service = Service(api, cluster, name)
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


def test_a_long_request_begins(long_request: Background[float]) -> None:
    """Its end is awaited below."""


def test_http2_with_prior_knowledge(traffic: Service, grpc: Service) -> None:
    with grpc.client.http(http2=True) as client:
        for _ in range(3):
            grpc.container.await_frozen()
            answer = client.get("/")
            assert (answer.http_version, answer.text.split()[-1]) == ("HTTP/2", "HTTP/2.0")
            answers = grpc.client.streams(10, seconds=0.2)
            assert [each.status_code for each in answers] == [200] * 10


def test_grpc(grpc: Service) -> None:
    with grpc.client.channel() as channel:
        for _ in range(3):
            grpc.container.await_frozen()
            assert grpc.client.check(channel) == SERVING
        grpc.container.await_frozen()
        stream = grpc.client.watch(channel)
        assert next(stream) == SERVING
        time.sleep(1)  # an open stream is a request in flight
        assert not grpc.container.frozen
        stream.cancel()  # type: ignore[attr-defined]
        grpc.container.await_frozen()


def test_websocket(traffic: Service) -> None:
    traffic.container.await_frozen()
    with traffic.client.talk() as talk:
        talk.send("hello")
        assert talk.recv(10) == "hello"
        time.sleep(1)
        assert not traffic.container.frozen
        talk.send(b"x" * 100_000)
        assert talk.recv(10) == b"x" * 100_000
    traffic.container.await_frozen()


def test_events_arrive_when_they_are_sent(traffic: Service) -> None:
    traffic.container.await_frozen()
    arrived: list[float] = []
    with traffic.client.http() as client, client.stream("GET", "/events", params={"every": "0.3"}) as answer:
        arrived.extend(time.monotonic() for line in answer.iter_lines() if line)
    assert len(arrived) == 10
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrived)]
    assert min(gaps) > 0.1, gaps
    assert max(gaps) < 0.8, gaps
    traffic.container.await_frozen()


@pytest.mark.parametrize(("name", "limit"), [("one-at-a-time", 1), ("ten-at-a-time", 10)])
def test_no_more_at_a_time_than_the_service_allows(
    api: Api, cluster: Cluster, with_sidecar: None, name: str, limit: int
) -> None:
    service = Service(api, cluster, name)
    service.container.await_frozen()
    count = 3 * limit
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda _: service.client.get(seconds=0.2).status_code, range(count)))
    assert answers == [200] * count
    assert int(service.client.get("/most").text) <= limit
    service.container.await_frozen()


def test_many_clients_at_random_moments(traffic: Service) -> None:
    """Requests that race freezes: whoever comes, is answered."""

    def ask(number: int) -> int:
        with traffic.client.http() as client:
            for turn in range(15):
                time.sleep(0.05 + (number * 37 + turn * 61) % 150 / 1000)
                client.get("/").raise_for_status()
        return 15

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, range(4))) == 60
    traffic.container.await_frozen()


def test_a_request_during_the_pods_deletion(api: Api, cluster: Cluster, with_sidecar: None) -> None:
    """One that had begun is finished."""
    service = Service(api, cluster, "deleted-busy")
    service.container.await_frozen()
    request = Background(lambda: service.client.get(seconds=5).text)
    service.container.await_awake()
    time.sleep(0.5)
    api.delete(f"/api/v1/namespaces/default/pods/{service.container.pod}")
    assert request.result(30).startswith("hello")
    # Others find the pod that has taken its place.
    until(lambda: service.client.get().text, "it is answered", 30)


def test_the_long_request_ended_well(long_request: Background[float]) -> None:
    assert LONG <= long_request.result() < LONG + 5


def test_pods_come_and_go_from_now_on(
    scaling: tuple[Scaling, Background[None]], deletions: dict[str, Background[float]]
) -> None:
    """What becomes of them is looked at in ``test_6_deletion.py``."""
