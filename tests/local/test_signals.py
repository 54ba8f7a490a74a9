"""Signals go on to COMMAND, thawed first; a terminal's keys are signals too."""

import fcntl
import json
import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import need_program
from tests.support.ports import LOOPBACK
from tests.support.proxies import ROOT, SERVER, Proxies, Proxy, marked
from tests.support.running import process_state
from tests.support.wait import until

PROMPT = 0.3
"""Seconds within which a handler of a frozen server has run: most of it is this machine's other work."""
OTHERS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGALRM, signal.SIGRTMIN + 3]


def test_signals_reach_a_frozen_server(proxies: Proxies, freezer: str) -> None:
    """After each, the server is frozen again."""
    proxy = proxies.run("handle=0", options=["--freezer", freezer])
    assert proxy.start
    for number in OTHERS:
        proxy.await_frozen()
        assert _delay(proxy, number) < PROMPT
    proxy.await_frozen()
    assert proxy.end() == 0


def test_signals_of_a_terminal_without_one(proxies: Proxies) -> None:
    """SIGTTIN and SIGTTOU tell gunicorn of more and fewer workers."""
    proxy = proxies.run("handle=0", start_new_session=True)
    assert proxy.start
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        proxy.await_frozen()
        assert _delay(proxy, number) < PROMPT


def test_a_signal_arrives_even_without_any_grace(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("handle=0", options=["--freezer", freezer, "--grace", "0"])
    assert proxy.start
    for _ in range(3):
        proxy.await_frozen()
        assert _delay(proxy, signal.SIGUSR1) < PROMPT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_frozen_server_ends_as_it_wants(proxies: Proxies, freezer: str, number: int) -> None:
    proxy = proxies.run("handle=7", options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    assert _delay(proxy, number) < PROMPT
    assert proxy.wait() == 7
    assert proxy.event("end")["exit_code"] == 7
    proxy.assert_nothing_left()


def test_a_server_that_takes_its_time_to_end_is_waited_for(proxies: Proxies, tmp_path: Path) -> None:
    """And serves meanwhile; it is not frozen any more."""
    command = ["sh", "-c", f"trap 'sleep 1; kill -9 $child; exit 5' TERM; {' '.join(SERVER)} & child=$!; wait; wait"]
    proxy = proxies.run(command=command)
    assert proxy.start
    proxy.event("frozen")
    began = time.monotonic()
    proxy.signal(signal.SIGTERM)
    assert proxy.get() == b"/"
    assert proxy.wait() == 5
    assert time.monotonic() - began > 0.9
    assert len(proxy.events("frozen")) == len(proxy.events("thawed"))
    proxy.assert_nothing_left()


def test_a_server_that_does_not_want_to_end_goes_on(proxies: Proxies) -> None:
    proxy = proxies.run("deaf")
    assert proxy.start
    proxy.await_frozen()
    proxy.signal(signal.SIGTERM)
    proxy.await_thawed()
    assert proxy.get() == b"/"
    assert proxy.process.poll() is None
    proxy.signal(signal.SIGINT)
    assert proxy.wait() == 130
    proxy.assert_nothing_left()


def test_a_signal_before_it_is_ready(proxies: Proxies) -> None:
    proxy = proxies.run("handle=4", "never")
    until(lambda: _handles(proxy), "the server has set its handlers")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 4
    assert proxy.err() == ""
    proxy.assert_nothing_left()


def test_many_signals_in_a_row(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("handle=0", options=["--freezer", freezer])
    assert proxy.start
    for _ in range(50):
        proxy.signal(signal.SIGUSR1)
        proxy.signal(signal.SIGUSR2)
    until(lambda: f"signal {signal.SIGUSR1}" in proxy.out() and f"signal {signal.SIGUSR2}" in proxy.out(), "both came")
    proxy.await_frozen()
    assert proxy.end() == 0


def test_ignored_signals_stay_ignored_for_the_server(proxies: Proxies) -> None:
    proxy = proxies.run(wrap=["sh", "-c", 'trap "" HUP USR1; exec "$@"', "sh"])
    ignored = int(_status(proxy.server, "SigIgn"), 16)
    assert ignored & 1 << signal.SIGHUP - 1
    assert ignored & 1 << signal.SIGUSR1 - 1
    assert not ignored & 1 << signal.SIGTERM - 1
    proxy.await_frozen()
    proxy.signal(signal.SIGHUP)
    assert proxy.get() == b"/"


def _handles(proxy: Proxy) -> bool:
    return any(
        b"never" in Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")[3:6]
        and int(_status(pid, "SigCgt"), 16) & 1 << signal.SIGALRM - 1
        for pid in marked(proxy.mark)
    )


def _status(pid: int, name: str) -> str:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def _delay(proxy: Proxy, number: int) -> float:
    """Seconds until the server's handler runs."""
    before = proxy.out().count(f"signal {number} ")
    began = time.monotonic()
    proxy.signal(number)
    until(lambda: proxy.out().count(f"signal {number} ") > before, f"signal {number} arrives", every=0.001)
    return float(proxy.out().splitlines()[-1].split()[2]) - began


# On a terminal.


class Terminal:
    """A terminal of its own for freeze-proxy, which is in the foreground of it."""

    def __init__(self) -> None:
        self.screen, self.replica = pty.openpty()

    def how(self) -> dict[str, Any]:
        """How freeze-proxy is started on it."""
        return {"stdin": self.replica, "start_new_session": True, "preexec_fn": _take_terminal}

    def press(self, key: bytes) -> None:
        os.write(self.screen, key)

    def close(self) -> None:
        os.close(self.replica)
        os.close(self.screen)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_ctrl_c(proxies: Proxies, freezer: str, terminal: Terminal) -> None:
    proxy = proxies.run("handle=9", options=["--freezer", freezer], **terminal.how())
    assert proxy.start
    proxy.await_frozen()
    terminal.press(b"\x03")
    assert proxy.wait() == 9
    assert proxy.out().count(f"signal {signal.SIGINT} ") == 1
    assert "Traceback" not in proxy.err()
    proxy.assert_nothing_left()


def test_ctrl_c_reaches_all_of_a_job(proxies: Proxies, terminal: Terminal) -> None:
    """A shell that waits for its child counts on the child being interrupted too."""
    proxy = proxies.run(command=["sh", "-c", f"{' '.join(SERVER)} handle=6; exit 8"], **terminal.how())
    assert proxy.start
    proxy.await_frozen()
    terminal.press(b"\x03")
    assert proxy.wait() in (8, 130)
    assert proxy.out().count(f"signal {signal.SIGINT} ") == 1
    proxy.assert_nothing_left()


def test_ctrl_backslash(proxies: Proxies, terminal: Terminal) -> None:
    proxy = proxies.run("handle=9", **terminal.how())
    assert proxy.start
    terminal.press(b"\x1c")
    assert proxy.wait() == 9
    assert f"signal {signal.SIGQUIT} " in proxy.out()


def test_ctrl_z_leaves_the_server_running(proxies: Proxies, freezer: str, terminal: Terminal, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    proxy = proxies.run(f"tick={ticks}", options=["--freezer", freezer], **terminal.how())
    assert proxy.start
    proxy.await_frozen()
    terminal.press(b"\x1a")
    until(lambda: process_state(proxy.pid) == "T", "freeze-proxy is stopped")
    assert not proxy.frozen()
    before = ticks.stat().st_size
    until(lambda: ticks.stat().st_size > before + 20, "the server goes on meanwhile")
    assert process_state(proxy.pid) == "T"
    proxy.signal(signal.SIGCONT)
    proxy.await_frozen()
    assert proxy.get() == b"/"
    assert proxy.end() == 143


def test_the_terminal_hangs_up(proxies: Proxies, terminal: Terminal) -> None:
    proxy = proxies.run("handle=0", **terminal.how())
    assert proxy.start
    proxy.await_frozen()
    screen, terminal.screen = terminal.screen, os.dup(2)
    os.close(screen)
    until(lambda: f"signal {signal.SIGHUP} " in proxy.out(), "the server hears of it")
    proxy.await_frozen()


def test_a_job_of_a_shell(proxies: Proxies, tmp_path: Path) -> None:
    """Ctrl-Z, fg and Ctrl-C in a real shell."""
    bash = need_program("bash", "bash")
    pid, screen = pty.fork()
    if not pid:
        os.environ["PS1"] = "$ "
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        os.environ["FREEZE_PROXY_TEST"] = "shell"
        os.execv(bash, ["bash", "--norc", "--noprofile", "-i"])
    shown = b""

    def see(text: str) -> None:
        nonlocal shown
        until(lambda: _more() and text.encode() in shown, f"{text!r} is shown")
        shown = shown.partition(text.encode())[2]

    def _more() -> bool:
        nonlocal shown
        if select.select([screen], [], [], 0)[0]:
            shown += os.read(screen, 4096)
        return True

    try:
        report = tmp_path / "report.json"
        listen = f"--listen {LOOPBACK}:0 --log-format text --report {report}"
        line = f"{sys.executable} -m freeze_proxy run {listen} -- {' '.join(SERVER)} handle=3"
        see("$ ")
        os.write(screen, line.encode() + b"\n")
        see("freeze-proxy: http://")
        see("freeze-proxy: frozen")
        os.write(screen, b"\x1a")
        see("Stopped")
        see("$ ")
        os.write(screen, b"fg\n")
        see("freeze-proxy: frozen")
        os.write(screen, b"\x03")
        see(f"signal {signal.SIGINT} ")
        see("share of time frozen")
        see("$ ")
        os.write(screen, b"echo code=$?\n")
        see("code=3")
        assert json.loads(report.read_text())["exit_code"] == 3
    finally:
        os.kill(pid, signal.SIGHUP)
        os.close(screen)
        os.waitpid(pid, 0)
        until(lambda: not marked("shell"), "nothing of it is left")
