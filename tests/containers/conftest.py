"""What the tests with real containers share."""

from collections.abc import Iterator

import pytest

from tests.support.cluster.containerd import RUNTIMES, Containerd
from tests.support.cluster.kubelet import Kubelet


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


@pytest.fixture
def kubelet(containerd: Containerd) -> Iterator[Kubelet]:
    """Runs pods; those that a test leaves are deleted."""
    made = Kubelet(containerd)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Each low-level runtime."""
    return str(request.param)
