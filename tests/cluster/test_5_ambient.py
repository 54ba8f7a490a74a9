"""What came of the services without a sidecar that ``test_1_ambient.py`` has begun to ask, or to leave alone."""

import time
from collections.abc import Callable

import pytest

from tests.cluster import ambient, costs, knative
from tests.cluster.api import Api
from tests.cluster.background import Background
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.minute import Minute
from tests.cluster.node import Container


@pytest.mark.parametrize("name", ["ambient-traffic", "ambient-grpc", "ambient-by-activator", "hybrid"])
def test_whatever_users_send_is_answered(ambient_sent: dict[str, Background[list[float]]], name: str) -> None:
    took = ambient_sent[name].result()
    # One that has woken nobody is answered when the server is let run for a moment, after a second.
    assert sum(each > 0.9 for each in took) <= 1, took


@pytest.fixture(scope="module")
def minute(ambient_probed: Minute) -> Minute:
    ambient_probed.end()
    return ambient_probed


def test_their_pods_were_ready_throughout_and_nothing_was_restarted(minute: Minute) -> None:
    assert minute.not_ready == []
    assert len(minute.seen) == len(ambient.PROBED), "all were looked at"


def test_the_cluster_noted_no_failure(minute: Minute) -> None:
    """But that a frozen container cannot be entered, which counts as no result."""
    noted = [(each["involvedObject"]["name"], each["reason"], each["message"]) for each in minute.events()]
    bad = [each for each in noted if each[1] in ("Unhealthy", "Killing", "BackOff", "NodeNotReady")]
    entered = [each for each in bad if "exec-probed" in each[0] and "resulted in unknown state" in each[2]]
    assert [each for each in bad if each not in entered] == []


def test_they_were_frozen_most_of_the_time(minute: Minute, say: Callable[[str], None]) -> None:
    """A probe wakes the server for a moment, which is what it costs."""
    assert minute.looks > 200
    results = {
        "awake": {kind: awake / minute.looks for kind, awake in minute.awake.items()},
        "ticks": {kind: ticks / minute.lasted for kind, ticks in minute.ticked.items()},
    }
    say(f"What probes cost ambient pods:\n\n{costs.probes(results)}\n")
    costs.keep(results, costs.PROBES)
    assert all(awake < 0.2 for awake in results["awake"].values()), results


def test_sleeptalker_is_silent_between_requests(minute: Minute, api: Api, cluster: Cluster) -> None:
    """It ticks twice a second; its probe, each ten seconds, and connections that are kept have it run for moments."""
    name = "ambient-sleeptalker"
    sleeptalker = Container(cluster.cgroup, knative.pod(api, name))
    client = Client(knative.route(api, name))
    for _ in range(2):
        sleeptalker.await_frozen()
        before = len(sleeptalker.ticks())
        time.sleep(4)
        assert len(sleeptalker.ticks()) <= before + 2
        assert client.get().text == "Hm? One moment.\nHere you are.\n"


@pytest.mark.parametrize("kind", ambient.PROBED)
def test_it_answers_afterwards(minute: Minute, api: Api, kind: str) -> None:
    client = Client(knative.route(api, f"ambient-{kind}-probed"))
    with client.http(http2=client.route.port == 81) as http:
        assert http.get("/").text.startswith("hello")
