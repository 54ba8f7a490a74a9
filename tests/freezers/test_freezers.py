"""The freezers on real processes, in cgroups that the tests make."""

import builtins
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freeze_proxy.freezers import FreezeError, Freezer, cgroup, processes
from freeze_proxy.freezers.process import ProcessFreezer
from tests.support.needs import need, need_root
from tests.support.proxies import FREEZERS, HIERARCHIES, need_freezer
from tests.support.running import process_state
from tests.support.wait import until

TICK = """
import os, sys, time, threading
sys.path.insert(0, "")
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
for _ in range(int(sys.argv[3])):
    if not os.fork():
        break
while True:
    os.write(file, b".")
    time.sleep(0.002)
"""


class Subject:
    """A process that ticks, in a cgroup of its own where the freezer wants one, and its freezer."""

    def __init__(self, kind: str, ticks: Path, threads: int = 0, children: int = 0) -> None:
        self.kind = kind
        self.ticks = ticks
        self.path = ""
        if kind != "process":
            need_freezer(kind)
            self.path = cgroup.create(HIERARCHIES[kind], f"freeze-proxy-test-{os.getpid()}-{time.monotonic_ns()}")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", TICK, str(ticks), str(threads), str(children)], preexec_fn=self._join
        )
        until(lambda: ticks.exists() and ticks.stat().st_size, "it ticks")
        until(lambda: len(self.pids()) == children + 1, "its children are there")
        self.freezer = self.another()

    def _join(self) -> None:
        if self.path:
            Path(self.path, "cgroup.procs").write_text("0")

    def another(self) -> Freezer:
        """A freezer of the same, as another process would have it."""
        if self.kind == "process":
            return ProcessFreezer(self.process.pid)
        return {"cgroup2": cgroup.Cgroup2Freezer, "cgroup1": cgroup.Cgroup1Freezer}[self.kind](self.path)

    def pids(self) -> list[int]:
        return [self.process.pid, *processes.descendants(self.process.pid)]

    def freeze(self) -> None:
        if not self.freezer.freeze():
            until(self.freezer.frozen, "it is frozen")

    def stands_still(self) -> bool:
        """Whether there is no tick for a while."""
        before = self.ticks.stat().st_size
        time.sleep(0.02)  # that nothing comes is the point
        return self.ticks.stat().st_size == before

    def goes_on(self) -> bool:
        before = self.ticks.stat().st_size
        until(lambda: self.ticks.stat().st_size > before, "it ticks")
        return True

    def close(self) -> None:
        self.freezer.close()
        pids = self.pids()
        if self.path:
            cgroup.kill(self.path)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.path:
            assert cgroup.remove(self.path)


Make = Callable[..., Subject]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Subject] = []

    def new(kind: str, threads: int = 0, children: int = 0) -> Subject:
        made.append(Subject(kind, tmp_path / f"ticks{len(made)}", threads, children))
        return made[-1]

    yield new
    for subject in made:
        subject.close()


@pytest.mark.parametrize("kind", FREEZERS)
@pytest.mark.parametrize(("threads", "children"), [(0, 0), (50, 0), (0, 20), (3, 3)])
def test_it_freezes_and_thaws(make: Make, kind: str, threads: int, children: int) -> None:
    subject = make(kind, threads, children)
    assert not subject.freezer.still()
    for _ in range(5):
        subject.freeze()
        assert subject.freezer.still()
        assert subject.freezer.frozen()
        assert subject.stands_still()
        subject.freezer.thaw()
        assert subject.goes_on()
        assert not subject.freezer.still()


@pytest.mark.parametrize("kind", FREEZERS)
def test_all_is_idempotent(make: Make, kind: str) -> None:
    subject = make(kind)
    subject.freezer.thaw()
    assert subject.goes_on()
    subject.freeze()
    subject.freeze()
    assert subject.stands_still()
    subject.freezer.thaw()
    subject.freezer.thaw()
    assert subject.goes_on()


@pytest.mark.parametrize("kind", FREEZERS)
def test_a_thaw_right_after_the_order_to_freeze(make: Make, kind: str) -> None:
    """However far the freeze has come: after the thaw it runs."""
    subject = make(kind, threads=20, children=5)
    for _ in range(200):
        subject.freezer.freeze()
        subject.freezer.thaw()
    assert subject.goes_on()
    assert not subject.freezer.still()


@pytest.mark.parametrize("kind", FREEZERS)
def test_another_process_rescues_what_this_one_froze(make: Make, kind: str) -> None:
    subject = make(kind, children=3)
    other = subject.another()
    subject.freeze()
    other.rescue()
    assert subject.goes_on()
    assert all(process_state(pid) != "T" for pid in subject.pids())
    other.close()


@pytest.mark.parametrize("kind", FREEZERS)
def test_cpu_time(make: Make, kind: str) -> None:
    subject = make(kind)
    before = subject.freezer.cpu_seconds()
    until(lambda: subject.freezer.cpu_seconds() > before, "it uses CPU")
    subject.freeze()
    frozen = subject.freezer.cpu_seconds()
    assert subject.stands_still()
    assert subject.freezer.cpu_seconds() == frozen


@pytest.mark.parametrize("kind", FREEZERS)
def test_a_target_that_has_gone(make: Make, kind: str) -> None:
    """A sentence, not a traceback; and a thaw of nobody is no failure that would be tried for ever."""
    subject = make(kind)
    subject.process.kill()
    subject.process.wait()
    if kind == "process":
        with pytest.raises(FreezeError, match=f"The process {subject.process.pid} has ended."):
            subject.freezer.freeze()
        subject.freezer.thaw()
    else:
        assert cgroup.remove(subject.path)
        with pytest.raises(FreezeError, match="is gone"):
            subject.freezer.freeze()
        with pytest.raises(FreezeError, match="is gone"):
            subject.freezer.thaw()
        with pytest.raises(FreezeError, match="is gone"):
            subject.freezer.still()


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_the_end_of_the_last_process_is_seen_by_one_who_never_looks_away(make: Make, kind: str) -> None:
    """A v1 ``cgroup.procs`` that is read again and again through one open file never changes."""
    subject = make(kind)
    assert subject.freezer.alive()
    subject.process.kill()
    deadline = time.monotonic() + 5.0
    while subject.freezer.alive():
        assert time.monotonic() < deadline, "It is dead, and still seems to live."


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_there_is_no_such_cgroup(kind: str) -> None:
    freezer = {"cgroup2": cgroup.Cgroup2Freezer, "cgroup1": cgroup.Cgroup1Freezer}[kind]
    with pytest.raises(FreezeError, match=r"/nowhere/\S+ cannot be opened: No such file or directory"):
        freezer("/nowhere")


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_nothing_stays_open(make: Make, kind: str) -> None:
    subject = make(kind)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        subject.another().close()
        with pytest.raises(FreezeError):
            type(subject.freezer)("/proc")  # type: ignore[call-arg]  # every cgroup freezer takes a path
    assert len(os.listdir("/proc/self/fd")) == before


# SIGSTOP's own.


def test_who_was_stopped_before_stays_so(make: Make) -> None:
    subject = make("process", children=3)
    first, *_ = processes.descendants(subject.process.pid)
    os.kill(first, signal.SIGSTOP)
    until(lambda: process_state(first) == "T", "it is stopped")
    for _ in range(3):
        subject.freeze()
        assert subject.freezer.still()
        subject.freezer.thaw()
        assert process_state(first) == "T"
        assert subject.goes_on()
    rescuer = subject.another()
    subject.freeze()
    rescuer.rescue()
    assert process_state(first) == "T"
    assert process_state(subject.process.pid) != "T"


def test_who_is_stopped_and_continued_by_somebody_else_meanwhile(make: Make) -> None:
    """What is stopped between two freezes is left to them; what they continue while it is frozen runs."""
    subject = make("process", children=2)
    first, second = processes.descendants(subject.process.pid)
    subject.freeze()
    subject.freezer.thaw()
    os.kill(first, signal.SIGSTOP)
    until(lambda: process_state(first) == "T", "it is stopped")
    subject.freeze()
    os.kill(second, signal.SIGCONT)
    assert not subject.freezer.still()
    subject.freezer.thaw()
    assert process_state(first) == "T"
    os.kill(first, signal.SIGCONT)
    subject.freeze()
    assert subject.freezer.still()
    subject.freezer.thaw()
    assert all(process_state(pid) != "T" for pid in subject.pids())


def test_a_process_with_another_name_than_it_seems(tmp_path: Path) -> None:
    """A name may hold whatever /proc separates its fields with."""
    program = tmp_path / "a) T 1 (b\n c"
    program.symlink_to(os.path.realpath(sys.executable))
    with subprocess.Popen([str(program), "-I", "-S", "-c", "import time; time.sleep(3600)"]) as process:
        try:
            until(lambda: processes.name(process.pid).startswith("a) T 1"), "it has its name")
            assert processes.parent(process.pid) == os.getpid()
            assert processes.state(process.pid) in ("R", "S", "D")
            assert process.pid in processes.descendants(os.getpid())
            freezer = ProcessFreezer(process.pid)
            freezer.freeze()
            until(freezer.frozen, "it is frozen")
            freezer.thaw()
            assert process_state(process.pid) != "T"
        finally:
            process.kill()


def test_another_process_with_the_same_pid_is_left_alone(make: Make) -> None:
    """A PID that was stopped and has come to be somebody else's meanwhile is not theirs to continue."""
    subject = make("process")
    freezer = subject.freezer
    assert isinstance(freezer, ProcessFreezer)
    freezer._stopped = {subject.process.pid: 1}
    os.kill(subject.process.pid, signal.SIGSTOP)
    until(lambda: process_state(subject.process.pid) == "T", "it is stopped")
    freezer.thaw()
    assert process_state(subject.process.pid) == "T"


def test_descendants_without_help_of_the_kernel(make: Make) -> None:
    subject = make("process", children=5)
    assert sorted(processes._descendants_by_parent(subject.process.pid)) == sorted(
        processes.descendants(subject.process.pid)
    )


# Throttling.


@pytest.mark.parametrize("quota", ["-1", "50000"])
def test_throttle_v1(quota: str, tmp_path: Path) -> None:
    need_root()
    need(cgroup.place("cpu") is not None, "There is no cgroup v1 cpu hierarchy here.")
    path = cgroup.create("cpu", f"freeze-proxy-test-{os.getpid()}-throttle")
    try:
        control = Path(path, "cpu.cfs_quota_us")
        control.write_text(quota)
        freezer = cgroup.ThrottleFreezer(path)
        assert not freezer.still()
        assert freezer.freeze()
        assert control.read_text() == "1000\n"
        assert freezer.still()
        freezer.thaw()
        assert control.read_text() == f"{quota}\n"
        freezer.close()
    finally:
        assert cgroup.remove(path)


def test_throttle_v2(tmp_path: Path) -> None:
    """With a directory that looks like such a cgroup, for this machine's hierarchy may have no cpu controller."""
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    freezer = cgroup.ThrottleFreezer(str(tmp_path))
    assert freezer.cpu_seconds() == 1.5
    assert not freezer.still()
    freezer.freeze()
    assert (tmp_path / "cpu.max").read_text().startswith("1000 100000")
    freezer.thaw()
    assert (tmp_path / "cpu.max").read_text().startswith("max 100000")


# Cgroups as such.


def test_what_is_left_of_somebody_who_had_our_pid_is_removed() -> None:
    need_freezer("cgroup2")
    name = f"freeze-proxy-test-{os.getpid()}-left"
    first = cgroup.create("cgroup2", name)
    assert cgroup.create("cgroup2", name) == first
    assert cgroup.remove(first)
    assert cgroup.remove(first)  # gone already


def test_a_cgroup_with_somebody_in_it_is_not_removed(make: Make) -> None:
    subject = make("cgroup2")
    began = time.monotonic()
    assert not cgroup.remove(subject.path, patience=0.1)
    assert time.monotonic() - began < 1
    assert cgroup.populated(subject.path)


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_populated_and_members(make: Make, kind: str) -> None:
    subject = make(kind, children=2)
    assert sorted(cgroup.members(subject.path)) == sorted(subject.pids())
    assert cgroup.populated(subject.path)
    cgroup.kill(subject.path)
    subject.process.wait()
    until(lambda: not cgroup.populated(subject.path), "there is nobody left")
    assert cgroup.members(subject.path) == []


def test_mounts_with_odd_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """proc(5) writes blanks in octal; other mounts may be called anything."""
    info = tmp_path / "mountinfo"
    info.write_bytes(
        b"30 1 0:26 / /my\\040groups/unified rw - cgroup2 none rw\n"
        b"31 1 0:27 /docker/x /sys/freezer rw shared:9 - cgroup cgroup rw,freezer\n"
        b"32 1 0:28 / /odd\\040\xff rw - tmpfs a\\040b rw\n"
        b"33 1 0:29 / /sys/second rw - cgroup2 none rw\n"
    )
    files: dict[Any, Any] = {"/proc/self/mountinfo": info, "/proc/self/cgroup": tmp_path / "cgroup"}
    really = builtins.open
    monkeypatch.setattr(builtins, "open", lambda name, *how, **more: really(files.get(name) or name, *how, **more))
    found = cgroup.mounts()
    assert found["cgroup2"] == ("/my groups/unified", "/")
    assert found["freezer"] == ("/sys/freezer", "/docker/x")
    pairs = [("/", None), ("/docker/x", "/sys/freezer"), ("/docker/x/y", "/sys/freezer/y"), ("/docker/xy", None)]
    for path, place in pairs:
        files["/proc/self/cgroup"].write_text(f"7:freezer:{path}\n0::{path}\n")
        assert cgroup.place("freezer") == place
        assert cgroup.place("cgroup2") == os.path.normpath(f"/my groups/unified{path}")
        assert cgroup.place("cpu") is None
