"""What the tests with real containers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ambience import need_ambient
from tests.support.api_server import ApiServer
from tests.support.cluster.containerd import RUNTIMES, Containerd
from tests.support.cluster.crio_stand_in import CrioStandIn
from tests.support.cluster.dockerd import Dockerd
from tests.support.cluster.kubelet import Kubelet
from tests.support.daemons import Daemon
from tests.support.node import Node
from tests.support.proxies import Proxies


@pytest.fixture(scope="session")
def session_containerd() -> Iterator[Containerd]:
    """One containerd for all tests: it takes a second to start."""
    made = Containerd()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def containerd(session_containerd: Containerd) -> Containerd:
    """A containerd that serves; a test may kill it, the next one finds it started again."""
    session_containerd.ensure()
    return session_containerd


@pytest.fixture(scope="session")
def unified_containerd() -> Iterator[Containerd]:
    """One for all tests of ambient pods: its containers are on cgroup2 alone. ``ensure`` that it serves."""
    need_ambient()
    made = Containerd(unified=True)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def kubelet(containerd: Containerd) -> Iterator[Kubelet]:
    """Runs pods; those that a test leaves are deleted."""
    made = Kubelet(containerd)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def session_dockerd(session_containerd: Containerd) -> Iterator[Dockerd]:
    """One dockerd for all tests, on the same containerd."""
    session_containerd.ensure()
    made = Dockerd(session_containerd)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def dockerd(session_dockerd: Dockerd, containerd: Containerd) -> Iterator[Dockerd]:
    """A dockerd that serves; containers that a test leaves are removed."""
    session_dockerd.ensure()
    try:
        yield session_dockerd
    finally:
        containerd.ensure()
        session_dockerd.ensure()
        session_dockerd.clear()


@pytest.fixture
def crio_stand_in(kubelet: Kubelet) -> Iterator[CrioStandIn]:
    """What speaks as CRI-O does, for the containers of the kubelet's pods."""
    made = CrioStandIn(kubelet.containerd)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Each low-level runtime."""
    return str(request.param)


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """A stand-in for the API server, in a thread, at an address of its own."""
    with ApiServer(tmp_path / "api-server") as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, containerd: Containerd, kubelet: Kubelet, api_server: ApiServer) -> Iterator[Node]:
    """Runs pods and daemons; looks at the end whether a daemon's log has a token in it."""
    made = Node(tmp_path, containerd, kubelet, api_server)
    yield made
    made.check_logs()


@pytest.fixture
def daemon(node: Node) -> Iterator[Daemon]:
    """One that runs, with the settings as they are by default."""
    with node.daemon() as daemon:
        yield daemon


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[Proxies]:
    """Starts freeze-proxy; ends what the test has left."""
    made = Proxies(tmp_path)
    yield made
    made.close()
