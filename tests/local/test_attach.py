"""``freeze-proxy attach``: a server that was there before, and stays after."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from freeze_proxy.freezers import cgroup, processes
from tests.support.needs import need
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.proxies import HIERARCHIES, SERVER, Proxies, need_freezer
from tests.support.running import process_state
from tests.support.wait import until

THAWED = {"cgroup2": ("cgroup.freeze", "0\n"), "cgroup1": ("freezer.state", "THAWED\n")}


class Target:
    """The test server, started by the test, in cgroups that the test has made."""

    def __init__(self, words: Sequence[str], cgroups: Sequence[str]) -> None:
        self.port = free_port()

        def join() -> None:
            for path in cgroups:
                Path(path, "cgroup.procs").write_text("0")

        self.process = subprocess.Popen(
            [*SERVER, *words],
            env={**os.environ, "PORT": str(self.port)},
            stdout=subprocess.DEVNULL,
            preexec_fn=join,
        )
        self.pid = self.process.pid
        self.where = f"{LOOPBACK}:{self.port}"
        await_port(self.port)

    def state(self) -> str:
        return process_state(self.pid)

    def end(self) -> None:
        for pid in [self.pid, *processes.descendants(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Targets:
    """Makes them, and cgroups for them."""

    def __init__(self) -> None:
        self._made: list[Target] = []
        self._cgroups: list[str] = []

    def cgroup(self, kind: str, below: str | None = None) -> str:
        need_freezer(kind)
        parent = below or cgroup.place(HIERARCHIES.get(kind, kind))
        assert parent is not None
        path = os.path.join(parent, f"freeze-proxy-test-{os.getpid()}-{len(self._cgroups)}")
        os.mkdir(path)
        self._cgroups.append(path)
        return path

    def start(self, *words: str, cgroups: Sequence[str] = ()) -> Target:
        target = Target(words, cgroups)
        self._made.append(target)
        return target

    def close(self) -> None:
        for path in self._cgroups:
            cgroup.kill(path)
        for target in self._made:
            target.end()
        for path in reversed(self._cgroups):
            cgroup.remove(path)


@pytest.fixture
def targets() -> Iterator[Targets]:
    made = Targets()
    yield made
    made.close()


def frozen(path: str) -> bool:
    if os.path.exists(f"{path}/cgroup.events"):
        return "frozen 1" in Path(path, "cgroup.events").read_text()
    return Path(path, "freezer.state").read_text() == "FROZEN\n"


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
@pytest.mark.parametrize("how", ["pid", "cgroup"])
def test_a_cgroup_of_its_own(proxies: Proxies, targets: Targets, kind: str, how: str) -> None:
    path = targets.cgroup(kind)
    target = targets.start("workers=2", cgroups=[path])
    which = ["--cgroup", path] if how == "cgroup" else ["--pid", str(target.pid), "--freezer", kind]
    proxy = proxies.attach(*which, "--target", target.where)
    assert proxy.start["freezer"] == kind
    assert proxy.where == path
    until(lambda: frozen(path), "it is frozen")
    assert proxy.get() == b"/"
    until(lambda: frozen(path), "it is frozen again")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    control, thawed = THAWED[kind]
    assert Path(path, control).read_text() == thawed
    assert target.state() == "S"
    assert proxy.event("end")["requests"] == 1


def test_a_cgroup_that_others_share(proxies: Proxies, targets: Targets) -> None:
    """Only its own tree is stopped."""
    path = targets.cgroup("cgroup2")
    target, other = targets.start("workers=2", cgroups=[path]), targets.start(cgroups=[path])
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where)
    assert proxy.start["freezer"] == "process"
    until(lambda: target.state() == "T", "it is stopped")
    assert other.state() == "S"
    assert proxy.get() == b"/"
    until(lambda: target.state() == "T", "it is stopped again")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert target.state() == "S"
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where, "--freezer", "cgroup2")
    assert proxy.wait() == 125
    assert proxy.sentence().startswith(
        f"Its cgroup {path} also holds other processes ({processes.name(other.pid)}, PID "
    )


# On leaving.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_leaving_waits_for_the_exchange_in_flight(proxies: Proxies, targets: Targets, number: int) -> None:
    target = targets.start()
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where)
    assert proxy.start
    with socket.create_connection((LOOPBACK, proxy.port)) as client:
        proxy.event("frozen")
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        proxy.event("thawed")
        proxy.signal(number)
        client.settimeout(5)
        assert client.recv(1000).endswith(b"/slow")
    assert proxy.wait() == 0
    assert target.state() == "S"


def test_leaving_twice_is_at_once(proxies: Proxies, targets: Targets) -> None:
    target = targets.start()
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where)
    assert proxy.start
    with socket.create_connection((LOOPBACK, proxy.port)) as client:
        proxy.event("frozen")
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        proxy.event("thawed")
        proxy.signal(signal.SIGTERM)
        with pytest.raises(AssertionError):
            proxy.wait(0.5)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait(2) == 0


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1", "process"])
def test_killed_the_target_goes_on(proxies: Proxies, targets: Targets, kind: str) -> None:
    cgroups = [targets.cgroup(kind)] if kind != "process" else []
    target = targets.start("workers=1", cgroups=cgroups)
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where, "--freezer", kind)
    assert proxy.start["freezer"] == kind
    until(lambda: frozen(cgroups[0]) if cgroups else target.state() == "T", "it is frozen")
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    proxy.assert_nothing_left()
    until(lambda: not (frozen(cgroups[0]) if cgroups else target.state() == "T"), "it is thawed", 1.0)
    with socket.create_connection((LOOPBACK, target.port)) as client:
        client.sendall(b"GET /alive HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(5)
        assert client.recv(1000).endswith(b"/alive")


@pytest.mark.parametrize("kind", ["cgroup2", "process"])
def test_the_guard_is_killed(proxies: Proxies, targets: Targets, kind: str) -> None:
    """Then the target is left running, for nobody would thaw it."""
    cgroups = [targets.cgroup(kind)] if kind != "process" else []
    target = targets.start(cgroups=cgroups)
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where, "--freezer", kind)
    assert proxy.start
    until(lambda: frozen(cgroups[0]) if cgroups else target.state() == "T", "it is frozen")
    os.kill(proxy.guard, signal.SIGKILL)
    assert proxy.wait() == 125
    assert "The guard process was ended by somebody" in proxy.err()
    until(lambda: target.state() == "S", "it runs")


def test_the_end_of_the_process_is_noticed(proxies: Proxies, targets: Targets) -> None:
    target = targets.start()
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where)
    assert proxy.start
    until(lambda: target.state() == "T", "it is stopped")
    target.end()
    assert proxy.wait(2) == 0
    assert proxy.event("gone")["message"] == "the server has ended."


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_the_end_of_all_in_a_cgroup_is_noticed(proxies: Proxies, targets: Targets, kind: str) -> None:
    path = targets.cgroup(kind)
    target = targets.start("workers=1", cgroups=[path])
    proxy = proxies.attach("--cgroup", path, "--target", target.where)
    assert proxy.start
    until(lambda: frozen(path), "it is frozen")
    cgroup.kill(path)
    assert proxy.wait(5) == 0
    assert proxy.event("gone")["message"] == "the server has ended."


def test_another_cgroup_with_the_same_name_is_not_the_same(proxies: Proxies, targets: Targets) -> None:
    """So it is when systemd starts a service again."""
    path = targets.cgroup("cgroup2")
    first = targets.start(cgroups=[path])
    proxy = proxies.attach("--cgroup", path, "--target", first.where)
    assert proxy.start
    until(lambda: frozen(path), "it is frozen")
    cgroup.kill(path)
    first.process.wait()
    assert cgroup.remove(path)
    os.mkdir(path)
    second = targets.start(cgroups=[path])
    assert proxy.wait(5) == 0
    assert proxy.event("gone")
    assert second.state() == "S"


@pytest.mark.parametrize(
    ("kind", "how"), [("cgroup2", "pid"), ("cgroup1", "pid"), ("process", "pid"), ("cgroup2", "cgroup")]
)
def test_told_to_end_while_frozen(proxies: Proxies, targets: Targets, kind: str, how: str) -> None:
    """It cannot handle the signal while it stands still, so it is thawed."""
    cgroups = [targets.cgroup(kind)] if kind != "process" else []
    target = targets.start("handle=7", cgroups=cgroups)
    which = ["--cgroup", cgroups[0]] if how == "cgroup" else ["--pid", str(target.pid), "--freezer", kind]
    proxy = proxies.attach(*which, "--target", target.where)
    assert proxy.start
    until(lambda: frozen(cgroups[0]) if cgroups else target.state() == "T", "it is frozen")
    target.process.terminate()
    assert target.process.wait(5) == 7
    assert proxy.wait(5) == 0
    assert proxy.event("asked")
    assert proxy.event("gone")


# Left as found.


def test_dry_run_touches_nothing(proxies: Proxies, targets: Targets) -> None:
    """Not even what somebody else does meanwhile."""
    path = targets.cgroup("cgroup2")
    target = targets.start(cgroups=[path])
    proxy = proxies.attach("--cgroup", path, "--target", target.where, "--mode", "dry-run")
    assert proxy.start["message"].find("dry run") > 0
    proxy.event("frozen")
    assert Path(path, "cgroup.freeze").read_text() == "0\n"
    Path(path, "cgroup.freeze").write_text("1")
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    proxy.assert_nothing_left()
    assert Path(path, "cgroup.freeze").read_text() == "1\n"


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1", "process"])
def test_found_frozen(proxies: Proxies, targets: Targets, kind: str) -> None:
    cgroups = [targets.cgroup(kind)] if kind != "process" else []
    target = targets.start(cgroups=cgroups)
    if kind == "process":
        os.kill(target.pid, signal.SIGSTOP)
        until(lambda: target.state() == "T", "it is stopped")
    else:
        control, word = {"cgroup2": ("cgroup.freeze", "1"), "cgroup1": ("freezer.state", "FROZEN")}[kind]
        Path(cgroups[0], control).write_text(word)
        until(lambda: frozen(cgroups[0]), "it is frozen")
    proxy = proxies.attach("--pid", str(target.pid), "--target", target.where, "--freezer", kind)
    assert proxy.wait() == 125
    assert proxy.sentence().startswith("Somebody has stopped ")
    proxy.assert_nothing_left()
    assert frozen(cgroups[0]) if cgroups else target.state() == "T"


def test_an_ancestor_that_somebody_else_freezes(proxies: Proxies, targets: Targets) -> None:
    """A request waits until they thaw it, as it would without us, and is served then."""
    outer = targets.cgroup("cgroup2")
    inner = targets.cgroup("cgroup2", below=outer)
    target = targets.start(cgroups=[inner])
    proxy = proxies.attach("--cgroup", inner, "--target", target.where)
    assert proxy.start
    until(lambda: frozen(inner), "it is frozen")
    Path(outer, "cgroup.freeze").write_text("1")
    with socket.create_connection((LOOPBACK, proxy.port)) as client:
        client.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1000)
        Path(outer, "cgroup.freeze").write_text("0")
        client.settimeout(5)
        assert client.recv(1000).endswith(b"/late")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_quota_is_put_back(proxies: Proxies, targets: Targets, end: int) -> None:
    need(cgroup.place("cpu") is not None, "There is no cgroup v1 cpu hierarchy here.")
    path = targets.cgroup("cpu")
    quota = Path(path, "cpu.cfs_quota_us")
    quota.write_text("80000")
    target = targets.start("burn", cgroups=[path])
    proxy = proxies.attach("--cgroup", path, "--target", target.where, "--mode", "throttle")
    assert proxy.start["freezer"] == "throttle"
    until(lambda: quota.read_text() == "1000\n", "it is throttled")
    proxy.get()
    until(lambda: quota.read_text() == "1000\n", "it is throttled again")
    proxy.signal(end)
    proxy.wait()
    proxy.assert_nothing_left()
    assert quota.read_text() == "80000\n"


# What cannot be attached to.


def test_no_such_process(proxies: Proxies) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    proxy = proxies.attach("--pid", str(process.pid), "--target", "127.0.0.1:1")
    assert proxy.wait() == 125
    assert proxy.sentence() == f"There is no process {process.pid}."


def test_our_own_ancestor(proxies: Proxies) -> None:
    proxy = proxies.attach("--pid", str(os.getpid()), "--target", "127.0.0.1:1")
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        f"freeze-proxy itself descends from process {os.getpid()} and would be stopped with it."
    )


@pytest.mark.parametrize("which", ["own", "ancestor"])
def test_our_own_cgroup(proxies: Proxies, targets: Targets, which: str) -> None:
    outer = targets.cgroup("cgroup2")
    inner = targets.cgroup("cgroup2", below=outer)
    path = inner if which == "own" else outer
    join = ["sh", "-c", f'echo 0 > {inner}/cgroup.procs; exec "$@"', "sh"]
    proxy = proxies.attach("--cgroup", path, "--target", "127.0.0.1:1", wrap=join)
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        f"freeze-proxy itself runs in {path} and would freeze with it; start it from another cgroup."
    )


def test_what_is_no_cgroup(proxies: Proxies, targets: Targets, tmp_path: Path) -> None:
    proxy = proxies.attach("--cgroup", str(tmp_path), "--target", "127.0.0.1:1")
    assert proxy.wait() == 125
    assert proxy.sentence() == f"{tmp_path} is not a cgroup: there is no cgroup.procs in it."
    path = targets.cgroup("cgroup2")
    proxy = proxies.attach("--cgroup", path, "--target", "127.0.0.1:1")
    assert proxy.wait() == 125
    assert proxy.sentence() == f"There is no process in the cgroup {path}."


def test_nobody_listens_at_the_target(proxies: Proxies, targets: Targets) -> None:
    target = targets.start()
    where = f"{LOOPBACK}:{free_port()}"
    proxy = proxies.attach("--pid", str(target.pid), "--target", where, "--start-timeout", "200ms")
    assert proxy.wait() == 124
    assert proxy.sentence() == f"The server at {where} was not ready within 0.2 s: it does not accept connections."
    assert target.state() == "S"


def test_a_target_that_is_not_known(proxies: Proxies, targets: Targets) -> None:
    target = targets.start()
    proxy = proxies.attach("--pid", str(target.pid), "--target", "no-such-host.invalid:80")
    assert proxy.wait(30) == 125
    assert proxy.sentence().startswith("no-such-host.invalid is neither an address nor a name that is known here")


def test_a_target_that_is_ourselves(proxies: Proxies, targets: Targets) -> None:
    target, port = targets.start(), free_port()
    options = ["--target", f"{LOOPBACK}:{port}", "--listen", f"0.0.0.0:{port}"]
    proxy = proxies.attach("--pid", str(target.pid), *options)
    assert proxy.wait() == 125
    assert "is where freeze-proxy itself listens" in proxy.sentence()


def test_a_name_for_the_target(proxies: Proxies, targets: Targets) -> None:
    """A server on ::1 alone is localhost too."""
    target = targets.start()
    proxy = proxies.attach("--pid", str(target.pid), "--target", f"localhost:{target.port}")
    assert proxy.start["target"] == f"127.0.0.1:{target.port}"
    began = time.monotonic()
    assert proxy.get() == b"/"
    assert time.monotonic() - began < 5
