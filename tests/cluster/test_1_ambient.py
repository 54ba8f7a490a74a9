"""Nothing but the daemon is installed, and services say by one annotation that they want to be frozen.

Some tests begin here what goes on beside others: requests to these services, and the time for which those with probes
are left alone. What came of both is looked at in ``test_5_ambient.py``, since then with the webhook beside them.
"""

import json
import re
import time

import pytest

from tests.cluster import ambient, knative
from tests.cluster.api import Api, Json
from tests.cluster.background import Background
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.installed import NAMESPACE
from tests.cluster.minute import Minute
from tests.cluster.node import QUEUE, USER, Container, statuses

TRAFFIC = "ambient-traffic"


@pytest.fixture(scope="module")
def container(api: Api, cluster: Cluster, with_ambient: None) -> Container:
    return Container(cluster.cgroup, knative.pod(api, TRAFFIC))


def test_only_the_daemon_is_there(api: Api, daemon_alone: None) -> None:
    pods = api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    assert [pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods] == ["freeze-proxy-daemon"]
    hooks = api.get("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")["items"]
    assert not [hook for hook in hooks if "freeze" in hook["metadata"]["name"]]


def _as_its_owner_wrote_it(pod: Json, name: str) -> Json:
    """What is in a pod, but for what differs in any two."""
    kept = {
        "spec": pod["spec"],
        "annotations": pod["metadata"]["annotations"],
        "labels": sorted(pod["metadata"]["labels"]),
    }
    return json.loads(re.sub(r"kube-api-access-\w+", "token", json.dumps(kept)).replace(name, "NAME"))


def test_a_pod_differs_by_its_annotation_alone(api: Api, with_ambient: None) -> None:
    ours, stock = (_as_its_owner_wrote_it(knative.pod(api, name), name) for name in (TRAFFIC, ambient.STOCK))
    assert ours["annotations"] == stock["annotations"] | ambient.ASKS
    assert ours | {"annotations": stock["annotations"]} == stock
    assert {USER, QUEUE} == set(statuses(knative.pod(api, TRAFFIC)))


def test_it_is_frozen_in_cgroup2_and_the_runtime_sees_it(api: Api, container: Container) -> None:
    """As on a node that has no other. So exec is refused at once."""
    container.await_frozen()
    assert container.in_cgroup2
    began = time.monotonic()
    done = api.try_kubectl("exec", container.pod, "-c", USER, "--", "/ko-app/server", "check")
    assert done.returncode != 0
    assert "paused" in done.stderr, done.stderr
    assert time.monotonic() - began < 5


def test_probes_are_left_alone_from_now_on(ambient_probed: Minute) -> None:
    """What became of them is looked at in ``test_5_ambient.py``."""


def test_requests_come_from_now_on(ambient_sent: dict[str, Background[list[float]]]) -> None:
    """Likewise."""


def test_sleeptalker_ticks_during_a_request(api: Api, cluster: Cluster, ambient_sent: None) -> None:
    """And falls silent then, for as long as nobody asks: see ``test_5_ambient.py``."""
    name = "ambient-sleeptalker"
    sleeptalker = Container(cluster.cgroup, knative.pod(api, name))
    sleeptalker.await_frozen()
    before = len(sleeptalker.ticks())
    assert Client(knative.route(api, name)).get().text == "Hm? One moment.\nHere you are.\n"
    assert len(sleeptalker.ticks()) >= before + 3
