"""`make demo` from end to end: it runs, it judges, and its judgement is its exit code."""

import subprocess
import sys
from pathlib import Path

from scripts.demo_record import Run, verdict

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_demo_succeeds(tmp_path: Path) -> None:
    done = run_demo("--save", str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.load(tmp_path / "run.json")
    assert verdict(run) == []
    assert len(run.requests) == 4
    assert len(run.frozen) >= 4
    assert "tick 1\n" in done.stdout
    assert "frozen, within" in done.stdout
    assert "All 4 requests were answered" in done.stdout


def test_the_demo_fails_where_the_server_is_not_frozen() -> None:
    done = run_demo("--", "--mode", "off")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "it was frozen for 0.0 of" in done.stdout


def test_the_demo_fails_where_freeze_proxy_does_not_start() -> None:
    done = run_demo("--", "--no-such-option")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "freeze-proxy did not start." in done.stdout
    assert "--no-such-option" in done.stdout
