"""Each mode and setting of the gate once, with a server that ticks: its ticks tell when it ran."""

import sys
import time
from itertools import pairwise
from pathlib import Path

import httpx

from tests.support.needs import need_root
from tests.support.servers import SERVERS, ticker
from tests.support.starting import Start, Started
from tests.support.wait import until
from tests.traffic.servers.ticker import EVERY


def _ticks(running: Started) -> list[float]:
    return [float(line.split()[1]) for line in running.stdout().splitlines() if line.count(b" ") == 1]


def _stood_still(running: Started) -> list[tuple[float, float]]:
    """From when until when, as the events have it."""
    spans: list[tuple[float, float]] = []
    since = None
    for event in list(running.events):
        if event["event"] == "frozen":
            since = event["monotonic"]
        elif event["event"] == "thawed" and since is not None:
            spans.append((since, event["monotonic"]))
            since = None
    return spans


def _get(running: Started) -> None:
    assert httpx.get(f"http://{running.address}/", timeout=10, trust_env=False).text == "ok\n"


def test_freeze_no_tick_while_frozen_and_every_tick_while_awake(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, ticker(tmp_path), "--grace", "50ms") as running:
        for _ in range(5):
            running.await_frozen()
            _get(running)
        running.await_frozen()
        ticks, spans = _ticks(running), _stood_still(running)
    assert len(spans) >= 5
    for since, until_ in spans:
        assert not [tick for tick in ticks if since < tick < until_]
    for (_, awake), (frozen, _) in pairwise(spans):
        assert len([tick for tick in ticks if awake <= tick <= frozen]) >= (frozen - awake) / EVERY / 4


def test_breathe_lets_ticks_through_in_bursts(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, ticker(tmp_path), "--grace", "50ms", "--breathe", "300ms/100ms") as running:
        running.await_frozen()
        until(lambda: running.count("frozen") >= 6, "it has breathed five times")
        ticks, spans = _ticks(running), _stood_still(running)
        report = running.end()
    assert report["requests"] == 0
    for since, until_ in spans:
        assert 0.28 < until_ - since < 0.6
        assert not [tick for tick in ticks if since < tick < until_]
    for (_, awake), (frozen, _) in pairwise(spans):
        assert 0.09 < frozen - awake < 0.4
        assert [tick for tick in ticks if awake <= tick <= frozen]


def test_a_request_interrupts_breathing(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, ticker(tmp_path), "--grace", "20ms", "--breathe", "100ms/20ms") as running:
        for _ in range(5):
            running.await_frozen()
            _get(running)
        report = running.end()
    assert report["requests"] == 5
    assert report["refused"] == 0


def test_dry_run_says_what_it_would_do_and_lets_it_run(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, ticker(tmp_path), "--mode", "dry-run", "--grace", "20ms") as running:
        for _ in range(3):
            mark = running.mark()
            running.await_event("frozen", max(0, mark - 1))
            _get(running)
            running.await_event("thawed", mark)
        running.await_event("frozen", running.mark() - 1)
        before = len(_ticks(running))
        until(lambda: len(_ticks(running)) > before + 5, "the ticks go on")
        gaps = [later - earlier for earlier, later in pairwise(_ticks(running))]
        report = running.end()
    assert report["freezes"] >= 3
    assert sorted(gaps)[len(gaps) // 2] < 3 * EVERY


def test_off_only_relays(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, ticker(tmp_path), "--mode", "off", "--grace", "1ms") as running:
        _get(running)
        before = len(_ticks(running))
        until(lambda: len(_ticks(running)) > before + 10, "the ticks go on")
        _get(running)
        assert {event["event"] for event in running.events} <= {"start"}
        report = running.end()
    assert report["freezes"] == 0
    assert report["requests"] == 2


def test_throttle_leaves_a_server_a_little(start: Start, tmp_path: Path) -> None:
    need_root()
    burning = "import threading\nfrom tests.traffic.servers import http_server\n"
    burning += "def burn():\n    while True: sum(range(10000))\n"
    burning += "threading.Thread(target=burn, daemon=True).start()\n"
    burning += (
        "import os\nhttp_server.Server(('127.0.0.1', int(os.environ['PORT'])), http_server.Handler).serve_forever()\n"
    )
    with start(tmp_path, [sys.executable, "-c", burning], "--mode", "throttle", "--grace", "50ms") as running:
        assert running.freezer == "throttle"
        running.await_frozen()
        used, since = running.cpu_seconds(), time.monotonic()
        time.sleep(1.5)  # the span over which its CPU time is measured
        share = (running.cpu_seconds() - used) / (time.monotonic() - since)
        assert share < 0.1
        response = httpx.get(f"http://{running.address}/slow", timeout=10, trust_env=False)
        assert response.text == "first\nsecond\n"
        assert not running.is_frozen() or running.count("frozen") > 1
        assert running.cpu_seconds() - used > 0.05  # it burned while it served, throttled it would have had 3 ms
        running.await_frozen()
        report = running.end()
    assert report["freezes"] >= 2


def test_ready_path_holds_the_first_freeze_back(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, SERVERS["node"](tmp_path), "--ready-path", "/204", "--grace", "10ms") as running:
        running.await_frozen()
        assert httpx.get(f"http://{running.address}/echo", trust_env=False).text.startswith("GET /echo\n")
        assert running.end()["requests"] == 1
