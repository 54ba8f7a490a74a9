"""The traffic matrix: with the relay of ``freeze-proxy run``, with nothing before the server (ambient), and with the
sidecar in a real pod. What is about the relay's own doings is marked ``relay_only``."""

import os

import pytest

from tests.support.ambience import need_ambient
from tests.support.running import Beside, Running
from tests.support.starting import Many, Start

_FEWER = 5
"""In a pod a try takes no longer, but all the others have been made by then."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about the relay is not there without one."""
    items[:] = [
        item
        for item in items
        if item.get_closest_marker("relay_only") is None
        or getattr(item, "callspec", None) is None
        or item.callspec.params.get("start") != "ambient"  # type: ignore[attr-defined]
    ]


@pytest.fixture(scope="session", params=["run", "ambient", "pod"])
def start(request: pytest.FixtureRequest) -> Start:
    """Each way to have freeze-proxy before a server."""
    if request.param == "run":
        return Running
    if request.param == "ambient":
        need_ambient()
        return Beside
    made: Start = request.getfixturevalue("rig").run
    return made


@pytest.fixture
def many(start: Start) -> Many:
    """Elsewhere fewer, unless it is a soak: then there are ten thousand freezes in a pod (``make soak``), and more than
    a hundred thousand tries with nothing before the server (``make race``)."""
    if os.environ.get("FREEZE_PROXY_SOAK") == "yes":
        return lambda count: count * (10 if start is Beside else 5)
    return lambda count: count if start is Running else count // 2 if start is Beside else count // _FEWER
