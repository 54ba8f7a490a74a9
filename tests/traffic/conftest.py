"""The traffic matrix: with the relay of ``freeze-proxy run``, with nothing before the server (ambient), and with the
sidecar in a real pod. What is about the relay's own doings is marked ``relay_only``."""

import pytest

from tests.support.ambience import need_ambient
from tests.support.racing import SOAK, table
from tests.support.running import Beside, Running
from tests.support.starting import Many, Start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about the relay is not there without one."""
    items[:] = [
        item
        for item in items
        if item.get_closest_marker("relay_only") is None
        or getattr(item, "callspec", None) is None
        or item.callspec.params.get("start") != "ambient"  # type: ignore[attr-defined]
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What races have come to."""
    reports = (each for some in terminalreporter.stats.values() for each in some if getattr(each, "when", "") == "call")
    outcomes = {
        report.nodeid.rpartition("::")[2]: value
        for report in reports
        for name, value in report.user_properties
        if name == "race"
    }
    if outcomes:
        terminalreporter.section("requests that raced freezes")
        for line in table(outcomes):
            terminalreporter.write_line(line)


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
    """Elsewhere fewer, as these have been made by then. A soak has more than ten thousand freezes in pods
    (``make soak``), and a hundred thousand tries with nothing before the server (``make race``)."""
    if SOAK:
        return lambda count: count * (20 if start is Beside else 10)
    return lambda count: count if start is Running else count // 2
