"""``run`` and ``attach`` with nothing before the server: what a user sees, and that nothing stays behind."""

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from freeze_proxy.ambient.bpf import EGRESS, INGRESS, attached
from freeze_proxy.freezers import cgroup
from tests.local.test_attach import Targets
from tests.support.ambience import need_ambient
from tests.support.ports import LOOPBACK, answers, free_port
from tests.support.proxies import SERVER, Event, Proxies, Proxy
from tests.support.running import process_state
from tests.support.wait import until

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UDP_ECHO = """
import os, socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(os.environ["PORT"])))
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    data, client = server.recvfrom(100)
    server.sendto(data, client)
"""
TALKER = """
import os, socket
other = socket.create_connection(("127.0.0.1", int(os.environ["OTHER"])))
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
listener.accept()[0].close()
while data := other.recv(100):
    other.sendall(data.upper())
"""


@pytest.fixture(autouse=True)
def _possible() -> None:
    need_ambient()


@pytest.fixture
def targets() -> Iterator[Targets]:
    made = Targets()
    yield made
    made.close()


def ambient(proxies: Proxies, *words: str, options: tuple[str, ...] = (), **how: object) -> Proxy:
    """``freeze-proxy run --ambient``; ``proxy.port`` is the server's own."""
    command = ["run", "--ambient", "--port", str(free_port()), "--grace", "20ms", *options, "--"]
    proxy = proxies.start(*command, *(how.pop("command", None) or [*SERVER, *words]), **how)  # type: ignore[misc,arg-type]
    assert proxy.start["way"] == "ambient"
    return proxy


def _programs(path: str) -> int:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return len(attached(directory, INGRESS)) + len(attached(directory, EGRESS))
    finally:
        os.close(directory)


def test_the_server_listens_where_clients_ask_and_the_start_line_says_how(proxies: Proxies) -> None:
    proxy = ambient(proxies)
    start = proxy.start
    assert start["listen"] == start["target"] == f"{LOOPBACK}:{proxy.port}"
    assert start["message"].startswith(f"http://{LOOPBACK}:{proxy.port} ambient: nothing stands before it, freezing /")
    proxy.await_frozen()
    assert int(proxy.get("/pid")) == proxy.server
    assert _programs(proxy.where) == 2
    proxy.await_frozen()
    assert proxy.end() == 128 + signal.SIGTERM


def test_run_chooses_it_by_itself_unless_listen_or_relay_is_said(proxies: Proxies) -> None:
    port = str(free_port())
    chosen = proxies.start("run", "--port", port, "--", *SERVER)
    assert chosen.start["way"] == "ambient"
    assert chosen.start["listen"] == f"{LOOPBACK}:{port}"
    chosen.end()
    listening = proxies.start("run", "--listen", f"{LOOPBACK}:0", "--port", port, "--", *SERVER)
    assert listening.start["way"] == "relay"
    assert listening.start["target"] == f"{LOOPBACK}:{port}" != listening.start["listen"]
    listening.end()
    relayed = proxies.start("run", "--relay", "--port", port, "--", *SERVER)
    if relayed.process.poll() is None and not answers(8080):
        assert relayed.start["listen"] == f"{LOOPBACK}:8080"


def test_without_the_right_it_says_so_and_without_being_asked_it_relays(proxies: Proxies) -> None:
    without = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"]
    port = str(free_port())
    asked = proxies.start("run", "--ambient", "--port", port, "--", *SERVER, wrap=without)
    assert asked.wait() == 125
    assert "not permitted; it needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN" in asked.sentence()
    assert "--relay does without." in asked.sentence()
    silent = proxies.start("run", "--port", port, "--report", "/dev/null", "--", *SERVER, wrap=without)
    until(lambda: silent.process.poll() is not None or silent.events("start"), "it decides")
    if silent.process.poll() is None:  # unless somebody else's server has the usual port
        assert silent.start["way"] == "relay"


def test_listen_and_ambient_contradict_each_other(proxies: Proxies) -> None:
    proxy = proxies.start("run", "--ambient", "--listen", ":0", "--", *SERVER)
    assert proxy.wait() == 2
    assert "--listen is for the relay" in proxy.err()


def test_a_server_that_listens_from_elsewhere_is_refused(proxies: Proxies, targets: Targets) -> None:
    """Its packets cannot be seen, so nobody would wake it."""
    elsewhere = targets.start()
    proxy = proxies.start("attach", "--ambient", "--pid", str(elsewhere.pid), "--target", elsewhere.where)
    assert proxy.wait() == 125
    assert "is not its own cgroup" in proxy.sentence()
    moved = targets.start()
    path = targets.cgroup("cgroup2")
    Path(path, "cgroup.procs").write_text(str(moved.pid))
    proxy = proxies.start("attach", "--ambient", "--cgroup", path, "--target", moved.where)
    assert proxy.wait() == 125
    assert "its packets are not seen" in proxy.sentence()
    assert not _programs(path)


@pytest.mark.parametrize("how", ["pid", "cgroup"])
def test_attach_leaves_it_as_found(proxies: Proxies, targets: Targets, how: str) -> None:
    path = targets.cgroup("cgroup2")
    target = targets.start("workers=2", cgroups=[path])
    which = ["--pid", str(target.pid)] if how == "pid" else ["--cgroup", path]
    proxy = proxies.start("attach", "--ambient", *which, "--target", target.where, "--grace", "20ms")
    assert proxy.start["way"] == "ambient"
    proxy.await_frozen()
    for _ in range(5):
        assert proxy.get("/x") == b"/x"
        proxy.await_frozen()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert not _programs(path)
    assert "frozen 0" in Path(path, "cgroup.events").read_text()


@pytest.mark.parametrize("mark", ["attach", "run"])
def test_killed_at_any_moment_nothing_stays_frozen_or_attached(proxies: Proxies, targets: Targets, mark: str) -> None:
    chance = random.Random(7)
    path = targets.cgroup("cgroup2")
    target = targets.start(cgroups=[path])
    for number in range(6):
        if mark == "run":
            proxy = ambient(proxies, options=("--grace", "2ms"))
        else:
            which = ("--cgroup", path, "--target", target.where, "--grace", "2ms")
            proxy = proxies.start("attach", "--ambient", *which)
            assert proxy.start
        if number % 2 == 0:
            proxy.await_frozen()
        until_ = time.monotonic() + chance.uniform(0, 0.02)
        while time.monotonic() < until_:
            proxy.get()
        proxy.signal(signal.SIGKILL)
        proxy.wait()
        if mark == "run":
            proxy.assert_nothing_left(2.0)
        else:
            until(lambda: "frozen 0" in Path(path, "cgroup.events").read_text(), "it is thawed", 1.0)
            until(lambda: not _programs(path), "the programs are gone", 1.0)
            assert proxy.get() == b"/"  # by itself


def test_a_connection_that_was_open_before_keeps_it_awake_until_it_closes(proxies: Proxies, targets: Targets) -> None:
    path = targets.cgroup("cgroup2")
    target = targets.start(cgroups=[path])
    with socket.create_connection((LOOPBACK, target.port)) as old:
        options = ("--cgroup", path, "--target", target.where, "--grace", "20ms")
        proxy = proxies.start("attach", "--ambient", *options)
        assert proxy.start
        time.sleep(0.2)  # ten times the grace
        assert not proxy.frozen()
        assert not proxy.events("frozen")
        old.sendall(REQUEST)
        assert old.recv(1000)
        time.sleep(0.1)
        assert not proxy.events("frozen")
    proxy.await_frozen()


def test_a_connection_that_was_open_before_and_silent_counts_as_idle_where_asked_for(
    proxies: Proxies, targets: Targets
) -> None:
    path = targets.cgroup("cgroup2")
    target = targets.start(cgroups=[path])
    with socket.create_connection((LOOPBACK, target.port)) as old:
        options = ("--cgroup", path, "--target", target.where, "--grace", "20ms", "--idle-stream", "200ms")
        proxy = proxies.start("attach", "--ambient", *options)
        proxy.await_frozen()
        old.sendall(REQUEST)
        assert old.recv(1000)
        proxy.await_frozen()


@pytest.mark.parametrize("freezer", ["cgroup2", "cgroup1", "process"])
def test_a_server_that_daemonises_is_seen(proxies: Proxies, freezer: str) -> None:
    proxy = ambient(proxies, "daemonise", "workers=2", options=("--freezer", freezer))
    for _ in range(5):
        proxy.await_frozen()
        assert proxy.get("/x") == b"/x"
    proxy.end()


@pytest.mark.parametrize("connections", ["kept", "new"])
def test_how_long_a_client_waited_for_a_thaw_is_told(proxies: Proxies, tmp_path: Path, connections: str) -> None:
    """From when its packet came, a SYN or a request's first bytes, until the server ran."""
    report, rounds = tmp_path / "report.json", 3
    proxy = ambient(proxies, options=("--report", str(report)))
    with contextlib.ExitStack() as stack:
        for number in range(rounds):
            proxy.await_frozen()
            sent = time.monotonic()
            if number == 0 or connections == "new":
                client = stack.enter_context(socket.create_connection((LOOPBACK, proxy.port), timeout=5))
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            answered = time.monotonic()
            thawed = until(partial(_thawed_since, proxy, sent), "the thaw is told of")[0]
            assert thawed["waited_us"] is not None
            assert 0 < thawed["waited_us"] * 1e-6 < time.monotonic() - sent
            assert thawed["monotonic"] < answered
        proxy.await_frozen()
    proxy.end()
    assert json.loads(report.read_text())["thaw"]["count"] >= rounds


def _thawed_since(proxy: Proxy, moment: float) -> list[Event]:
    """Before that it may have been let run for its own sake, while a connection is kept."""
    return [event for event in proxy.events("thawed") if event["monotonic"] > moment]


def test_over_ipv6_a_server_is_woken_too(proxies: Proxies) -> None:
    proxy = ambient(proxies, "v6")
    port = int(proxy.start["target"].rpartition(":")[2])
    assert proxy.start["target"].startswith("[::1]")
    for _ in range(5):
        proxy.await_frozen()
        with socket.create_connection(("::1", port), timeout=5) as client:
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_datagram_that_waits_for_a_slow_server_is_not_forgotten(proxies: Proxies) -> None:
    """It takes longer than the grace until the server looks for it."""
    slow = UDP_ECHO.replace("while True:", "import time\nwhile not time.sleep(0.2):")
    proxy = ambient(proxies, command=[sys.executable, "-I", "-S", "-c", slow])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        for number in range(3):
            proxy.await_frozen()
            client.sendto(b"%d" % number, (LOOPBACK, proxy.port))
            assert client.recv(100) == b"%d" % number


def test_a_datagram_wakes_and_is_answered(proxies: Proxies) -> None:
    proxy = ambient(proxies, command=[sys.executable, "-I", "-S", "-c", UDP_ECHO])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        for number in range(10):
            proxy.await_frozen()
            client.sendto(b"%d" % number, (LOOPBACK, proxy.port))
            assert client.recv(100) == b"%d" % number


@pytest.mark.parametrize("wake_on", ["port", "any"])
def test_what_comes_to_another_socket_wakes_only_where_asked_for(proxies: Proxies, wake_on: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        environment = {"OTHER": str(other.getsockname()[1])}
        command = [sys.executable, "-I", "-S", "-c", TALKER]
        options = ("--wake-on", wake_on)
        proxy = ambient(proxies, command=command, options=options, environment=environment)
        connection, _ = other.accept()
        with connection:
            proxy.await_frozen()
            connection.sendall(b"news")
            connection.settimeout(5 if wake_on == "any" else 0.2)
            with contextlib.nullcontext() if wake_on == "any" else pytest.raises(TimeoutError):
                assert connection.recv(100) == b"NEWS"


def test_many_connections_some_of_them_half_open(proxies: Proxies) -> None:
    proxy = ambient(proxies, "workers=2")
    proxy.await_frozen()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((LOOPBACK, proxy.port))) for _ in range(300)]
        proxy.await_frozen()  # connections on which nothing is asked do not keep it awake
        for client in idle[::3]:
            client.sendall(REQUEST)
        for client in idle[::3]:
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        proxy.await_frozen()
        for client in idle[::3]:
            client.shutdown(socket.SHUT_WR)
        idle[1].sendall(REQUEST)
        assert idle[1].recv(1000).startswith(b"HTTP/1.1 200")
        proxy.await_frozen()
        for client in idle[2::3]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    proxy.await_frozen()
    assert proxy.get() == b"/"


def test_a_server_ends_idle_connections_in_its_time_though_it_is_frozen(proxies: Proxies) -> None:
    """Every now and then it is let run, so that no request comes on a connection that it would end at the thaw."""
    patient = (
        "import os, socket, time\n"
        "listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "while True:\n"
        "    client, _ = listener.accept()\n"
        "    client.settimeout(0.5)\n"
        "    try:\n"
        "        while data := client.recv(1000):\n"
        "            client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
        "    except TimeoutError:\n"
        "        pass\n"
        "    client.close()\n"
    )
    proxy = ambient(proxies, command=[sys.executable, "-I", "-S", "-c", patient])
    with socket.create_connection((LOOPBACK, proxy.port), timeout=10) as client:
        client.sendall(REQUEST)
        assert client.recv(1000)
        proxy.await_frozen()
        assert client.recv(1000) == b""  # an end, in order
    proxy.await_frozen()


def test_a_connection_that_a_server_does_not_want_does_not_wake_it_for_ever(proxies: Proxies) -> None:
    """It waits to be accepted, and that is looked at after each freeze."""
    deaf = (
        "import os, socket, time\n"
        "listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "time.sleep(3600)\n"
    )
    proxy = ambient(proxies, command=[sys.executable, "-I", "-S", "-c", deaf])
    proxy.await_frozen()
    with socket.create_connection((LOOPBACK, proxy.port)):
        thaws = -1
        while thaws != len(proxy.events("thawed")):  # until there is none for longer than it is given at once
            thaws = len(proxy.events("thawed"))
            time.sleep(1.5)
        assert proxy.frozen()
        assert 2 <= thaws < 10


def test_a_server_that_is_killed_while_frozen_is_started_again_by_who_looks_after_it(proxies: Proxies) -> None:
    """Nobody listens then, so no packet would wake who is to start it."""
    again = 'while :; do "$@"; sleep 0.3; done'
    proxy = ambient(proxies, command=["sh", "-c", again, "sh", *SERVER])
    before = set()
    for _ in range(3):
        proxy.await_frozen()
        pid = int(proxy.get("/pid"))
        assert pid not in before
        before.add(pid)
        proxy.await_frozen()
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: process_state(pid) in ("", "Z"), "it is dead")  # type: ignore[misc]
        until(lambda: answers(proxy.port), "it listens again", 20)
    proxy.await_frozen()


def test_where_cgroup2_is_not_the_freezer_it_is_still_where_packets_are_seen(proxies: Proxies) -> None:
    for freezer in ("cgroup1", "process"):
        proxy = ambient(proxies, "workers=1", options=("--freezer", freezer))
        assert proxy.start["freezer"] == freezer
        proxy.await_frozen()
        assert proxy.get("/x") == b"/x"
        seat = cgroup.place("cgroup2")
        assert seat is not None
        assert _programs(os.path.join(seat, f"freeze-proxy-{proxy.pid}")) == 2
        proxy.end()
