"""Settings for all tests.

Hypothesis: a profile that is quick, and one that searches for long. ``HYPOTHESIS_FACTOR=20`` multiplies every test's
number of examples by twenty.
"""

import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.support.cluster.images import Images
    from tests.support.pods import Rig

# Tests fork, and gRPC's own handlers for that end the child where another thread of gRPC's is at work.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_FACTOR = float(os.environ.get("HYPOTHESIS_FACTOR", "1"))

settings.register_profile(
    "freeze-proxy",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=max(1, round(200 * _FACTOR)),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("freeze-proxy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first that needs the images waits until they are built."""
    for item in items:
        if "images" in getattr(item, "fixturenames", ()) or _needs_images(item.nodeid):
            item.add_marker(pytest.mark.timeout(300))


def _needs_images(nodeid: str) -> bool:
    return nodeid.startswith(("tests/image/", "tests/pods/")) or re.search(r"[\[-]pod[\]-]", nodeid) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests, one builds the images and has all that need them; else a file's tests
    stay together, for what they share."""
    from xdist.scheduler import LoadScopeScheduling

    made = LoadScopeScheduling(config, log)
    made._split_scope = lambda nodeid: "images" if _needs_images(nodeid) else nodeid.partition("::")[0]
    return made


@pytest.fixture(autouse=True)
def _log_as_ever() -> None:
    """Commands that earlier tests have run in this process have set up a log, from a level on of their own."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("freeze_proxy").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Images"]:
    """The container images, built once for all tests."""
    from tests.support.cluster.images import built

    with built(tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest.fixture(scope="session")
def rig(images: "Images", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Rig"]:
    """A node whose pods have the sidecar's image in them."""
    from tests.support import pods

    with pods.rig(images, tmp_path_factory.mktemp("rig")) as made:
        yield made
