"""A signal that comes for a process that stands still shows in its CPU time: real ones, in cgroups of cgroup v2."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from freeze_proxy.freezers import cgroup, processes
from freeze_proxy.freezers.processes import Pending
from tests.support.proxies import need_freezer
from tests.support.wait import until

ASLEEP = """
import signal, sys, threading, time
blocked, threads, wait = eval(sys.argv[1])
for number in range(1, signal.NSIG):
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, lambda *_: None)
for _ in range(threads):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
print("asleep", flush=True)
while True:
    signal.sigwait(blocked) if wait else time.sleep(3600)
"""
TOLD = sorted(processes._ASKS_TO_END - {signal.SIGKILL})


class Sleeper:
    """Sleeps, and stands still for as long as it is frozen: without end, but for the signals that it ``blocked``."""

    def __init__(self, blocked: tuple[int, ...] = (), threads: int = 0, wait: bool = False) -> None:
        need_freezer("cgroup2")
        self.path = cgroup.create("cgroup2", f"freeze-proxy-test-{os.getpid()}-{time.monotonic_ns()}")
        command = [sys.executable, "-I", "-S", "-c", ASLEEP, repr((tuple(map(int, blocked)), threads, wait))]
        joined = ["sh", "-c", 'echo 0 >"$0/cgroup.procs"; exec "$@"', self.path, *command]
        self.process = subprocess.Popen(joined, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"asleep\n"
        self.freezer = cgroup.Cgroup2Freezer(self.path)
        self.pending = Pending(self.process.pid)

    def freeze(self) -> None:
        if not self.freezer.freeze():
            until(self.freezer.still, "it is frozen", every=0.001)

    def looked_at(self) -> None:
        """Nobody asks it to end."""
        assert not self.pending.ask_to_end()

    def comes_to_rest(self) -> None:
        """It stands still when it says so; the last steps of that take some microseconds more."""

        def rests() -> bool:
            self.looked_at()
            return not self.pending.stirred()

        until(rests, "it stands still", every=0.001)

    def close(self) -> None:
        self.pending.close()
        self.freezer.close()
        cgroup.kill(self.path)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert cgroup.remove(self.path)


Make = Callable[..., Sleeper]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def new(blocked: tuple[int, ...] = (), threads: int = 0, wait: bool = False) -> Sleeper:
            sleeper = Sleeper(blocked, threads, wait)
            stack.callback(sleeper.close)
            return sleeper

        yield new


@pytest.mark.parametrize("threads", [0, 3])
def test_each_signal_that_asks_to_end_stirs(make: Make, threads: int) -> None:
    """Again and again, and whichever others have come before and wait still."""
    sleeper = make(threads=threads)
    for number in TOLD:
        sleeper.freeze()
        sleeper.comes_to_rest()
        os.kill(sleeper.process.pid, signal.SIGALRM)
        until(sleeper.pending.stirred, "it stirs", every=0.001)
        sleeper.comes_to_rest()  # that does not ask it to end
        os.kill(sleeper.process.pid, number)
        until(sleeper.pending.stirred, "it stirs", every=0.001)
        assert sleeper.pending.ask_to_end()
        sleeper.freezer.thaw()
        until(lambda: not sleeper.pending.ask_to_end(), "it has heard it", every=0.001)


def test_who_is_left_alone_does_not_stir(make: Make) -> None:
    sleeper = make(threads=2)
    sleeper.freeze()
    sleeper.comes_to_rest()
    for _ in range(50):
        assert not sleeper.pending.stirred()
        time.sleep(0.001)  # that nothing happens is the point


def test_who_is_thawed_by_anybody_stirs(make: Make) -> None:
    sleeper = make()
    sleeper.freeze()
    sleeper.comes_to_rest()
    cgroup.Cgroup2Freezer(sleeper.path).thaw()
    until(sleeper.pending.stirred, "it stirs", every=0.001)
    sleeper.freeze()
    assert sleeper.pending.stirred()  # and it is not forgotten


def test_who_dies_stirs(make: Make) -> None:
    """SIGKILL ends what is frozen here."""
    sleeper = make()
    sleeper.freeze()
    sleeper.comes_to_rest()
    sleeper.process.kill()
    until(sleeper.pending.stirred, "it stirs", every=0.001)
    sleeper.process.wait()
    with pytest.raises(ProcessLookupError):
        sleeper.pending.ask_to_end()
    assert sleeper.pending.stirred()


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGRTMIN + 3])
def test_who_blocks_one_of_them_is_not_believed(make: Make, number: int, wait: bool) -> None:
    """It stands still when that comes: as init systems do, which wait for signals in their own way."""
    sleeper = make(blocked=(number,), threads=1, wait=wait)
    sleeper.freeze()
    sleeper.looked_at()
    assert sleeper.pending.stirred()
    os.kill(sleeper.process.pid, number)
    assert sleeper.pending.ask_to_end()


def test_who_was_stopped_before_is_not_believed(make: Make) -> None:
    sleeper = make()
    sleeper.process.send_signal(signal.SIGSTOP)
    until(lambda: processes.state(sleeper.process.pid) == processes.STOPPED, "it is stopped", every=0.001)
    sleeper.freeze()
    sleeper.looked_at()
    assert sleeper.pending.stirred()
    sleeper.process.terminate()
    assert sleeper.pending.ask_to_end()


def test_nobody_is_believed_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = make()
    sleeper.freeze()
    sleeper.comes_to_rest()
    monkeypatch.setattr(processes, "TRUSTED_FOR", 0.0)
    assert sleeper.pending.stirred()


def test_a_signal_between_the_clock_and_the_look_is_not_missed(make: Make) -> None:
    """At any moment: either the look has seen it, or it stirs."""
    sleeper = make()
    for turn in range(60):
        sleeper.freeze()
        sender = threading.Timer(turn * 2e-6, os.kill, (sleeper.process.pid, signal.SIGTERM))
        sender.start()
        seen = sleeper.pending.ask_to_end()
        sender.join()
        if not seen:
            until(sleeper.pending.stirred, "it stirs", every=0.001)
        assert sleeper.pending.ask_to_end()
        sleeper.freezer.thaw()
        until(lambda: not sleeper.pending.ask_to_end(), "it has heard it", every=0.0005)
