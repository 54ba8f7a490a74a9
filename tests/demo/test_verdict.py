"""The demo's checker: a good run passes it, and each thing that could be wrong is found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.demo_record import AFTER_FREEZE, BEFORE_THAW, LINES, Frozen, Run, Tick, pauses, verdict
from tests.demo.runs import good_run


def test_a_good_run_has_no_faults() -> None:
    assert verdict(good_run()) == []


@pytest.mark.parametrize("at", [100.102, 101.0, 101.9, 104.5, 106.94])
def test_a_tick_in_a_frozen_span_is_a_fault(at: float) -> None:
    run = good_run()
    times = sorted([*(tick.at for tick in run.ticks), at])
    run = replace(run, ticks=tuple(Tick(number, when) for number, when in enumerate(times, 1)))
    (fault,) = verdict(run)
    assert "appeared while frozen" in fault


@pytest.mark.parametrize("at", [100.1 + AFTER_FREEZE / 2, 102.0003 - BEFORE_THAW / 2])
def test_the_edges_of_a_frozen_span_are_tolerated(at: float) -> None:
    run = good_run()
    times = sorted([*(tick.at for tick in run.ticks), at])
    assert verdict(replace(run, ticks=tuple(Tick(number, when) for number, when in enumerate(times, 1)))) == []


def test_a_tick_in_a_span_that_never_ended_is_a_fault() -> None:
    run = good_run()
    run = replace(run, ticks=(*run.ticks, Tick(10, 110.0)), ended=112.0)
    assert "appeared while frozen" in verdict(replace(run, frozen=(*run.frozen, Frozen(109.1, None))))[0]


def test_a_lost_tick_is_a_fault() -> None:
    run = good_run()
    (fault,) = verdict(replace(run, ticks=run.ticks[:2] + run.ticks[3:]))
    assert fault == "Between tick 2 and tick 4 something was lost."


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"error": "ConnectionResetError: gone"}, "request 1 failed: ConnectionResetError: gone."),
        ({"ended": None}, "request 1 failed: it never ended."),
        ({"status": 503}, "request 1 was answered with status 503, not 200."),
        ({"lines": LINES[:1]}, "not Hm? One moment. / Here you are."),
        ({"lines": ()}, "request 1 was answered nothing"),
        ({"lines": LINES[::-1]}, "request 1 was answered Here you are. / Hm?"),
        ({"ended": 103.9}, "request 1 took 1.900 s"),
    ],
)
def test_a_failed_request_is_a_fault(changes: dict[str, Any], says: str) -> None:
    run = good_run()
    first, second = run.requests
    faults = verdict(replace(run, requests=(replace(first, **changes), second)))
    assert any(says in fault for fault in faults), faults


def test_a_request_without_ticks_is_a_fault() -> None:
    run = good_run()
    faults = verdict(replace(run, ticks=run.ticks[5:]))
    assert faults == ["request 1 saw 0 ticks: the server hardly ran while it was answered."]


def test_a_server_that_was_never_frozen_is_a_fault() -> None:
    faults = verdict(replace(good_run(), frozen=()))
    assert len(faults) == 2
    assert all("it was frozen for 0.0 of" in fault for fault in faults)


def test_the_exit_code_and_the_report_count() -> None:
    run = good_run()
    assert "exit code 125" in verdict(replace(run, exit_code=125))[0]
    assert "reports 3 requests; 2 were sent" in verdict(replace(run, report={**run.report, "requests": 3}))[0]
    assert "reports None requests" in verdict(replace(run, report={}))[0]


def test_overlapping_requests_leave_no_pause_between_them() -> None:
    run = good_run()
    first, second = run.requests
    second = replace(second, began=103.0, ended=105.5)
    assert pauses(replace(run, requests=(first, second))) == [(100.0, 102.0), (105.5, 109.0)]


def test_a_run_is_the_same_after_saving(tmp_path: Path) -> None:
    run = good_run()
    run.save(tmp_path / "sub" / "run.json")
    assert Run.load(tmp_path / "sub" / "run.json") == run
