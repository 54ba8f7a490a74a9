"""The traffic matrix: with ``freeze-proxy run``, and with the sidecar in a real pod."""

import os

import pytest

from tests.support.running import Running
from tests.support.starting import Many, Start

_FEWER = 5
"""In a pod a try takes no longer, but all the others have been made by then."""


@pytest.fixture(scope="session", params=["run", "pod"])
def start(request: pytest.FixtureRequest) -> Start:
    """Each way to have freeze-proxy before a server."""
    if request.param == "run":
        return Running
    made: Start = request.getfixturevalue("rig").run
    return made


@pytest.fixture
def many(start: Start) -> Many:
    """In a pod fewer, unless it is a soak: then there are ten thousand freezes (``make soak``)."""
    if os.environ.get("FREEZE_PROXY_SOAK") == "yes":
        return lambda count: count * 5
    return lambda count: count if start is Running else count // _FEWER
