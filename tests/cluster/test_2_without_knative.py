"""The plain Deployment of ``config/``: the Service finds the sidecar by the name of the port that it has taken over."""

import re
import time

import httpx
import pytest

from tests.cluster.api import Api, Json, await_all, condition
from tests.cluster.components import Cluster
from tests.cluster.images import PYTHON, ROOT
from tests.cluster.node import SIDECAR, Container, statuses
from tests.support.wait import until

NAME = "sleeptalker-deployment"
_DEPLOYMENT = f"/apis/apps/v1/namespaces/default/deployments/{NAME}"
_PODS = f"/api/v1/namespaces/default/pods?labelSelector=app={NAME}"
_SLICES = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name={NAME}"


@pytest.fixture(scope="module")
def pod(api: Api, installed: None) -> Json:
    """Its pod, ready."""
    source = (ROOT / "examples/sleeptalker/sleeptalker.py").read_text()
    configmap = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"sleeptalker.py": source}}
    api.apply("/api/v1/namespaces/default/configmaps/sleeptalker", configmap | {"metadata": {"name": "sleeptalker"}})
    text, changed = re.subn(r"image: \S+", f"image: {PYTHON}", (ROOT / "config/example-deployment.yaml").read_text())
    assert changed == 1
    api.kubectl("apply", "-f", "-", given=text)
    await_all("the Deployment is there", lambda: {NAME: condition(api.get(_DEPLOYMENT), "Available") == "True"}, 60)
    (found,) = api.get(_PODS)["items"]
    return found


@pytest.fixture(scope="module")
def server(cluster: Cluster, pod: Json) -> Container:
    """Its server."""
    return Container(cluster.cgroup, pod, "sleeptalker")


def test_its_pod_carries_the_sidecar(pod: Json) -> None:
    assert [each["name"] for each in pod["spec"]["initContainers"]] == [SIDECAR]
    assert all(each["ready"] and not each["restartCount"] for each in statuses(pod).values())


def test_the_service_leads_to_the_sidecar(api: Api, pod: Json) -> None:
    """Since 1.32 or 1.33 Services find the ports of restartable init containers by their names."""
    (sidecar,) = pod["spec"]["initContainers"]
    (port,) = [each["containerPort"] for each in sidecar["ports"] if each["name"] == "http"]
    (found,) = api.get(_SLICES)["items"]
    assert [each["port"] for each in found["ports"]] == [port]
    assert found["endpoints"][0]["addresses"] == [pod["status"]["podIP"]]


def test_it_is_frozen_between_requests_and_answers_each(api: Api, pod: Json, server: Container) -> None:
    address = api.get(f"/api/v1/namespaces/default/services/{NAME}")["spec"]["clusterIP"]
    for _ in range(2):
        server.await_frozen()
        assert httpx.get(f"http://{address}/", timeout=20, trust_env=False).text == "Hm? One moment.\nHere you are.\n"
    server.await_frozen()


def test_it_stays_ready_while_it_is_frozen(api: Api, pod: Json, server: Container) -> None:
    server.await_frozen()
    time.sleep(12)  # a period of its readiness probe, and what comes of it
    (now,) = api.get(_PODS)["items"]
    assert condition(now, "Ready") == "True"
    # As docs/troubleshooting.md has it.
    assert api.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{server.pod}:9998/proxy/ready") is not None
    assert server.frozen


def test_it_is_deleted_as_quickly_as_others(api: Api, pod: Json, server: Container) -> None:
    server.await_frozen()
    began = time.monotonic()
    api.kubectl("delete", "deployment,service", NAME)
    until(lambda: not api.get(_PODS)["items"], "its pod is gone", 30, every=0.1)
    assert time.monotonic() - began < 15  # of a grace of 30
