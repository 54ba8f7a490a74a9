"""A minute in which nobody asks services with probes of each kind for anything."""

import pytest

from tests.cluster import knative
from tests.cluster.api import Api
from tests.cluster.client import Client
from tests.cluster.minute import KINDS, Minute


@pytest.fixture(scope="module")
def minute(probed: Minute) -> Minute:
    probed.end()
    return probed


def test_their_pods_were_ready_throughout_and_nothing_was_restarted(minute: Minute) -> None:
    assert minute.not_ready == []
    assert len(minute.seen) == len(KINDS), "all were looked at"


def test_the_cluster_noted_no_failure(minute: Minute) -> None:
    """A frozen container cannot be entered. The kubelet notes that, counts it as no result, and keeps the last one."""
    noted = [(each["involvedObject"]["name"], each["reason"], each["message"]) for each in minute.events()]
    bad = [each for each in noted if each[1] in ("Unhealthy", "Killing", "BackOff", "NodeNotReady")]
    entered = [each for each in bad if "probed-exec-0" in each[0] and "resulted in unknown state" in each[2]]
    assert [each for each in bad if each not in entered] == []


def test_they_were_frozen_all_the_time(minute: Minute) -> None:
    """Ten looks a second; a tick is printed ten times a second by whoever runs."""
    assert minute.looks > 300
    assert not any(minute.awake.values()), (minute.awake, minute.looks)
    assert not any(minute.ticked.values()), minute.ticked


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_afterwards(minute: Minute, api: Api, kind: str) -> None:
    client = Client(knative.route(api, f"probed-{kind}"))
    with client.http(http2=client.route.port == 81) as http:
        assert http.get("/").text.startswith("hello")
    minute.containers[kind].await_frozen()
