"""Real queue-proxy in front of the sidecar: whatever users send arrives, and wakes the server."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster import traffic
from tests.cluster.api import Api
from tests.cluster.background import Background
from tests.cluster.comings import Scaling
from tests.cluster.components import Cluster
from tests.cluster.traffic import Service
from tests.support.wait import until

LONG = 30.0


@pytest.fixture(scope="module")
def service(api: Api, cluster: Cluster, with_sidecar: None) -> Service:
    return Service(api, cluster, "traffic")


@pytest.fixture(scope="module")
def grpc(api: Api, cluster: Cluster, with_sidecar: None) -> Service:
    return Service(api, cluster, "grpc")


@pytest.fixture(scope="module")
def long_request(service: Service, api: Api, cluster: Cluster) -> Background[float]:
    """A request of thirty seconds, beside the tests that follow; in a service of its own."""
    other = Service(api, cluster, "by-activator")
    return Background(lambda: traffic.silent_request(other, LONG))


@pytest.mark.parametrize("name", ["traffic", "by-activator"])
def test_requests_on_a_kept_connection(api: Api, cluster: Cluster, with_sidecar: None, name: str) -> None:
    traffic.kept_connection(Service(api, cluster, name))


def test_a_long_request_begins(long_request: Background[float]) -> None:
    """Its end is awaited below."""


def test_http2_with_prior_knowledge(grpc: Service) -> None:
    traffic.http2(grpc)


def test_grpc(grpc: Service) -> None:
    traffic.grpc(grpc)


def test_websocket(service: Service) -> None:
    traffic.websocket(service)


def test_events_arrive_when_they_are_sent(service: Service) -> None:
    traffic.events(service)


@pytest.mark.parametrize(("name", "limit"), [("one-at-a-time", 1), ("ten-at-a-time", 10)])
def test_no_more_at_a_time_than_the_service_allows(
    api: Api, cluster: Cluster, with_sidecar: None, name: str, limit: int
) -> None:
    limited = Service(api, cluster, name)
    limited.container.await_frozen()
    count = 3 * limit
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda _: limited.client.get(seconds=0.2).status_code, range(count)))
    assert answers == [200] * count
    assert int(limited.client.get("/most").text) <= limit
    limited.container.await_frozen()


def test_many_clients_at_random_moments(service: Service) -> None:
    """Requests that race freezes: whoever comes, is answered."""

    def ask(number: int) -> int:
        with service.client.http() as client:
            for turn in range(15):
                time.sleep(0.05 + (number * 37 + turn * 61) % 150 / 1000)
                client.get("/").raise_for_status()
        return 15

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, range(4))) == 60
    service.container.await_frozen()


def test_a_request_during_the_pods_deletion(api: Api, cluster: Cluster, with_sidecar: None) -> None:
    """One that had begun is finished."""
    deleted = Service(api, cluster, "deleted-busy")
    deleted.container.await_frozen()
    request = Background(lambda: deleted.client.get(seconds=5).text)
    deleted.container.await_awake()
    time.sleep(0.5)
    api.delete(f"/api/v1/namespaces/default/pods/{deleted.container.pod}")
    assert request.result(30).startswith("hello")
    # Others find the pod that has taken its place.
    until(lambda: deleted.client.get().text, "it is answered", 30)


def test_the_long_request_ended_well(long_request: Background[float]) -> None:
    assert LONG <= long_request.result() < LONG + 5


def test_pods_come_and_go_from_now_on(
    scaling: dict[str, tuple[Scaling, Background[None]]], deletions: dict[str, Background[float]]
) -> None:
    """What becomes of them is looked at in ``test_6_deletion.py``."""
