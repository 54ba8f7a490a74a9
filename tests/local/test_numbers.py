"""The numbers of a run: report, table and end event agree with each other and with what happened."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.proxies import Proxies, Proxy, need_freezer
from tests.support.wait import until

pytestmark = pytest.mark.alone


def end(proxy: Proxy, path: Path) -> dict[str, Any]:
    assert proxy.end() == 143
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_report_table_and_event_agree(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    proxy = proxies.run(options=["--freezer", freezer, "--report", str(path), "--grace", "50ms"])
    assert proxy.start
    for number in range(5):
        proxy.event("frozen", number)
        proxy.get()
    proxy.event("frozen", 5)
    where = proxy.where
    report = end(proxy, path)
    event = proxy.event("end")
    assert {key: value for key, value in event.items() if key not in ("time", "event")} == report
    assert report["requests"] == 5
    assert report["freezes"] == len(proxy.events("frozen")) == 6
    assert report["refused"] == report["failures"] == 0
    assert report["freezer"] == freezer
    assert report["where"] == where
    assert report["exit_code"] == 143
    assert 0 < report["frozen_seconds"] < report["wall_seconds"]
    assert report["share_frozen"] == pytest.approx(report["frozen_seconds"] / report["wall_seconds"], abs=1e-5)
    thaw = report["thaw"]
    assert thaw["count"] == 5 == sum(count for _, count in thaw["histogram"])
    waits = sorted(event["waited_us"] for event in proxy.events("thawed") if event["waited_us"] is not None)
    assert thaw["max_us"] == pytest.approx(waits[-1], abs=1)
    assert waits[2] - 1 <= thaw["p50_us"] <= waits[2] * 1.1 + 1
    assert thaw["p50_us"] <= thaw["p99_us"] <= thaw["max_us"]
    # Frozen from the end of each event to the thaw, by the log's own clock.
    pairs = zip(proxy.events("frozen"), proxy.events("thawed"), strict=True)
    assert report["frozen_seconds"] == pytest.approx(
        sum(thawed["monotonic"] - frozen["monotonic"] for frozen, thawed in pairs), abs=0.01
    )
    table = proxy.err().partition("freeze-proxy ")[2]
    rows = dict(re.findall(r"│ (\S.*?) +│ +(\S.*?) │", table))
    assert rows["requests"] == "5"
    assert rows["freezes"] == "6"
    assert rows["frozen"] == f"{report['frozen_seconds']:.1f} s of {report['wall_seconds']:.1f} s"
    assert rows["share of time frozen"] == f"{report['share_frozen']:.1%}"
    assert rows["CPU while serving"] == f"{report['cpu_seconds']['serving']:.3f} s"
    assert rows["CPU while idle"] == f"{report['cpu_seconds']['idle']:.3f} s"
    assert rows["thaw, p50"] == f"{thaw['p50_us'] / 1e3:.2f} ms"
    assert rows["thaw, max"] == f"{thaw['max_us'] / 1e3:.2f} ms"


def test_a_server_that_stands_still_uses_no_cpu(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    """One that computes in the background, most of the time frozen; what it uses is what it uses awake."""
    path = tmp_path / "report.json"
    proxy = proxies.run("burn", options=["--freezer", freezer, "--report", str(path), "--grace", "200ms"])
    assert proxy.start
    for number in range(3):
        proxy.event("frozen", number)
        proxy.get("/busy0.1")
    since = proxy.event("frozen", 3)["monotonic"]
    until(lambda: time.monotonic() - since > 0.5, "it has stood still for half a second")
    report = end(proxy, path)
    cpu = report["cpu_seconds"]
    # Running it would have used all of the half second. /proc, which `process` reads, counts in ticks of 10 ms.
    assert report["frozen_seconds"] > 0.5
    assert cpu["idle"] < 0.02 * report["freezes"]
    assert 0.3 <= cpu["serving"] < report["wall_seconds"] - report["frozen_seconds"] + 0.1


def test_a_dry_run_shows_what_would_be_saved(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    options = ["--freezer", freezer, "--report", str(path), "--mode", "dry-run"]
    proxy = proxies.run("burn", options=options)
    assert "dry run: nothing is frozen" in proxy.start["message"]
    proxy.event("frozen")
    until(lambda: _cpu_of(proxy.server) > 0.3, "it has used a while of CPU")
    assert not proxy.frozen()
    proxy.get()
    proxy.event("frozen", 1)
    report = end(proxy, path)
    assert report["requests"] == 1
    assert report["freezes"] == 2
    assert report["cpu_seconds"]["idle"] > 0.1
    assert report["freezer"] == "none"


def test_off_only_relays(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    proxy = proxies.run(options=["--freezer", freezer, "--report", str(path), "--mode", "off"])
    assert "freezing nothing" in proxy.start["message"]
    assert proxy.get("/slow") == b"/slow"
    report = end(proxy, path)
    assert report["requests"] == 1
    assert report["freezes"] == 0
    assert report["frozen_seconds"] == 0
    assert proxy.events("frozen") == []


def test_throttled_it_goes_on_slowly(proxies: Proxies, tmp_path: Path) -> None:
    need_freezer("cgroup1")
    path, ticks = tmp_path / "report.json", tmp_path / "ticks"
    options = ["--mode", "throttle", "--report", str(path), "--grace", "100ms"]
    proxy = proxies.run("burn", f"tick={ticks}", options=options)
    assert proxy.start["freezer"] == "throttle"
    assert proxy.start["message"].startswith("http://")
    proxy.event("frozen")
    before = ticks.stat().st_size
    until(lambda: ticks.stat().st_size > before, "it goes on")
    proxy.get("/busy0.1")
    proxy.event("frozen", 1)
    until(lambda: _cpu_of(proxy.server) >= 0.1, "it has worked")
    report = end(proxy, path)
    assert report["requests"] == 1
    assert report["cpu_seconds"]["serving"] > 0.1
    assert report["cpu_seconds"]["idle"] < report["cpu_seconds"]["serving"]


def test_it_breathes(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    proxy = proxies.run(f"tick={ticks}", options=["--freezer", freezer, "--breathe", "100ms/50ms"])
    assert proxy.start
    proxy.event("frozen", 4)
    assert ticks.stat().st_size > 0
    assert all(event["waited_us"] is None for event in proxy.events("thawed"))
    assert proxy.end() == 143


def _cpu_of(pid: int) -> float:
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
