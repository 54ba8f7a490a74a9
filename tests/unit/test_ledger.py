"""The numbers of a run, from made-up events."""

import pytest

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.local.ledger import Ledger
from freeze_proxy.local.status import table


class Meter(Freezer):
    """Its CPU time is what the test says; ``None``: it cannot be read."""

    def __init__(self) -> None:
        self.used: float | None = 10.0

    def cpu_seconds(self) -> float:
        if self.used is None:
            raise FreezeError("It is gone.")
        return self.used


def test_a_run() -> None:
    meter = Meter()
    ledger = Ledger(meter, 100.0)
    meter.used = 11.0  # while it started: not counted
    ledger.start(101.0)
    meter.used = 11.5
    ledger.frozen(102.0, 0.001)
    meter.used = 11.6
    ledger.thawed(105.0, 0.002)
    meter.used = 12.0
    ledger.frozen(106.0, 0.001)
    assert ledger.share_frozen(107.0) == pytest.approx(4 / 6)
    ledger.thawed(108.0, None)
    ledger.failed("thaw", "because")
    ledger.refused(3)
    meter.used = 12.5
    report = ledger.report(111.0, 7)
    assert report["requests"] == 7
    assert report["freezes"] == 2
    assert report["refused"] == 3
    assert report["failures"] == 1
    assert report["wall_seconds"] == 10
    assert report["frozen_seconds"] == 5
    assert report["share_frozen"] == 0.5
    assert report["cpu_seconds"] == {"serving": pytest.approx(1.4), "idle": pytest.approx(0.1)}
    thaw = report["thaw"]
    assert isinstance(thaw, dict)
    assert (thaw["count"], thaw["max_us"]) == (1, 2000)


def test_it_ends_frozen() -> None:
    ledger = Ledger(Meter(), 0.0)
    ledger.start(0.0)
    ledger.frozen(1.0, 0.0)
    report = ledger.report(4.0, 0)
    assert report["frozen_seconds"] == 3
    assert report["share_frozen"] == 0.75


def test_a_freeze_that_was_undone_counts_nothing() -> None:
    ledger = Ledger(Meter(), 0.0)
    ledger.start(0.0)
    ledger.thawed(1.0, 0.01)
    report = ledger.report(2.0, 1)
    assert report["freezes"] == 0
    assert report["frozen_seconds"] == 0


def test_a_target_that_cannot_be_read_any_more() -> None:
    """And one whose counter goes back, when a child takes its share with it."""
    meter = Meter()
    ledger = Ledger(meter, 0.0)
    ledger.start(0.0)
    meter.used = 12.0
    ledger.frozen(1.0, 0.0)
    meter.used = None
    ledger.thawed(2.0, None)
    meter.used = 5.0
    report = ledger.report(3.0, 0)
    assert report["cpu_seconds"] == {"serving": 2.0, "idle": 0.0}


def test_nothing_to_read_at_all() -> None:
    meter = Meter()
    meter.used = None
    assert Ledger(meter, 0.0).report(0.0, 0)["cpu_seconds"] == {"serving": 0.0, "idle": 0.0}


def test_the_table_shows_failures_only_where_there_are() -> None:
    ledger = Ledger(Meter(), 0.0)
    shown = table(ledger.report(1.0, 0))
    assert "503" not in shown
    assert "failed" not in shown
    assert "–" in shown
    ledger.failed("freeze", "because")
    ledger.refused(2)
    shown = table(ledger.report(1.0, 0))
    assert "answered 503" in shown
    assert "failed freezes and thaws" in shown
    assert len({len(line) for line in shown.splitlines()[1:]}) == 1
