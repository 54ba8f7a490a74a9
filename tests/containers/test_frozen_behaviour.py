"""What a runtime, and so a kubelet or a person at the node, can do to a container that is frozen.

These are facts about runc, crun, containerd and dockerd, not about freeze-proxy: the documentation states them, and the
daemon is built on them. Here the container is frozen by hand, through its cgroup, or paused by its runtime.
"""

import re
import threading
import time
from collections.abc import Callable

import grpc
import pytest

from tests.support.cluster import cgroups
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.dockerd import DockerContainer, Dockerd, DockerError
from tests.support.cluster.kubelet import Container, Kubelet
from tests.support.cluster.messages import EXITED, RUNNING
from tests.support.needs import need
from tests.support.wait import until

KILLED = 128 + 9
UNKNOWN = 3
AT_ONCE = 3.0
"""Seconds; nothing that is done at once takes so long."""


@pytest.fixture(autouse=True)
def v1() -> None:
    """All of this is about nodes with the v1 freezer."""
    need("freezer" in cgroups.hierarchies(), "There is no v1 freezer here.")


@pytest.fixture
def container(kubelet: Kubelet, runtime: str) -> Container:
    """A container that runs, on each runtime."""
    made = kubelet.pod(["user-container", "queue-proxy"], runtime)["user-container"]
    made.await_ticks()
    return made


@pytest.fixture
def frozen(container: Container) -> Container:
    """A container that is frozen through its cgroup."""
    container.freeze_cgroup()
    return container


def seconds(what: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.monotonic()
    what()
    return time.monotonic() - begun


def pause(containerd: Containerd, container: Container) -> None:
    """As a freezer that uses the Tasks API does it."""
    containerd.ctr("tasks", "pause", container.id)


def resume(containerd: Containerd, container: Container) -> None:
    containerd.ctr("tasks", "resume", container.id)


# What looks and does not touch.


def test_it_looks_as_if_it_ran(frozen: Container) -> None:
    assert frozen.state == RUNNING
    assert frozen.printed == ["started"]
    before, after = frozen.stats(), frozen.stats()
    assert before.memory.working_set_bytes.value > 0
    assert before.cpu.usage_core_nano_seconds.value == after.cpu.usage_core_nano_seconds.value
    assert frozen.frozen


def test_a_paused_one_looks_the_same(containerd: Containerd, container: Container) -> None:
    pause(containerd, container)
    assert (container.frozen, container.state, container.printed) == (True, RUNNING, ["started"])
    assert container.stats().memory.working_set_bytes.value > 0


def test_a_change_of_its_resources_leaves_it_frozen(containerd: Containerd, frozen: Container) -> None:
    """The kubelet's in-place resize."""
    containerd.call("UpdateContainerResources", container_id=frozen.id, linux={"cpu_shares": 204})
    assert frozen.frozen
    assert (cgroups.places(frozen.pid)["cpu"] / "cpu.shares").read_text() == "204\n"


# exec


def refusal(container: Container) -> str:
    """How the runtime refuses to run a command, which it does at once."""
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        container.execute("true")
    assert time.monotonic() - begun < AT_ONCE
    assert container.frozen
    return str(refused.value.details())


def test_exec_is_refused_at_once(frozen: Container, runtime: str) -> None:
    expected = {"runc": "cannot exec in a paused container", "crun": f"the container `{frozen.id}` is paused"}
    assert expected[runtime] in refusal(frozen)
    frozen.thaw_cgroup()
    assert frozen.execute("echo", "here").out == b"here\n"


def test_exec_into_a_paused_one_is_refused_at_once(containerd: Containerd, container: Container) -> None:
    pause(containerd, container)
    assert "cannot exec in a paused state" in refusal(container)
    resume(containerd, container)
    assert container.execute("echo", "here").out == b"here\n"


def test_exec_hangs_in_the_cgroup2_of_a_hybrid_node(containerd: Containerd, container: Container) -> None:
    """Where no runtime looks: so this is not how to freeze containers on such a node."""
    place = cgroups.places(container.pid).get("")
    need(place is not None and container.id in str(place), "This is no hybrid node.")
    assert place is not None
    (place / "cgroup.freeze").write_text("1")
    container.await_frozen()
    with pytest.raises(grpc.RpcError) as late:
        containerd.call("ExecSync", within=1, container_id=container.id, cmd=["true"], timeout=1)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    (place / "cgroup.freeze").write_text("0")
    assert container.execute("echo", "here").out == b"here\n"


# stop and delete


def test_a_stop_ends_it_in_its_own_time_once_it_is_thawed(frozen: Container) -> None:
    """The signal waits with it."""
    timer = threading.Timer(0.5, frozen.thaw_cgroup)
    timer.start()
    took = seconds(lambda: frozen.stop(grace=20))
    timer.join()
    assert 0.5 <= took < 5
    assert (frozen.printed, frozen.status().status.exit_code) == (["started", "terminated"], 0)


WAYS = pytest.mark.parametrize("way", ["cgroup", "pause"])


def freeze(containerd: Containerd, container: Container, way: str) -> None:
    container.await_ticks()
    if way == "cgroup":
        container.freeze_cgroup()
    else:
        pause(containerd, container)


@WAYS
def test_a_stop_by_runc_takes_the_whole_grace(kubelet: Kubelet, containerd: Containerd, way: str) -> None:
    """Then runc sends SIGKILL, and thaws so that it works."""
    container = kubelet.pod(["user-container"], "runc")["user-container"]
    freeze(containerd, container, way)
    assert 1 <= seconds(lambda: container.stop(grace=1)) < 5
    assert (container.state, container.status().status.exit_code) == (EXITED, KILLED)
    assert container.printed == ["started"]


@WAYS
def test_a_stop_by_crun_never_ends(kubelet: Kubelet, containerd: Containerd, way: str) -> None:
    """crun sends SIGKILL and does not thaw: the container is there until somebody else does."""
    container = kubelet.pod(["user-container"], "crun")["user-container"]
    freeze(containerd, container, way)
    with pytest.raises(grpc.RpcError) as late:
        container.stop(grace=1, within=1)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (container.state, container.alive, container.frozen) == (RUNNING, True, True)
    container.thaw_cgroup()
    container.await_exit(AT_ONCE)
    assert container.status().status.exit_code == KILLED


@WAYS
def test_a_pod_is_deleted_at_once_when_it_is_thawed(
    kubelet: Kubelet, containerd: Containerd, runtime: str, way: str
) -> None:
    """However it was frozen, whichever runtime."""
    pod = kubelet.pod(["user-container", "queue-proxy"], runtime)
    container = pod["user-container"]
    pod["queue-proxy"].await_ticks()
    freeze(containerd, container, way)
    deletion = threading.Thread(target=pod.delete, args=(20,))
    deletion.start()
    until(lambda: not pod["queue-proxy"].alive, "the container that is not frozen has ended")
    assert container.alive
    if way == "cgroup":
        container.thaw_cgroup()
    else:
        resume(containerd, container)
    deletion.join(5)
    assert not deletion.is_alive()
    assert not container.alive


def test_a_kill_waits_for_the_thaw(frozen: Container) -> None:
    frozen.kill()
    assert frozen.stands_still()
    assert (frozen.alive, frozen.state) == (True, RUNNING)
    frozen.thaw_cgroup()
    frozen.await_exit(AT_ONCE)
    assert frozen.status().status.exit_code == KILLED


# A restart of containerd


def test_frozen_through_its_cgroup_it_outlives_a_restart_of_containerd(
    containerd: Containerd, frozen: Container
) -> None:
    containerd.kill()
    containerd.start()
    assert (frozen.state, frozen.frozen) == (RUNNING, True)
    frozen.thaw_cgroup()
    frozen.await_ticks()


def test_paused_it_is_unknown_after_a_restart_of_containerd(containerd: Containerd, container: Container) -> None:
    """And a kubelet puts another in the place of what is unknown."""
    pause(containerd, container)
    containerd.kill()
    containerd.start()
    assert (container.state, container.frozen) == (UNKNOWN, True)
    resume(containerd, container)
    container.await_ticks()
    assert container.state == UNKNOWN


# Two ways at once


def test_what_is_frozen_through_its_cgroup_is_no_business_of_runc(kubelet: Kubelet, containerd: Containerd) -> None:
    container = kubelet.pod(["user-container"], "runc")["user-container"]
    container.freeze_cgroup()
    with pytest.raises(AssertionError, match="container not running"):
        pause(containerd, container)
    with pytest.raises(AssertionError, match="cannot resume a running process"):
        resume(containerd, container)
    assert container.frozen


def test_what_is_frozen_through_its_cgroup_is_paused_by_crun(kubelet: Kubelet, containerd: Containerd) -> None:
    container = kubelet.pod(["user-container"], "crun")["user-container"]
    container.freeze_cgroup()
    pause(containerd, container)
    assert container.frozen
    resume(containerd, container)
    assert not container.frozen
    container.await_ticks()


def test_paused_and_thawed_through_its_cgroup_it_runs_and_counts_as_paused(
    containerd: Containerd, container: Container, runtime: str
) -> None:
    pause(containerd, container)
    container.thaw_cgroup()
    container.await_ticks()
    assert _state(containerd, container) == "PAUSED"
    with pytest.raises(grpc.RpcError):
        container.execute("true")
    if runtime == "runc":
        with pytest.raises(AssertionError, match="container not paused"):
            resume(containerd, container)
        assert _state(containerd, container) == "PAUSED"
        container.freeze_cgroup()
    resume(containerd, container)
    assert _state(containerd, container) == "RUNNING"
    container.await_ticks()


def _state(containerd: Containerd, container: Container) -> str:
    found = re.search(rf"{container.id}\s+\d+\s+(\w+)", containerd.ctr("tasks", "list"))
    assert found is not None
    return found[1]


# Docker


@pytest.fixture(params=["cgroup", "pause"])
def frozen_by(request: pytest.FixtureRequest) -> str:
    """Through its cgroup, or by dockerd."""
    return str(request.param)


@pytest.fixture
def in_docker(dockerd: Dockerd, frozen_by: str) -> DockerContainer:
    """A container that is frozen, either way."""
    container = dockerd.run("frozen")
    container.await_ticks()
    if frozen_by == "cgroup":
        container.freeze_cgroup()
    else:
        dockerd.docker("pause", container.id)
    assert container.frozen
    return container


def thaw(container: DockerContainer, frozen_by: str) -> None:
    if frozen_by == "cgroup":
        container.thaw_cgroup()
    else:
        container.dockerd.docker("unpause", container.id)


def test_docker_shows_it(dockerd: Dockerd, in_docker: DockerContainer, frozen_by: str) -> None:
    assert in_docker.status == {"cgroup": "running", "pause": "paused"}[frozen_by]
    assert in_docker.printed == ["started"]
    assert dockerd.docker("stats", "--no-stream", "--format={{.CPUPerc}}", in_docker.id).strip() == "0.00%"
    assert in_docker.frozen


def test_docker_refuses_exec(dockerd: Dockerd, in_docker: DockerContainer, frozen_by: str) -> None:
    says = {"cgroup": "cannot exec in a paused container", "pause": "unpause the container before exec"}[frozen_by]
    with pytest.raises(DockerError, match=says):
        dockerd.docker("exec", in_docker.id, "true")
    assert in_docker.frozen
    thaw(in_docker, frozen_by)
    assert dockerd.docker("exec", in_docker.id, "echo", "here") == "here\n"


def test_docker_stops_it(dockerd: Dockerd, in_docker: DockerContainer, frozen_by: str) -> None:
    """dockerd thaws what it has paused itself; the rest ends by SIGKILL, which runc thaws for."""
    took = seconds(lambda: dockerd.docker("stop", "-t", "3", in_docker.id))
    code = in_docker.inspect()["State"]["ExitCode"]
    if frozen_by == "cgroup":
        assert (3 <= took < 8, code, in_docker.printed) == (True, KILLED, ["started"])
    else:
        assert (took < 2.5, code, in_docker.printed) == (True, 0, ["started", "terminated"])


def test_docker_removes_it(dockerd: Dockerd, in_docker: DockerContainer) -> None:
    dockerd.docker("rm", "--force", in_docker.id)
    assert not in_docker.alive


def test_it_outlives_a_restart_of_dockerd(dockerd: Dockerd, in_docker: DockerContainer, frozen_by: str) -> None:
    status = in_docker.status
    dockerd.kill()
    dockerd.start()
    assert (in_docker.status, in_docker.frozen) == (status, True)
    thaw(in_docker, frozen_by)
    in_docker.await_ticks()


def test_docker_cannot_undo_what_a_cgroup_write_did(dockerd: Dockerd) -> None:
    container = dockerd.run("mixed")
    container.freeze_cgroup()
    with pytest.raises(DockerError, match="container not running"):
        dockerd.docker("pause", container.id)
    with pytest.raises(DockerError, match="is not paused"):
        dockerd.docker("unpause", container.id)
    assert container.frozen


def test_paused_and_thawed_through_its_cgroup_docker_takes_it_for_paused(dockerd: Dockerd) -> None:
    container = dockerd.run("mixed")
    dockerd.docker("pause", container.id)
    container.thaw_cgroup()
    container.await_ticks()
    with pytest.raises(DockerError, match="container not paused"):
        dockerd.docker("unpause", container.id)
    assert container.status == "paused"
    container.freeze_cgroup()
    dockerd.docker("unpause", container.id)
    assert container.status == "running"
    container.await_ticks()
