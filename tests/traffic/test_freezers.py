"""Between requests the kernel says that the server stands still, whichever way it is frozen."""

import time
from pathlib import Path

import pytest

from tests.support.needs import need, need_root
from tests.support.raw import RawClient, request
from tests.support.running import Running
from tests.support.servers import SERVERS
from tests.support.starting import Start

_FREEZERS = ("cgroup2", "cgroup1", "process")


@pytest.fixture(params=[*_FREEZERS, "pod"])
def by(request: pytest.FixtureRequest) -> tuple[str, Start]:
    """The name of each freezer, and how a server is started behind it; in a pod, the daemon freezes."""
    freezer = request.param
    if freezer == "pod":
        return freezer, request.getfixturevalue("rig").run
    _need_freezer(freezer)
    return freezer, lambda folder, command, *options: Running(folder, command, "--freezer", freezer, *options)


def _need_freezer(freezer: str) -> None:
    if freezer != "process":
        need_root()
        kind = "cgroup2" if freezer == "cgroup2" else "freezer"
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        there = any(
            fields[2] == "cgroup2" if kind == "cgroup2" else "freezer" in fields[3].split(",") for fields in mounts
        )
        need(there, f"This machine has no {freezer} hierarchy for freezing.")


@pytest.mark.parametrize("server", ["http.server", "gunicorn", "node", "nginx"])
def test_frozen_between_requests_and_awake_during_them(tmp_path: Path, by: tuple[str, Start], server: str) -> None:
    freezer, start = by
    with start(tmp_path, SERVERS[server](tmp_path), "--grace", "30ms") as running:
        assert running.freezer == freezer
        client = RawClient(running.port, running.host)
        for number in range(5):
            running.await_frozen()
            used = running.cpu_seconds()
            time.sleep(0.1)  # the span over which its CPU time is measured
            assert running.cpu_seconds() == used
            assert running.is_frozen()
            mark = running.mark()
            assert f"/echo?{number}".encode() in client.exchange(request("GET", f"/echo?{number}"))
            thawed = running.await_event("thawed", mark)
            assert thawed["waited_us"] < 1_000_000
            running.await_event("frozen", mark)
        client.close()
        running.await_frozen()
        assert len(running.processes()) >= (2 if server in ("gunicorn", "nginx") else 1)
        report = running.end()
    assert report["freezer"] == freezer
    assert report["requests"] == 5
    assert report["refused"] == 0
    assert report["freezes"] >= 6
    assert report["thaw"]["count"] == 5
    assert 0.1 < report["share_frozen"] < 1


def test_awake_throughout_a_slow_response(tmp_path: Path, by: tuple[str, Start]) -> None:
    with by[1](tmp_path, SERVERS["node"](tmp_path), "--grace", "10ms") as running:
        running.await_frozen()
        client = RawClient(running.port, running.host)
        client.socket.sendall(request("GET", "/slow"))
        while not client.socket.recv(4096).endswith(b"first\n"):
            pass
        frozen = running.count("frozen")
        while True:  # 0.3 s pass before the second part
            stood_still = running.is_frozen()
            client.socket.settimeout(0.01)
            try:
                assert client.socket.recv(4096) == b"second\n"
            except TimeoutError:
                assert not stood_still
                continue
            break
        client.close()
        assert running.count("frozen") <= frozen + 1
        running.await_frozen()


@pytest.mark.parametrize("freezer", _FREEZERS)
def test_the_servers_output_passes_untouched_and_it_ends_while_frozen(tmp_path: Path, freezer: str) -> None:
    _need_freezer(freezer)
    with Running(tmp_path, SERVERS["http.server"](tmp_path), "--freezer", freezer, "--grace", "10ms") as running:
        running.await_frozen()
        assert "The server's own words.\n" in running.other_lines
        processes = running.processes()
        running.end()
        assert not any(Path("/proc", str(pid)).exists() for pid in processes)
