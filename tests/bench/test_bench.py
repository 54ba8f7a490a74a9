"""The benchmark works: one quick scenario, and what it writes has the shape that the page is made from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ambience import need_ambient
from tests.support.cluster.cgroups import processes_in
from tests.support.needs import need_program, need_root
from tests.support.wait import until

pytestmark = pytest.mark.alone

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


def test_the_daemon_beside_every_other_way_and_with_hundreds_of_containers(tmp_path: Path) -> None:
    need_the_runtimes()
    ran = bench("--quick", "--only", "daemon", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr

    results = json.loads((tmp_path / "latest.json").read_text())
    daemon = results["daemon"]
    assert daemon["missing"] == daemon["missing_ways"] == {}
    for when in ("alone", "among"):
        ways = daemon["ways"][when]
        assert {"daemon", "daemon-2", "daemon-containerd", "tasks", "docker", "runc"} < set(ways)
        assert ways.keys() & {"write", "write-v2"}
        for name, figures in ways.items():
            for order in ("freeze", "thaw"):
                assert figures[order]["count"] >= 6, name
                assert 0 < figures[order]["p50"] <= figures[order]["p99"], name
        assert ways["daemon"]["thaw"]["p50"] < ways["tasks"]["thaw"]["p50"]
    assert daemon["first"]["freeze"]["count"] == 3
    assert daemon["first"]["freeze"]["p50"] > daemon["first"]["review"]["p50"] > 0

    assert {name: (load["pods"], load["each"]) for name, load in daemon["loads"].items()} == {
        "pods": (200, 1),
        "fours": (50, 4),
    }
    for load in (*daemon["loads"].values(), *daemon["memory"].values()):
        assert load["sent"] == load["answered"] > 500
        assert (load["lost"], load["wrong"], load["differ"]) == (0, [], 0)
        assert load["known"] == load["pods"]
        assert load["leases"] == load["pods"] / 2
        assert 0 < load["cpu_share"] < 1
        assert load["memory_kib"]["after"]["daemon"]["Rss"] > load["memory_kib"]["after"]["supervisor"]["Rss"] > 5000

    met = {goal["limit"]: goal["met"] for goal in results["goals"]}
    assert met["p99 ≤ 5 ms, nothing lost"] is None, "a few seconds are not a minute"
    assert met["≤ 45 MiB"] is None, "nor are fifty pods a node"
    page = (tmp_path / "benchmarks.md").read_text()
    assert "containerd, Tasks API" in page
    assert "images/bench-pausing.svg" in page
    assert (tmp_path / "images/bench-pausing.svg").read_text().startswith("<?xml")


def test_the_webhook_at_the_rate_of_a_cluster_in_a_hurry(tmp_path: Path) -> None:
    ran = bench("--quick", "--only", "webhook", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr

    results = json.loads((tmp_path / "latest.json").read_text())
    for load in results["webhook"]["loads"].values():
        assert load["reviews"] == 200
        assert load["wrong"] == []
        assert 50 < load["cpu_us"] < 20_000
        assert 0 < load["ms"]["p50"] <= load["ms"]["p99"] <= load["ms"]["max"]
    met = {goal["goal"]: goal["met"] for goal in results["goals"]}
    assert met["webhook, CPU a review"] in (True, False)
    assert met["webhook, 100 reviews a second, on one core"] is None, "two seconds are not half a minute"
    assert "a new connection for each" in (tmp_path / "benchmarks.md").read_text()


def test_ambient_beside_no_proxy_the_relay_and_nginx(tmp_path: Path) -> None:
    need_program("wrk", "wrk")
    need_program("nginx", "nginx-light")
    need_ambient()
    ran = bench("--quick", "--only", "ambient", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr

    ambient = json.loads((tmp_path / "latest.json").read_text())["ambient"]
    for load in ambient["awake"]["loads"].values():
        assert set(load["ways"]) == {"direct", "wake", "observe", "relay", "nginx"}
        for name, way in load["ways"].items():
            assert 1 < way["cpu_us"]["median"] < 10_000, name
            assert 0 < way["p50_us"]["median"] <= way["p99_us"]["median"], name
    assert ambient["wake"]["own_report"]["freezes"] >= ambient["wake"]["wakes"] / 2
    assert 0 < ambient["crowd"]["kernel_kib_each"]["wake"] < ambient["crowd"]["kernel_kib_each"]["observe"] < 100
    assert ambient["crowd"]["others_cpu_seconds"] == 0
    assert "A thousand frozen servers" in (tmp_path / "benchmarks.md").read_text()


def test_ambient_pods_and_what_a_daemon_pays_for_them(tmp_path: Path) -> None:
    need_ambient()
    need_root()
    ran = bench("--quick", "--only", "ambient-node", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    node = json.loads((tmp_path / "latest.json").read_text())["ambient-node"]
    assert node["others"] == {"cpu_us": 0, "woken": 0}
    assert node["questions"] == 0
    for source in ("observed", "counted"):
        assert all(node[source]["kinds"]["new"][when]["p50"] > 0 for when in ("frozen", "awake", "rested"))
    assert min(node["heard_s"]) > 0
    assert max(node["heard_s"]) < 10
    assert "Ambient pods: the daemon of a node" in (tmp_path / "benchmarks.md").read_text()


@pytest.mark.parametrize("during", ["freeze-proxy-test", "freeze-proxy-bench"])
def test_a_daemon_benchmark_that_is_told_to_end_leaves_no_cgroup_behind(during: str, tmp_path: Path) -> None:
    """In the middle of its first measurement and of its second."""
    need_the_runtimes()
    command = [sys.executable, "-m", "bench", "--quick", "--only", "daemon", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: processes_in(made_by(process.pid, during)), f"there are cgroups {during}", 60, every=0.1)
        finally:
            process.terminate()
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert not made_by(process.pid)


def made_by(pid: int, name: str = "freeze-proxy") -> list[Path]:
    """The cgroups that a benchmark has made."""
    return [
        Path(folder, made)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for made in names
        if made.startswith(name) and f"-{pid}" in made
    ]


def need_the_runtimes() -> None:
    need_root()
    for program, package in (("containerd", "containerd"), ("runc", "runc"), ("dockerd", "docker.io")):
        need_program(program, package)
