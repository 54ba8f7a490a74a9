"""The process above the daemon: thaws when that dies or hangs, and tells it of its own end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeze_proxy.daemon.journal import Journal, Record
from freeze_proxy.freezers import Freezer, cgroup
from freeze_proxy.freezers.remade import remade
from tests.support.needs import need, need_root
from tests.support.running import processes_below
from tests.support.wait import until

SCRIPT = """
import os, select, signal, sys, time
from freeze_proxy.daemon import supervisor
supervisor._FIRST_PULSE = supervisor._NO_PULSE = 0.3

def serve(line):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(3))
    what = sys.argv[2]
    print(os.getpid(), flush=True)
    if what == "wrong":
        raise RuntimeError
    while not ended:
        if what != "hang":
            line.beat()
        if select.select([line], [], [], 0.05)[0]:
            print("alone", flush=True)
            return 4
    return ended[0]

sys.exit(supervisor.supervise(serve, sys.argv[1], "info"))
"""


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    """Of a process that stands still."""
    need_root()
    kind, hierarchy = ("cgroup1", "freezer") if cgroup.place("freezer") else ("cgroup2", "cgroup2")
    need(cgroup.place(hierarchy) is not None, "This machine has no cgroups.")
    path = cgroup.create(hierarchy, f"freeze-proxy-test-{os.getpid()}")
    process = subprocess.Popen(["sleep", "60"])
    Path(path, "cgroup.procs").write_text(str(process.pid))
    freezer = remade([kind, path])
    freezer.freeze()
    until(freezer.still, "it stands still")
    try:
        yield freezer
    finally:
        freezer.thaw()
        freezer.close()
        process.kill()
        process.wait()
        assert cgroup.remove(path)


class Supervised:
    def __init__(self, state: Path, what: str, freezer: Freezer) -> None:
        record = Record("uid", "ns", "pod", "user-container", "abc", 1, list(freezer.way))
        Journal(str(state)).entry(record).mark(True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(state), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err


def test_killed_the_daemon_leaves_nothing_frozen(tmp_path: Path, freezer: Freezer) -> None:
    supervised = Supervised(tmp_path, "go", freezer)
    os.kill(supervised.pid, signal.SIGKILL)
    begun = time.monotonic()
    until(lambda: not freezer.still(), "it is thawed", every=0.0005)
    assert time.monotonic() - begun < 1.0
    code, _, err = supervised.end()
    assert code == 128 + signal.SIGKILL
    assert '"how": "ended by signal 9", "thawed": 1, "troubles": []' in err


def test_a_daemon_that_hangs_is_killed(tmp_path: Path, freezer: Freezer) -> None:
    code, _, err = Supervised(tmp_path, "hang", freezer).end()
    assert code == 128 + signal.SIGKILL
    assert "hung, and was killed" in err
    assert not freezer.still()


def test_a_stopped_daemon_is_one_that_hangs(tmp_path: Path, freezer: Freezer) -> None:
    supervised = Supervised(tmp_path, "go", freezer)
    os.kill(supervised.pid, signal.SIGSTOP)
    assert supervised.end()[0] == 128 + signal.SIGKILL
    assert not freezer.still()


def test_a_mistake_is_told_and_leaves_nothing_frozen(tmp_path: Path, freezer: Freezer) -> None:
    code, _, err = Supervised(tmp_path, "wrong", freezer).end()
    assert code == 1
    assert "RuntimeError" in err
    assert not freezer.still()


def test_a_signal_is_passed_on_and_the_exit_code_comes_back(tmp_path: Path, freezer: Freezer) -> None:
    supervised = Supervised(tmp_path, "go", freezer)
    supervised.process.terminate()
    code, _, _ = supervised.end()
    assert code == 3
    assert not freezer.still()


def test_the_daemon_sees_that_it_is_alone(tmp_path: Path, freezer: Freezer) -> None:
    supervised = Supervised(tmp_path, "go", freezer)
    below = processes_below(supervised.process.pid)
    assert below == [supervised.pid]
    supervised.process.kill()
    _, out, _ = supervised.end()
    assert out == "alone\n"


AGAIN = """
import sys
from freeze_proxy.daemon import supervisor
supervisor._AGAIN = (0.01, 0.01, 0.01)
answers = [(1, ["Not now."]), (0, ["Not now."]), (2, [])]
supervisor.thaw_all = lambda path: answers.pop(0)
sys.exit(supervisor.supervise(lambda line: 7, sys.argv[1], "info"))
"""


def test_what_cannot_be_thawed_at_once_is_tried_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 7
    assert '"thawed": 3, "troubles": []' in done.stderr
