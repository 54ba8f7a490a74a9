"""What the benchmark measures of the sidecar in pods works: a quick look, whose figures mean nothing."""

from pathlib import Path

import pytest

from bench import report, sidecar
from bench.programs import own_folder
from tests.support.needs import need_program
from tests.support.pods import Rig


@pytest.mark.timeout(300)
def test_a_quick_look(rig: Rig, tmp_path: Path) -> None:
    need_program("wrk", "wrk")
    need_program("nginx", "nginx-light")
    with own_folder() as folder:
        measured = sidecar.measure(rig, folder, True, lambda _: None)
    for taken in measured["wake"]["kinds"].values():
        assert all(0 < figures["p50"] <= figures["p99"] for figures in taken.values())
    assert 1 < measured["awake"]["sidecar"]["median"] < 10_000
    assert measured["requests"] > 100
    assert 1000 < measured["memory_kib"]["after"]["Rss"] < 20_000
    assert measured["start_ms"]["median"] > 1
    results = {"quick": True, "machine": {}, "sidecar": measured}
    (cpu,) = [goal for goal in report.goals(results) if goal.limit == "≤ 1.05 × the relay alone's"]
    assert cpu.met in (True, False)
    (memory,) = [goal for goal in report.goals(results) if goal.what.startswith("RSS of the sidecar")]
    assert memory.met is None, "it says nothing after so few"
    assert "## The sidecar in a pod" in report.document(results)
