"""Taken away again, as docs/install.md says: services that run go on, and nothing stays frozen."""

import json
import subprocess
import sys
import time

from tests.cluster import knative
from tests.cluster.api import Api, Json
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.installed import overlay
from tests.cluster.node import Container, silent
from tests.support.wait import until

_SERVICES = ("traffic", "by-activator", "probed-http", "probed-tcp", "ambient-traffic", "ambient-http-probed", "hybrid")
_INJECTED = "freeze.extensions.knative.dev/injected=true"


def _check(api: Api) -> tuple[int, list[Json]]:
    """What ``freeze-proxy uninstall --check`` says."""
    command = [sys.executable, "-m", "freeze_proxy", "uninstall", "--check", "--json", f"--kubeconfig={api.kubeconfig}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["clean"] == (done.returncode == 0)
    return done.returncode, told["left"]


def test_what_is_there_is_told(api: Api, installed: None) -> None:
    code, left = _check(api)
    assert code == 1
    assert "kubectl delete mutatingwebhookconfiguration" in left[0]["todo"], left


def test_services_go_on_and_nothing_is_frozen(api: Api, cluster: Cluster, with_sidecar: None) -> None:
    containers = [Container(cluster.cgroup, knative.pod(api, name)) for name in _SERVICES]
    for container in containers:
        container.await_frozen()
    api.kubectl("delete", "mutatingwebhookconfiguration", "freeze-proxy")
    api.kubectl("delete", "--wait=false", "--ignore-not-found", "-k", overlay("ambient"))
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
    """But the pods that have a sidecar, which are the user's; when they have been replaced, nothing at all."""
    kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,namespaces"
    until(
        lambda: "freeze-proxy" not in api.kubectl("get", kinds, "-o", "name"),
        "what was installed is gone",
        120,
        every=0.5,
    )
    code, left = _check(api)
    assert code == 1
    assert all("with the sidecar in" in each["what"] for each in left), left
    api.kubectl("delete", "pods", "--selector", _INJECTED, "--wait=false", "--grace-period=1")
    until(lambda: _check(api)[0] == 0, "nothing is left", 60, every=1)
