"""COMMAND: it gets what it would have had without freeze-proxy, its exit code comes back, and all that it becomes is
frozen and ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freeze_proxy.freezers import cgroup, processes
from tests.support.needs import need_program, need_root
from tests.support.proxies import HIERARCHIES, ROOT, SERVER, Proxies, marked, need_freezer
from tests.support.running import process_state
from tests.support.wait import until

# What it gets.


def test_its_output_passes_untouched(proxies: Proxies) -> None:
    words = "printf 'a\\000b\\377\\r\\n'; printf 'error\\n' >&2; exec"
    proxy = proxies.run(command=["sh", "-c", f"{words} {' '.join(SERVER)}"])
    assert proxy.start
    assert proxy._out.read_bytes().startswith(b"a\0b\xff\r\nserving ")
    assert proxy.err().startswith("error\n")
    descriptors = {number: os.readlink(f"/proc/{proxy.server}/fd/{number}") for number in (1, 2)}
    assert descriptors == {1: str(proxy._out), 2: str(proxy._err)}


def test_its_input_is_ours(proxies: Proxies) -> None:
    read, write = os.pipe()
    proxy = proxies.run(command=["sh", "-c", f"read line; echo got $line; exec {' '.join(SERVER)}"], stdin=read)
    os.close(read)
    os.write(write, b"hello\n")
    proxy.say("got hello")
    assert proxy.start
    os.close(write)


def test_a_terminal_reads_as_its_end(proxies: Proxies) -> None:
    screen, replica = os.openpty()
    proxy = proxies.run(command=["sh", "-c", f"cat; echo end; exec {' '.join(SERVER)}"], stdin=replica)
    proxy.say("end\nserving")
    os.close(replica)
    os.close(screen)


LOOK = """
import os, re
status = open("/proc/self/status").read()
for field in "Umask Uid Gid Groups SigBlk SigIgn CapEff CapBnd NoNewPrivs Seccomp Cpus_allowed".split():
    print(re.search(f"^{field}:.*", status, re.M).group())
for name in "limits", "oom_score_adj", "timerslack_ns", "coredump_filter":
    print(open(f"/proc/self/{name}").read())
for number in range(3, 256):
    if os.path.exists(f"/proc/self/fd/{number}"):
        print(number, os.readlink(f"/proc/self/fd/{number}"))
for entry in sorted(open("/proc/self/environ", "rb").read().split(b"\\0")):
    if not entry.startswith((b"PORT=", b"FREEZE_PROXY_TEST=")):
        print(entry)
print(os.getcwd(), os.nice(0), os.sched_getscheduler(0))
"""
OUTSIDE = """
umask 027; ulimit -Sn 200; ulimit -Sc 0; trap "" USR2; cd /tmp; unset LC_ALL LC_CTYPE LANG; exec nice -n 3 "$@"
"""


def test_everything_else_is_as_without_freeze_proxy(proxies: Proxies, tmp_path: Path) -> None:
    """Descriptors, environment, mask, limits, directory, niceness, ignored and blocked signals, credentials."""
    look = [sys.executable, "-I", "-S", "-c", LOOK]
    outside = ["sh", "-c", OUTSIDE, "sh"]

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])

    file = os.open(tmp_path / "handed down", os.O_CREAT | os.O_RDWR)
    plain = subprocess.run(
        [*outside, *look],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[file],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        preexec_fn=block,
        check=True,
    ).stdout
    proxy = proxies.run(command=look, wrap=outside, pass_fds=[file], preexec_fn=block)
    assert proxy.wait() == 125  # it ends well, but never listens
    os.close(file)
    assert "handed down" in plain
    assert proxy.out() == plain


def test_a_parent_that_ignores_its_children(proxies: Proxies) -> None:
    """SIGCHLD that is ignored is handed down, and must not keep the guard from hearing of an end."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    proxy = proxies.run(command=["sh", "-c", "exit 4"], preexec_fn=ignore)
    assert proxy.wait() == 4
    proxy = proxies.run(preexec_fn=ignore)
    status = Path("/proc", str(proxy.server), "status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 1 << signal.SIGCHLD - 1
    assert proxy.end() == 143


def test_nothing_of_ours_is_open_in_it(proxies: Proxies) -> None:
    proxy = proxies.run()
    assert proxy.start

    def others() -> set[str]:
        folder = f"/proc/{proxy.server}/fd"
        names = {number: os.readlink(f"{folder}/{number}") for number in os.listdir(folder)}
        sockets = [number for number, name in names.items() if name.startswith("socket:")]
        return set(names) - set(sockets[:1])  # one it listens on

    # The connection by which it was found ready may be open still.
    until(lambda: others() == {"0", "1", "2"}, "nothing else is open in it")
    guards = [os.readlink(f"/proc/{proxy.guard}/fd/{number}") for number in os.listdir(f"/proc/{proxy.guard}/fd")]
    assert sum(name.startswith("socket:") for name in guards) == 1, guards


# Its end.


@pytest.mark.parametrize(("ending", "code"), [("os._exit(0)", 0), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_its_exit_code_comes_back(proxies: Proxies, freezer: str, ending: str, code: int) -> None:
    program = (
        "import http.server, os, threading\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers()\n"
        "        self.wfile.write(b'ok'); self.wfile.flush()\n"
        f"        threading.Timer(0.05, lambda: {ending}).start()\n"
        "    def log_message(*_): pass\n"
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()\n"
    )
    options = ["--freezer", freezer, "--grace", "1s"]
    proxy = proxies.run(command=[sys.executable, "-c", program], options=options)
    assert proxy.get() == b"ok"
    assert proxy.wait() == code
    assert proxy.event("end")["exit_code"] == code
    proxy.assert_nothing_left()


def test_it_dies_while_a_request_waits_for_it(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("dies=0.3", options=["--freezer", freezer, "--grace", "1s"])
    assert proxy.start
    assert proxy.wait() == 3
    proxy.assert_nothing_left()


# All that it becomes.


def test_one_that_daemonises(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    proxy = proxies.run("daemonise", "handle=6", "workers=1", f"tick={ticks}", options=["--freezer", freezer])
    assert proxy.start
    daemon = int(proxy.get("/pid"))
    assert daemon != proxy.server
    assert process_state(proxy.server) == ""
    proxy.await_frozen()
    assert _stands_still(ticks)
    proxy.signal(signal.SIGUSR1)
    until(lambda: f"signal {signal.SIGUSR1} " in proxy.out(), "the daemon hears signals")
    proxy.await_frozen()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 6
    proxy.assert_nothing_left()


def test_a_daemon_takes_its_time_to_end(proxies: Proxies) -> None:
    trap = "trap 'sleep 1; echo done; kill -9 $child; exit 0' TERM"
    daemon = f"{trap}; {' '.join(SERVER)} & child=$!; wait; wait"
    proxy = proxies.run(command=["sh", "-c", 'setsid sh -c "$0" & exit 0', daemon])
    assert proxy.start
    proxy.await_frozen()
    proxy.signal(signal.SIGTERM)
    proxy.wait()
    assert "done" in proxy.out()
    proxy.assert_nothing_left()


def test_two_hundred_processes(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("idlers=200", options=["--freezer", freezer])
    assert proxy.start
    for _ in range(3):
        proxy.await_frozen()
        assert len(proxy.servers()) == 201
        assert proxy.get() == b"/"
    proxy.await_frozen()
    assert proxy.end() == 143


def test_one_that_forks_while_it_is_being_frozen(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    proxy = proxies.run("forking", f"tick={ticks}", options=["--freezer", freezer])
    assert proxy.start
    for _ in range(10):
        proxy.await_frozen()
        assert _stands_still(ticks)
        assert proxy.get() == b"/"
    assert proxy.end() == 143
    assert not [event for event in proxy.events("failed") if event["what"] == "thaw"]


def test_what_somebody_else_has_stopped_stays_stopped(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("stopped", options=["--freezer", freezer])
    assert proxy.start
    for _ in range(5):
        until(lambda: len(proxy.events("frozen")) > len(proxy.events("thawed")), "it is frozen")
        proxy.get()
    stopped = next(pid for pid in marked(proxy.mark) if pid not in (proxy.pid, proxy.guard, proxy.server))
    proxy.signal(signal.SIGTSTP)  # leaves it thawed
    until(lambda: process_state(proxy.pid) == "T", "freeze-proxy is stopped")
    assert process_state(stopped) == "T"
    assert process_state(proxy.server) != "T"
    assert "went on" not in proxy.out()
    proxy.signal(signal.SIGCONT)
    assert proxy.end() == 143


@pytest.mark.parametrize("freezer", ["cgroup2", "cgroup1"])
@pytest.mark.parametrize("also", ["thawed", "frozen"])
def test_cgroups_of_its_own_making(proxies: Proxies, tmp_path: Path, freezer: str, also: str) -> None:
    """They are frozen with it, and removed, even one that it has left frozen."""
    need_freezer(freezer)
    mount = cgroup.place(HIERARCHIES[freezer])
    assert mount is not None
    script = f'd={mount}/$(basename $(grep freeze-proxy- /proc/self/cgroup | cut -d: -f3)); exec "$@" nest=$d/inner'
    proxy = proxies.run(command=["sh", "-c", script, "sh", *SERVER], options=["--freezer", freezer])
    assert proxy.start
    inner = Path(proxy.where, "inner")
    until(lambda: inner.joinpath("cgroup.procs").read_text(), "there is a process in it")
    proxy.await_frozen()
    state, frozen = ("cgroup.events", "frozen 1") if freezer == "cgroup2" else ("freezer.state", "FROZEN")
    until(lambda: frozen in inner.joinpath(state).read_text(), "it is frozen too")
    assert proxy.get() == b"/"
    if also == "frozen":
        control, word = ("cgroup.freeze", "1") if freezer == "cgroup2" else ("freezer.state", "FROZEN")
        inner.joinpath(control).write_text(word)
    assert proxy.get() == b"/"
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    proxy.assert_nothing_left()


def test_strays_of_one_that_has_ended_are_ended(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("idlers=3", "deaf", "dies=0.2", options=["--freezer", freezer, "--grace", "1s"])
    assert proxy.start
    assert proxy.wait() == 3
    proxy.assert_nothing_left()


def test_children_are_waited_for(proxies: Proxies) -> None:
    """Orphans that end leave no zombies."""
    orphans = "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; exec"
    proxy = proxies.run(command=["sh", "-c", f"{orphans} {' '.join(SERVER)}"], options=["--grace", "1s"])
    assert proxy.start

    def zombies() -> list[int]:
        children = Path(f"/proc/{proxy.guard}/task/{proxy.guard}/children").read_text().split()
        return [int(pid) for pid in children if process_state(int(pid)) == "Z"]

    until(lambda: len(proxy.servers()) == 1, "the orphans have ended")
    until(lambda: not zombies(), "they are gone")


def test_it_is_the_first_process_of_a_container(proxies: Proxies) -> None:
    """Signals without a handler do not reach such a process, and every orphan is its child."""
    need_root()
    unshare, nsenter = need_program("unshare", "util-linux"), need_program("nsenter", "util-linux")
    outer = proxies.run("handle=4", wrap=[unshare, "--pid", "--fork", "--mount-proc"])
    assert outer.start["guard"] == 2
    [first] = processes.descendants(outer.pid)[:1]
    subprocess.run([nsenter, "-t", str(first), "-p", "sh", "-c", "(exec sleep 0.2) & (exec sleep 0.3) &"], check=True)
    until(lambda: len(processes.children(first)) == 3, "it has two orphans beside its guard")
    until(lambda: len(processes.children(first)) == 1, "they are gone")
    assert outer.get() == b"/"
    os.kill(first, signal.SIGTERM)
    assert outer.wait() == 4
    until(lambda: not marked(outer.mark), "nothing is left")


def _stands_still(ticks: Path) -> bool:
    """Whether nothing is added to a file within a few of its ticks."""
    before = ticks.stat().st_size
    time.sleep(0.03)  # there is nothing to wait for: that nothing comes is the point
    return ticks.stat().st_size == before
