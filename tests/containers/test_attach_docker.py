"""``freeze-proxy attach --docker``: a container of a real dockerd."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freeze_proxy.local.containers import DockerName, plan_for_container
from tests.containers.attaching import get_later, web
from tests.support.cluster.dockerd import DockerContainer, Dockerd
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.proxies import ROOT, Proxies, Proxy
from tests.support.wait import until

WAYS = ("auto", "docker")
NOBODY = 65534


class Attached:
    """A container with a web server, and what attaches to it."""

    def __init__(self, dockerd: Dockerd, proxies: Proxies) -> None:
        self.dockerd = dockerd
        self._proxies = proxies
        self.port = free_port()
        self.container: DockerContainer = dockerd.run("web", web(self.port), network="host")
        await_port(self.port)

    def attach(self, *options: str, name: str = "web", **how: Any) -> Proxy:
        socket = [] if "--docker-socket" in options else ["--docker-socket", str(self.dockerd.socket)]
        target = ["--target", f"{LOOPBACK}:{self.port}"]
        return self._proxies.attach("--docker", name, *socket, *target, *options, **how)

    def start(self, *options: str, **how: Any) -> Proxy:
        """Attach, and wait for the first freeze."""
        proxy = self.attach(*options, **how)
        proxy.event("frozen")
        self.container.await_frozen()
        return proxy


@pytest.fixture
def attached(dockerd: Dockerd, proxies: Proxies) -> Iterator[Attached]:
    made = Attached(dockerd, proxies)
    yield made
    proxies.close()  # before the container is removed


@pytest.mark.parametrize("way", WAYS)
def test_frozen_between_requests(attached: Attached, way: str) -> None:
    container = attached.container
    proxy = attached.start("--freezer", way)
    if way == "docker":
        assert (proxy.start["freezer"], proxy.where, container.status) == ("docker", "the container web", "paused")
    else:
        assert (proxy.where, container.status) == (str(container.cgroup), "running")
    for number in range(3):
        assert proxy.get() == b"hello\n"
        proxy.event("frozen", number + 1)
        container.await_frozen()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert not container.frozen
    assert container.status == "running"
    assert proxy.event("end")["requests"] == 3


def test_by_its_id(attached: Attached) -> None:
    proxy = attached.start(name=attached.container.id[:12])
    assert proxy.get() == b"hello\n"
    assert proxy.end() == 0


@pytest.mark.parametrize("way", WAYS)
def test_killed_the_container_goes_on(attached: Attached, way: str) -> None:
    proxy = attached.start("--freezer", way)
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    attached.container.await_awake(5)
    proxy.assert_nothing_left()
    assert attached.container.status == "running"


@pytest.mark.parametrize("way", WAYS)
def test_docker_stop_while_frozen(attached: Attached, way: str) -> None:
    """It is thawed to handle the signal, and not killed ten seconds later."""
    proxy = attached.start("--freezer", way)
    began = time.monotonic()
    attached.dockerd.docker("stop", "web")
    assert time.monotonic() - began < 6
    assert attached.container.inspect()["State"]["ExitCode"] == 0
    assert attached.container.printed == ["started", "terminated"]
    assert proxy.wait() == 0
    assert proxy.event("gone")["message"] == "the container web has ended."


def test_docker_kill_while_frozen(attached: Attached) -> None:
    proxy = attached.start()
    began = time.monotonic()
    attached.dockerd.docker("kill", "web")
    until(lambda: not attached.container.alive, "it has ended")
    assert time.monotonic() - began < 6
    assert proxy.wait() == 0


@pytest.mark.parametrize("way", WAYS)
def test_restarted_it_is_left(attached: Attached, way: str) -> None:
    """As with --pid: what has been started anew is another server."""
    proxy = attached.start("--freezer", way)
    attached.dockerd.docker("restart", "web")
    assert proxy.wait() == 0
    assert proxy.event("gone")["message"] == "the container web has ended."
    assert attached.container.status == "running"


def test_throttled(attached: Attached) -> None:
    proxy = attached.attach("--mode", "throttle")
    assert proxy.start["freezer"] == "throttle"
    quota = Path(proxy.where, "cpu.max" if Path(proxy.where, "cpu.max").exists() else "cpu.cfs_quota_us")
    before = quota.read_text()
    until(lambda: quota.read_text() != before, "it is throttled")
    assert quota.read_text().startswith("1000")
    assert proxy.end() == 0
    assert quota.read_text() == before


def test_by_signals(attached: Attached) -> None:
    """All of its processes, though some were started by exec."""
    attached.dockerd.docker("exec", "--detach", "web", "sleep", "1000")
    proxy = attached.attach("--freezer", "process")
    assert proxy.start["freezer"] == "process"
    proxy.event("frozen")
    pids = (attached.container.cgroup / "cgroup.procs").read_text().split()
    assert len(pids) == 3
    assert {Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] for pid in pids} == {"T"}
    assert proxy.get() == b"hello\n"
    assert proxy.end() == 0


def test_where_the_cgroup_cannot_be_written(attached: Attached) -> None:
    """Docker is asked instead."""
    read_only = 'for each in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,ro $each; done; exec "$@"'
    proxy = attached.start(wrap=["unshare", "--mount", "sh", "-c", f"exec 3>&2 2>/dev/null; {read_only} 2>&3", "sh"])
    assert proxy.start["freezer"] == "docker"
    assert "Not by its cgroup: " in proxy.start["message"]
    assert "cannot be written" in proxy.start["message"]
    assert attached.container.status == "paused"
    assert proxy.end() == 0
    assert attached.container.status == "running"


def test_dry_run(attached: Attached) -> None:
    proxy = attached.attach("--mode", "dry-run", "--freezer", "docker")
    proxy.event("frozen")
    assert attached.container.status == "running"
    assert proxy.get() == b"hello\n"
    assert proxy.end() == 0


# Docker comes and goes.


def test_dockerd_is_killed_while_it_is_frozen_through_its_cgroup(attached: Attached) -> None:
    """It is nothing to us."""
    proxy = attached.start()
    attached.dockerd.kill()
    assert proxy.get() == b"hello\n"
    attached.container.await_frozen()
    assert proxy.end() == 0
    assert not attached.container.frozen


def test_dockerd_is_killed_while_it_is_paused(attached: Attached) -> None:
    """The request waits until dockerd is there again, and is served then."""
    proxy = attached.start("--freezer", "docker", "--thaw-timeout", "30s")
    attached.dockerd.kill()
    answer = get_later(proxy)
    assert "Docker cannot be asked" in proxy.event("failed")["reason"]
    assert not answer.done()
    attached.dockerd.ensure()
    assert answer.result(20) == b"hello\n"
    attached.container.await_frozen()
    assert proxy.end() == 0
    assert attached.container.status == "running"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_leaving_while_dockerd_is_away(attached: Attached, by: int) -> None:
    """The guard stays, and thaws when it can."""
    proxy = attached.start("--freezer", "docker")
    guard = proxy.guard
    attached.dockerd.kill()
    proxy.signal(by)
    code = proxy.wait()
    if by == signal.SIGTERM:
        assert code == 125
        assert "the guard goes on trying to thaw it" in proxy.err()
    assert Path("/proc", str(guard)).exists()
    assert attached.container.frozen
    attached.dockerd.ensure()
    until(lambda: attached.container.status == "running", "it is thawed")
    proxy.assert_nothing_left(5)


# What cannot be attached to.


@pytest.mark.parametrize("how", ["docker", "cgroup"])
def test_found_paused(attached: Attached, how: str) -> None:
    if how == "docker":
        attached.dockerd.docker("pause", "web")
    else:
        attached.container.freeze_cgroup()
    for way in WAYS:
        proxy = attached.attach("--freezer", way)
        assert proxy.wait() == 125
        assert proxy.sentence().startswith("Somebody has stopped ")
        assert attached.container.frozen
    if how == "cgroup":
        attached.container.thaw_cgroup()


def test_no_such_container(attached: Attached) -> None:
    proxy = attached.attach(name="nobody")
    assert proxy.wait() == 125
    assert proxy.sentence() == "Docker knows of no container nobody."


def test_not_running(attached: Attached) -> None:
    attached.dockerd.docker("stop", "web")
    proxy = attached.attach()
    assert proxy.wait() == 125
    assert proxy.sentence() == "The container web does not run: Docker has it as exited."


def test_nobody_at_the_socket(attached: Attached, tmp_path: Path) -> None:
    proxy = attached.attach("--docker-socket", f"unix://{tmp_path}/none")
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        f"Docker cannot be asked: there is no socket {tmp_path}/none; start it, or say where its socket is."
    )
    attached.dockerd.kill()
    proxy = attached.attach()
    assert proxy.wait() == 125
    assert proxy.sentence() == (f"Docker cannot be asked: nobody listens at {attached.dockerd.socket}; start it.")


@pytest.mark.parametrize("may", [False, True])
def test_another_user(attached: Attached, may: bool) -> None:
    """Who may use Docker may attach; cgroups are root's."""
    socket = attached.dockerd.socket
    attached.dockerd.folder.chmod(0o711)
    attached.dockerd.folder.parent.chmod(0o711)
    before = socket.stat()
    if may:
        os.chown(socket, NOBODY, before.st_gid)
    DockerName("web", str(socket)).find()  # so that all is imported that the other user could not read
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            plan, about = plan_for_container(DockerName("web", str(socket)).find(), "auto", False)
            freezer = plan.freezer(0)
            os.write(writer, f"{freezer.kind}, for {about} {freezer.freeze()}".encode())
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    os.chown(socket, before.st_uid, before.st_gid)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    if may:
        assert said.startswith("docker, for Not by its cgroup: ")
        assert said.endswith("writable. True")
        assert attached.container.status == "paused"
    else:
        assert said == (
            f"Docker cannot be asked: {socket} is not open to this user; run freeze-proxy as one who may use it."
        )


def test_a_socket_that_is_elsewhere(attached: Attached) -> None:
    proxy = attached.attach("--docker-socket", "tcp://127.0.0.1:2375")
    assert proxy.wait() == 2
    assert "'tcp://127.0.0.1:2375' is not a socket of this machine" in proxy.err()


def test_without_the_library(attached: Attached, tmp_path: Path) -> None:
    (tmp_path / "httpx2.py").write_text("raise ImportError")
    proxy = attached.attach(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}/src"})
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        "Docker and CRI-O are asked by the library httpx2, which is not installed: pip install 'freeze-proxy[cluster]'."
    )


def test_which_freezer_goes_with_what(attached: Attached) -> None:
    proxy = attached.attach("--freezer", "containerd")
    assert proxy.wait() == 2
    assert "--freezer containerd goes with --containerd." in proxy.err()
    proxy = attached.attach("--pid", "100000")
    assert proxy.wait() == 2
    assert "one of --pid, --cgroup, --docker and --containerd" in proxy.err()
