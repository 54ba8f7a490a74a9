"""One cluster for all tests of this folder, in the order in which they stand.

Only ``make cluster-test`` runs them: it has Go build Kubernetes and Knative, and gives them a machine of their own.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import ambient, knative
from tests.cluster import installed as freeze_proxy
from tests.cluster.api import Api, Json
from tests.cluster.background import Background
from tests.cluster.comings import Deletion, Scaling
from tests.cluster.components import SERVER, Cluster, from_environment
from tests.cluster.images import ROOT
from tests.cluster.minute import KINDS, Minute
from tests.cluster.runtime import CHOSEN

_LOOKED_AT = "pods,ksvc,revisions,kingress,daemonsets,deployments,mutatingwebhookconfigurations"
_ONE_A_POD = {
    "autoscaling.knative.dev/target": "1",
    "autoscaling.knative.dev/max-scale": "5",
    "autoscaling.knative.dev/window": "6s",
}
"""Annotations: a pod for each request at a time, up to five, and no more than are asked for seconds later."""
_SCALING = {"scaling": 5, f"{CHOSEN}by-activator": 3}
"""Services, and how many pods they come to have."""
collect_ignore_glob = [] if "CLUSTER_FOLDER" in os.environ else ["*"]


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """A line of progress on the terminal."""
    began = float(os.environ["CLUSTER_BEGAN"])
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    return line


@pytest.fixture(scope="session")
def cluster(say: Callable[[str], None]) -> Cluster:
    """Kubernetes with one node."""
    made, archives = from_environment()
    made.start(archives, say)
    return made


@pytest.hookimpl
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What the cluster looked like at the end goes to the logs, if something failed."""
    folder = Path(os.environ.get("CLUSTER_FOLDER", "/nonexistent"))
    if exitstatus and (folder / "keys" / "admin.kubeconfig").exists():
        api = Api(SERVER, folder / "keys" / "admin.kubeconfig")
        with (folder / "logs" / "state.txt").open("w") as state:
            for what in ("events --sort-by=lastTimestamp", "pods -o=wide", f"{_LOOKED_AT} -o=yaml"):
                print(api.try_kubectl("get", "--all-namespaces", *what.split()).stdout, file=state)


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """Its API, as administrator."""
    return cluster.api


@pytest.fixture(scope="session")
def with_knative(api: Api, cluster: Cluster, say: Callable[[str], None]) -> None:
    """Knative Serving, ready."""
    knative.Ingress(api, cluster.logs / "ingress.log").start()
    knative.install(api)
    say("Knative Serving is ready.")


@pytest.fixture(scope="session")
def stock(api: Api, with_knative: None, say: Callable[[str], None]) -> None:
    """Services whose pods are as Knative makes them, since freeze-proxy is not there yet."""
    knative.apply(api, *(knative.service(name, {}, knative.DIRECT) for name in ("stock", "stock-deleted")))
    knative.await_services(api, "stock", "stock-deleted")
    say("Services without freeze-proxy are ready.")


@pytest.fixture(scope="session")
def sleeptalkers_source(api: Api, with_knative: None) -> None:
    """As config/example.yaml says."""
    api.kubectl("create", "configmap", "sleeptalker", f"--from-file={ROOT / 'examples/sleeptalker/sleeptalker.py'}")


def _ambient() -> list[Json]:
    """Services that ask for it, and one that does not, but for those with probes."""
    return [*ambient.services(_ONE_A_POD | {"autoscaling.knative.dev/max-scale": "3"}), ambient.sleeptalker()]


@pytest.fixture(scope="session")
def daemon_alone(api: Api, stock: None, sleeptalkers_source: None) -> None:
    """No webhook is there yet, unless tests were chosen that need it. Services may be there before."""
    knative.apply(api, *_ambient(), *ambient.probed().values())
    freeze_proxy.install_daemon_alone(api)


@pytest.fixture(scope="session")
def with_ambient(api: Api, daemon_alone: None, say: Callable[[str], None]) -> None:
    """Services without a sidecar are ready."""
    knative.await_services(api, *(each["metadata"]["name"] for each in _ambient()))
    say("Services without a sidecar are ready.")


@pytest.fixture(scope="session")
def ambient_probed(api: Api, cluster: Cluster, with_ambient: None, say: Callable[[str], None]) -> Minute:
    """Some of them with probes of each kind, left alone from now on."""
    return Minute(api, cluster, say, ambient.probed(), ambient.SECONDS)


@pytest.fixture(scope="session")
def ambient_sent(api: Api, cluster: Cluster, ambient_probed: Minute) -> dict[str, Background[list[float]]]:
    """Requests to the others, beside the tests that follow."""
    return ambient.sent(api, cluster)


@pytest.fixture(scope="session")
def installed(api: Api, stock: None) -> None:
    """freeze-proxy is there; ``test_1_install.py`` has installed it, or it is done now."""
    if not api.find(freeze_proxy.WEBHOOK):
        freeze_proxy.install(api)


def _asked() -> list[Json]:
    """Services that are asked, directly in their pods but for ``by-activator``."""
    grpc = {"ports": [{"name": "h2c", "containerPort": 8080}]}
    return [
        knative.service("traffic", {}, knative.DIRECT),
        knative.service("grpc", grpc, knative.DIRECT),
        knative.service("by-activator", {}),
        knative.service("one-at-a-time", {}, knative.DIRECT, containerConcurrency=1),
        knative.service("ten-at-a-time", {}, knative.DIRECT, containerConcurrency=10),
        knative.service("scaling", {}, _ONE_A_POD),
        knative.service("deleted", {}, knative.DIRECT),
        knative.service("deleted-busy", {}, knative.DIRECT),
    ]


@pytest.fixture(scope="session")
def probed(api: Api, cluster: Cluster, installed: None, say: Callable[[str], None]) -> Minute:
    """Services with probes of each kind, left alone for a minute from now on."""
    services = {kind: knative.service(f"probed-{kind}", container) for kind, container in KINDS.items()}
    minute = Minute(api, cluster, say, services)
    knative.apply(api, *_asked())  # they start beside the tests that follow
    return minute


@pytest.fixture(scope="session")
def with_sidecar(api: Api, probed: Minute) -> None:
    """Services that are asked are ready."""
    knative.await_services(api, *(each["metadata"]["name"] for each in _asked()), within=90)


@pytest.fixture(scope="session")
def scaling(
    api: Api, cluster: Cluster, with_sidecar: None, with_ambient: None
) -> dict[str, tuple[Scaling, Background[None]]]:
    """Begins now."""
    made = {name: Scaling(api, cluster, name, most) for name, most in _SCALING.items()}
    return {name: (each, Background(each.run)) for name, each in made.items()}


@pytest.fixture(scope="session")
def deletions(api: Api, cluster: Cluster, with_sidecar: None, with_ambient: None) -> dict[str, Background[float]]:
    """All at the same time, since queue-proxy waits for half a minute in each."""
    names = {"frozen": "deleted", "ambient": f"{CHOSEN}deleted", "stock": "stock-deleted"}
    found = {what: Deletion(api, cluster, name, what != "stock") for what, name in names.items()}
    return {what: Background(each.run) for what, each in found.items()}
