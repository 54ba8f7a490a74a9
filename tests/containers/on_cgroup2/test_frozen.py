"""What a runtime, and so a kubelet, systemd or a person at the node, can do to a container that is frozen: on cgroup2.

Facts about runc, crun, containerd and systemd, not about freeze-proxy; those on the v1 freezer are in
``tests/containers/test_frozen_behaviour.py``. Each is asserted, and told to ``facts`` for docs/frozen-containers.md.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.containers.on_cgroup2.facts import Facts
from tests.support.cluster import cgroups
from tests.support.cluster.containerd import RUNTIMES, Containerd
from tests.support.cluster.kubelet import Container, Kubelet
from tests.support.cluster.messages import EXITED, RUNNING
from tests.support.wait import FACTOR, until

KILLED = 128 + 9
GRACE = 5
"""Seconds of ``terminationGracePeriodSeconds``."""
LONG_GRACE = 60
"""Seconds; for what should not come to need it, however slow the machine."""
AT_ONCE = 0.5 * FACTOR
"""Seconds; what is done at once takes less even here."""
SERVICE = "queue-proxy"


@pytest.fixture(scope="session")
def facts() -> Facts:
    return Facts()


@pytest.fixture(scope="module", params=RUNTIMES)
def shared(request: pytest.FixtureRequest, session_containerd: Containerd) -> Iterator[Container]:
    """A container on each runtime, for all that does not end it."""
    kubelet = Kubelet(session_containerd)
    try:
        container = kubelet.pod(["user-container"], str(request.param))["user-container"]
        container.await_ticks()
        yield container
    finally:
        kubelet.close()


@pytest.fixture
def frozen(shared: Container) -> Iterator[Container]:
    """It, frozen through its cgroup; thawed afterwards."""
    shared.freeze_cgroup()
    yield shared
    shared.thaw_cgroup()
    shared.await_ticks()


def timed(what: Callable[[], object]) -> float:
    """How many seconds it takes."""
    begun = time.monotonic()
    what()
    return time.monotonic() - begun


def unit(container: Container) -> str:
    """The scope that systemd has for it."""
    return f"cri-containerd-{container.id}.scope"


def scope(container: Container) -> Path:
    """Its cgroup."""
    groups = container.pod.kubelet.containerd.cgroups
    return cgroups.hierarchies()[""] / groups.of_container(container.pod.uid, container.id).lstrip("/")


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def freezer_state(container: Container) -> str:
    """What systemd believes."""
    return systemctl("show", "--value", "--property=FreezerState", unit(container))


# What looks and does not touch.


def test_it_looks_as_if_it_ran(facts: Facts, frozen: Container) -> None:
    assert frozen.state == RUNNING
    assert frozen.printed == ["started"]
    before, after = frozen.stats(), frozen.stats()
    assert before.memory.working_set_bytes.value > 0
    assert before.cpu.usage_core_nano_seconds.value == after.cpu.usage_core_nano_seconds.value
    assert frozen.frozen
    facts.see("CRI status, logs, statistics", frozen.pod.runtime, "RUNNING, as ever")


def test_systemd_has_not_noticed(facts: Facts, frozen: Container) -> None:
    """It believes what it has done itself."""
    assert systemctl("is-active", unit(frozen)) == "active"
    assert freezer_state(frozen) == "running"
    facts.see("systemd's `FreezerState` of its scope", frozen.pod.runtime, "`running`")


# exec


def test_exec_is_refused_at_once(facts: Facts, frozen: Container) -> None:
    """And so an exec probe, whose error is no verdict: the kubelet keeps the last one."""
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        frozen.execute("true", within=1)
    took = time.monotonic() - begun
    text = {"runc": "cannot exec in a paused container", "crun": f"the container `{frozen.id}` is paused"}
    assert text[frozen.pod.runtime] in str(refused.value.details())
    assert refused.value.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK)
    assert took < AT_ONCE
    assert frozen.frozen
    says = text[frozen.pod.runtime].replace(f"`{frozen.id}`", "…")
    facts.see("exec", frozen.pod.runtime, f'refused at once: "{says}"')
    facts.see(
        "exec probe (`ExecSync`)",
        frozen.pod.runtime,
        f"error {refused.value.code().name}, which is no verdict: the last one holds",
    )


def test_exec_looks_at_one_cgroup_alone(facts: Facts, shared: Container) -> None:
    """runc at the scope; crun has a cgroup inside of that, and hangs in it if the scope is frozen."""
    (scope(shared) / "cgroup.freeze").write_text("1")
    try:
        shared.await_frozen()
        with pytest.raises(grpc.RpcError) as refused:
            shared.pod.kubelet.containerd.call(
                "ExecSync", within=AT_ONCE / FACTOR, container_id=shared.id, cmd=["true"], timeout=1
            )
    finally:
        (scope(shared) / "cgroup.freeze").write_text("0")
    hangs = refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert hangs == (shared.pod.runtime == "crun")
    facts.see("exec, frozen by a write to the scope", shared.pod.runtime, "hangs" if hangs else "refused at once")


def test_exec_works_again_after_the_thaw(shared: Container) -> None:
    assert shared.execute("echo", "here").out == b"here\n"


def test_an_exec_probe_under_way_fails_in_time(facts: Facts, shared: Container) -> None:
    """A freeze takes with it what is in the container's cgroup, so also what a probe has just begun there."""
    with ThreadPoolExecutor(1) as thread:
        probe = thread.submit(shared.execute, "sh", "-c", "touch /tmp/begun; exec sleep 600", within=4)
        try:
            until(lambda: shared.execute("test", "-e", "/tmp/begun").code == 0, "the probe has begun")
            shared.freeze_cgroup()
            error = probe.exception(60)
        finally:
            shared.thaw_cgroup()
    assert isinstance(error, grpc.RpcError)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    facts.see("exec probe that a freeze catches", shared.pod.runtime, "fails at its time-out")


# What changes it


def test_a_change_of_its_resources_leaves_it_frozen(facts: Facts, containerd: Containerd, frozen: Container) -> None:
    """The kubelet's in-place resize: runtimes hand it to systemd and write it, too."""
    before = (scope(frozen) / "cpu.weight").read_text()
    containerd.call("UpdateContainerResources", container_id=frozen.id, linux={"cpu_shares": 2048})
    assert (scope(frozen) / "cpu.weight").read_text() != before
    assert frozen.frozen
    assert frozen.stands_still()
    facts.see("change of its resources", frozen.pod.runtime, "carried out, stays frozen")


def test_systemd_changes_its_unit_and_leaves_it_frozen(facts: Facts, frozen: Container) -> None:
    systemctl("set-property", "--runtime", unit(frozen), "CPUWeight=77")
    assert (scope(frozen) / "cpu.weight").read_text() == "77\n"
    assert frozen.frozen
    facts.see("`systemctl set-property` of its scope", frozen.pod.runtime, "carried out, stays frozen")


def test_systemd_reads_its_configuration_anew_and_leaves_it_frozen(facts: Facts, frozen: Container) -> None:
    systemctl("daemon-reload")
    assert frozen.frozen
    systemctl("daemon-reexec")
    assert systemctl("is-active", unit(frozen)) == "active"
    assert frozen.frozen
    facts.see("`systemctl daemon-reload`, `daemon-reexec`", frozen.pod.runtime, "stays frozen")


def test_what_systemd_froze_is_thawed_by_a_write(facts: Facts, shared: Container) -> None:
    """And counts as frozen with systemd, until that thaws it, too."""
    systemctl("freeze", unit(shared))
    try:
        assert (shared.frozen, freezer_state(shared)) == (True, "frozen")
        (scope(shared) / "cgroup.freeze").write_text("0")
        shared.await_ticks()
        assert freezer_state(shared) == "frozen"
    finally:
        systemctl("thaw", unit(shared))
    assert freezer_state(shared) == "running"
    facts.see(
        "`systemctl freeze`, thawed by a write", shared.pod.runtime, "runs, counts as frozen until `systemctl thaw`"
    )


def test_systemd_thaws_what_a_write_froze_or_not(facts: Facts, frozen: Container) -> None:
    """A unit that it holds for running is nothing to thaw."""
    systemctl("thaw", unit(frozen))
    facts.see("`systemctl thaw`", frozen.pod.runtime, "stays frozen" if frozen.frozen else "runs")


def test_it_outlives_a_restart_of_containerd(facts: Facts, containerd: Containerd, frozen: Container) -> None:
    containerd.kill()
    containerd.start()
    assert (frozen.state, frozen.frozen) == (RUNNING, True)
    frozen.thaw_cgroup()
    frozen.await_ticks()
    facts.see("containerd restarts", frozen.pod.runtime, "RUNNING, frozen; a thaw works")


def test_containerd_pauses_and_resumes_what_is_frozen(facts: Facts, containerd: Containerd, frozen: Container) -> None:
    said = []
    for verb in ("pause", "resume"):
        try:
            containerd.ctr("tasks", verb, frozen.id)
            said.append("carried out")
        except AssertionError:
            said.append("refused")
    outcome = "stays frozen" if frozen.frozen else "it runs"
    assert (said, outcome) == {
        "runc": (["refused", "refused"], "stays frozen"),
        "crun": (["carried out", "carried out"], "it runs"),
    }[frozen.pod.runtime]
    facts.see("containerd's pause, then its resume", frozen.pod.runtime, f"{', '.join(said)}: {outcome}")


# Its end


@pytest.fixture(params=RUNTIMES)
def mortal(request: pytest.FixtureRequest, kubelet: Kubelet) -> Container:
    """A container of the test's own, on each runtime."""
    container = kubelet.pod(["user-container"], str(request.param))["user-container"]
    container.await_ticks()
    return container


def test_deleted_while_it_runs_it_ends_in_its_own_time(facts: Facts, mortal: Container) -> None:
    took = timed(lambda: mortal.stop(LONG_GRACE))
    assert (mortal.printed, mortal.status().status.exit_code) == (["started", "terminated"], 0)
    assert took < LONG_GRACE
    facts.see("stop, awake", mortal.pod.runtime, "ends in its own time, exit code 0")


def test_deleted_frozen_it_takes_the_whole_grace(facts: Facts, mortal: Container) -> None:
    """SIGTERM waits with it; SIGKILL, on cgroup2, does not."""
    mortal.freeze_cgroup()
    took = timed(lambda: mortal.stop(GRACE))
    assert took >= GRACE
    assert (mortal.state, mortal.status().status.exit_code) == (EXITED, KILLED)
    assert mortal.printed == ["started"]
    facts.see(f"stop, grace {GRACE} s, frozen", mortal.pod.runtime, "after the whole grace, exit code 137")


def test_thawed_meanwhile_it_ends_in_its_own_time(facts: Facts, mortal: Container) -> None:
    mortal.freeze_cgroup()
    timer = threading.Timer(0.5, mortal.thaw_cgroup)
    timer.start()
    took = timed(lambda: mortal.stop(LONG_GRACE))
    timer.join()
    assert took < LONG_GRACE
    assert (mortal.printed, mortal.status().status.exit_code) == (["started", "terminated"], 0)
    facts.see("stop, thawed meanwhile", mortal.pod.runtime, "ends in its own time, exit code 0")


def test_a_kill_from_outside_ends_it_at_once(facts: Facts, mortal: Container) -> None:
    mortal.freeze_cgroup()
    mortal.kill()
    mortal.await_exit(AT_ONCE)
    assert mortal.status().status.exit_code == KILLED
    facts.see("SIGKILL from outside", mortal.pod.runtime, "ends it at once")


def test_a_stop_without_grace_ends_it_at_once(facts: Facts, mortal: Container) -> None:
    mortal.freeze_cgroup()
    took = timed(lambda: mortal.stop(0))
    assert took < AT_ONCE
    assert mortal.status().status.exit_code == KILLED
    facts.see("stop, grace 0", mortal.pod.runtime, "ends it at once, exit code 137")
