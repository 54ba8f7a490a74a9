"""The benchmark works: one quick scenario, and what it writes has the shape that the page is made from."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.needs import need_program

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_a_quick_scenario_gives_figures_goals_and_a_page(tmp_path: Path) -> None:
    need_program("wrk", "wrk")
    need_program("nginx", "nginx-light")
    ran = bench("--quick", "--only", "relay", "--scenario", "small-16", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr

    results = json.loads((tmp_path / "latest.json").read_text())
    assert results["quick"] is True
    assert results["machine"]["relay"]["kernel"]
    relay = results["relay"]
    assert list(relay["scenarios"]) == ["small-16"]
    measured = relay["scenarios"]["small-16"]["candidates"]
    assert {"direct", "relay", "relay-off", "nginx"} <= set(measured)
    assert {*measured, *relay["missing"]} >= {"haproxy", "go", "go-pool"}
    for name, figures in measured.items():
        assert figures["errors"] == 0, name
        assert figures["requests"] > 100, name
        assert 0 < figures["p50_us"]["median"] <= figures["p99_us"]["median"], name
        assert ("cpu_us" in figures) == (name != "direct")
        if name != "direct":
            assert 1 < figures["cpu_us"]["median"] < 10_000, name
            assert relay["memory_kib"][name]["rss"] > 1000, name
    assert relay["start_ms"]["relay"]["median"] > 1

    by_limit = {goal["limit"]: goal for goal in results["goals"]}
    assert by_limit["≤ 1 × nginx's"]["met"] in (True, False)
    assert by_limit["exactly 0"]["met"] is None, "what was not measured is not claimed"

    page = (tmp_path / "benchmarks.md").read_text()
    assert "small responses, 16 connections" in page
    for picture in ("bench-cpu.svg", "bench-footprint.svg"):
        assert f"images/{picture}" in page
        assert (tmp_path / "images" / picture).read_text().startswith("<?xml")


def test_a_partial_run_does_not_replace_the_results_of_the_repository() -> None:
    ran = bench("--quick")
    assert ran.returncode == 2
    assert "--out" in ran.stderr


def test_the_soak_leaves_nothing_in_flight(tmp_path: Path) -> None:
    need_program("nginx", "nginx-light")
    ran = bench("--quick", "--only", "soak", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr

    soak = json.loads((tmp_path / "latest.json").read_text())["soak"]
    assert soak["lost"] == []
    assert soak["completed"] >= 20_000
    assert soak["aborted_connections"] > 100
    assert soak["relay"]["freezes"] > 1, "requests have met the gate shut"
    assert soak["relay"]["in_flight"] == 0
    assert soak["relay"]["connections"] == 0
