"""A Knative Service as the README has it: silent while idle, at work during a request; and what goes on beside it.

Here also begin the services with probes of each kind, which are left alone until ``test_5_a_minute.py``.
"""

import time

import pytest

from tests.cluster import knative
from tests.cluster.api import Api
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.node import QUEUE, SIDECAR, USER, Container, statuses

_TICK = 0.5
"""Seconds between sleeptalker's ticks."""


@pytest.fixture(scope="module")
def sleeptalker(api: Api, cluster: Cluster, installed: None, probed: None, sleeptalkers_source: None) -> Container:
    """The example, with the one image that is here."""
    knative.apply(api, knative.example())
    knative.await_services(api, "sleeptalker")
    return Container(cluster.cgroup, knative.pod(api, "sleeptalker"))


def test_its_pod_carries_the_sidecar(api: Api, sleeptalker: Container) -> None:
    pod = knative.pod(api, "sleeptalker")
    assert pod["metadata"]["labels"]["freeze.extensions.knative.dev/injected"] == "true"
    assert [each["name"] for each in pod["spec"]["initContainers"]] == [SIDECAR]
    assert [each["name"] for each in pod["spec"]["containers"]] == [USER, QUEUE]
    assert all(each["ready"] and not each["restartCount"] for each in statuses(pod).values())


def test_it_is_silent_while_idle_and_ticks_during_a_request(api: Api, sleeptalker: Container) -> None:
    client = Client(knative.route(api, "sleeptalker"))
    for _ in range(2):
        sleeptalker.await_frozen()
        time.sleep(0.2)
        before = sleeptalker.ticks()
        time.sleep(3 * _TICK)
        assert sleeptalker.ticks() == before
        assert client.get().text == "Hm? One moment.\nHere you are.\n"
        sleeptalker.await_frozen()
        time.sleep(0.2)
        during = sleeptalker.ticks()[len(before) :]
        assert 3 <= len(during) <= 6, during
        gap = during[0] - before[-1] if before else 3 * _TICK
        assert gap >= 3 * _TICK


def test_its_log_can_be_read_while_it_is_frozen(api: Api, sleeptalker: Container) -> None:
    sleeptalker.await_frozen()
    assert "tick 1 at" in api.kubectl("logs", sleeptalker.pod, "-c", USER)
    assert sleeptalker.frozen


def test_exec_into_a_frozen_container_is_refused_at_once(api: Api, sleeptalker: Container) -> None:
    sleeptalker.await_frozen()
    began = time.monotonic()
    done = api.try_kubectl("exec", sleeptalker.pod, "-c", USER, "--", "python3", "-c", "print('in')")
    assert done.returncode != 0
    assert "paused" in done.stderr, done.stderr
    assert time.monotonic() - began < 5
    assert sleeptalker.frozen


def test_exec_works_during_a_request(api: Api, sleeptalker: Container) -> None:
    client = Client(knative.route(api, "sleeptalker"))
    with client.http() as http, http.stream("GET", "/") as answer:
        lines = answer.iter_lines()
        next(lines)
        assert api.kubectl("exec", sleeptalker.pod, "-c", USER, "--", "python3", "-c", "print('in')") == "in\n"
        assert list(lines) == ["Here you are."]
    sleeptalker.await_frozen()
