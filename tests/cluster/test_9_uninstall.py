"""Taken away again: services that run go on, and nothing stays frozen."""

import json
import subprocess
import sys
import time

from tests.cluster import installed, knative
from tests.cluster.api import Api
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.node import Container, silent
from tests.support.wait import until

_SERVICES = ("traffic", "by-activator", "probed-http", "probed-tcp")


def test_services_go_on_and_nothing_is_frozen(api: Api, cluster: Cluster, with_sidecar: None) -> None:
    containers = [Container(cluster.cgroup, knative.pod(api, name)) for name in _SERVICES]
    for container in containers:
        container.await_frozen()
    api.kubectl("delete", "--wait=false", "-k", installed.OVERLAY)
    until(lambda: not any(each.frozen for each in containers), "nothing is frozen", 30)
    for name in _SERVICES:
        assert Client(knative.route(api, name)).get().text.startswith("hello")
    time.sleep(1)  # by now they would be frozen again
    for container in containers:
        assert not container.frozen
        assert not silent(container, 0.5), container.pod


def test_pods_that_are_made_now_have_no_sidecar(api: Api) -> None:
    knative.apply(api, knative.service("afterwards", {}))
    knative.await_services(api, "afterwards")
    assert "initContainers" not in knative.pod(api, "afterwards")["spec"]


def test_nothing_is_left_in_the_cluster(api: Api) -> None:
    kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,namespaces"
    until(
        lambda: "freeze-proxy" not in api.kubectl("get", kinds, "-o", "name"),
        "what was installed is gone",
        120,
        every=0.5,
    )


def test_uninstall_check_tells_of_the_pods_that_are_left_and_of_nothing_else(api: Api) -> None:
    command = [
        sys.executable,
        "-m",
        "freeze_proxy",
        "uninstall",
        "--check",
        "--json",
        "--kubeconfig",
        str(api.kubeconfig),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    carrying = api.get("/api/v1/pods?labelSelector=freeze.extensions.knative.dev/injected=true")["items"]
    assert told["clean"] == (not carrying) == (done.returncode == 0)
    assert all("with the sidecar in" in each["what"] for each in told["left"]), told
