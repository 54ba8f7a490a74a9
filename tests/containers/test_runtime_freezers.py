"""Freezing by asking the runtime, each with real containers. CRI-O is a stand-in for the real one."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from freeze_proxy.freezers import FreezeError, Gone
from freeze_proxy.freezers.containerd import ContainerdFreezer, running
from freeze_proxy.freezers.crio import CrioFreezer
from freeze_proxy.freezers.docker import DockerFreezer
from freeze_proxy.freezers.remade import remade
from freeze_proxy.freezers.runtime import RuntimeFreezer
from tests.support.cluster.crio_stand_in import CrioStandIn
from tests.support.cluster.dockerd import Dockerd
from tests.support.cluster.kubelet import Kubelet
from tests.support.cluster.ticking import TICK, Command, Ticking
from tests.support.wait import until

KINDS = ("containerd-runc", "containerd-crun", "docker", "crio-stand-in")
BUSY = ("sh", "-c", "while :; do :; done")
Make = Callable[..., "Subject"]


class Subject:
    """A container, how its freezer is made, and how its runtime is killed and started again."""

    def __init__(
        self, kind: str, container: Ticking, make: Callable[[str], RuntimeFreezer], runtime: "Runtime"
    ) -> None:
        self.kind = kind
        self.container = container
        self.make = make
        self.runtime = runtime
        self.freezer = self.again()

    def again(self) -> RuntimeFreezer:
        """Another freezer for it, as another process makes one."""
        return self.make(self.container.id)


class Runtime(Protocol):
    """What all runtimes of the rig can do."""

    def kill(self) -> None: ...

    def ensure(self) -> None: ...


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Starts a container of this kind of runtime."""
    kind = request.param
    made: list[Subject] = []

    def start(command: Command = TICK) -> Subject:
        if kind == "docker":
            docker: Dockerd = request.getfixturevalue("dockerd")
            made.append(
                Subject(kind, docker.run("subject", command), partial(DockerFreezer, str(docker.socket)), docker)
            )
            return made[-1]
        kubelet: Kubelet = request.getfixturevalue("kubelet")
        node = kubelet.containerd
        pod = kubelet.pod({"user-container": command}, "crun" if kind == "containerd-crun" else "runc")
        if kind == "crio-stand-in":
            crio: CrioStandIn = request.getfixturevalue("crio_stand_in")
            made.append(Subject(kind, pod["user-container"], partial(CrioFreezer, str(crio.socket)), crio))
        else:
            freezer = partial(ContainerdFreezer, str(node.socket), node.namespace)
            made.append(Subject(kind, pod["user-container"], freezer, node))
        return made[-1]

    yield start
    for subject in made:
        subject.freezer.close()


def test_there_and_back(make: Make) -> None:
    subject = make()
    container, freezer = subject.container, subject.freezer
    container.await_ticks()
    for _ in range(3):
        assert freezer.freeze()
        assert container.frozen
        assert freezer.still()
        assert freezer.frozen()
        assert freezer.alive()
        freezer.thaw()
        assert not container.frozen
        assert not freezer.still()
    container.await_ticks()


def test_twice_is_once(make: Make) -> None:
    subject = make()
    subject.freezer.thaw()
    assert subject.freezer.freeze()
    assert subject.freezer.freeze()
    assert subject.container.frozen
    subject.freezer.thaw()
    subject.freezer.thaw()
    subject.container.await_ticks()


def test_another_instance_thaws(make: Make) -> None:
    subject = make()
    assert subject.freezer.freeze()
    other = remade(list(subject.freezer.way))
    try:
        assert type(other) is type(subject.freezer)
        assert other.still()
        other.thaw()
        assert not subject.container.frozen
        assert not subject.freezer.still()
        assert subject.freezer.freeze()
        assert other.freeze()
    finally:
        other.thaw()
        other.close()


def test_a_container_that_has_ended_is_gone(make: Make) -> None:
    subject = make()
    assert subject.freezer.alive()
    subject.container.kill()
    until(lambda: not subject.freezer.alive(), "the runtime knows that it has ended")
    for call in (subject.freezer.freeze, subject.freezer.thaw, subject.freezer.still):
        with pytest.raises(Gone):
            call()


def test_a_container_that_never_was_is_gone(make: Make) -> None:
    freezer = make().make("0" * 64)
    try:
        assert not freezer.alive()
        for call in (freezer.freeze, freezer.thaw, freezer.still):
            with pytest.raises(Gone, match="000000"):
                call()
    finally:
        freezer.close()


def test_cpu_time_is_the_containers(make: Make) -> None:
    subject = make(BUSY)
    assert subject.freezer.cpu_seconds() < 30
    before = subject.freezer.cpu_seconds()
    until(lambda: subject.freezer.cpu_seconds() > before + 0.1, "it uses CPU time")
    assert subject.freezer.freeze()
    before = subject.freezer.cpu_seconds()
    time.sleep(0.2)  # the span in which nothing may happen
    assert subject.freezer.cpu_seconds() == before
    subject.freezer.thaw()


# Ways that are mixed.


def control(container: Ticking) -> tuple[Path, str, str]:
    """The file by which its cgroup is frozen, and the words for frozen and thawed."""
    if (container.cgroup / "freezer.state").exists():
        return container.cgroup / "freezer.state", "FROZEN", "THAWED"
    return container.cgroup / "cgroup.freeze", "1", "0"


def test_frozen_through_its_cgroup(make: Make) -> None:
    """runc will neither pause nor resume it, and that is said. crun does not mind."""
    subject = make()
    assert subject.freezer.alive()
    file, frozen, thawed = control(subject.container)
    file.write_text(frozen)
    until(lambda: subject.container.frozen, "it is frozen")
    try:
        assert subject.freezer.still()
        if subject.kind == "containerd-crun":
            assert subject.freezer.freeze()
            subject.freezer.thaw()
            assert not subject.container.frozen
        else:
            for call in (subject.freezer.freeze, subject.freezer.thaw):
                with pytest.raises(FreezeError, match=f"Somebody has frozen .* through its cgroup {file.parent}"):
                    call()
    finally:
        file.write_text(thawed)
    assert subject.freezer.freeze()
    subject.freezer.thaw()
    subject.container.await_ticks()


def test_paused_and_then_thawed_through_its_cgroup(make: Make) -> None:
    """It runs, so there is nothing to thaw; that runc will not pause it now is said. With crun, all is well again."""
    subject = make()
    assert subject.freezer.freeze()
    file, frozen, thawed = control(subject.container)
    file.write_text(thawed)
    subject.container.await_ticks()
    assert not subject.freezer.still()
    subject.freezer.thaw()
    subject.container.await_ticks()
    if subject.kind != "containerd-crun":
        with pytest.raises(FreezeError, match=f"somebody has thawed its cgroup {file.parent}"):
            subject.freezer.freeze()
        file.write_text(frozen)
        subject.container.await_frozen()
        subject.freezer.thaw()
    subject.container.await_ticks()
    assert subject.freezer.freeze()
    subject.freezer.thaw()


# Runtimes that come and go.


def test_the_runtime_is_killed_and_started_again(make: Make) -> None:
    subject = make()
    assert subject.freezer.freeze()
    subject.runtime.kill()
    began = time.monotonic()
    for call in (subject.freezer.freeze, subject.freezer.thaw, subject.freezer.still, subject.freezer.alive):
        with pytest.raises(FreezeError, match="cannot be asked") as raised:
            call()
        assert not isinstance(raised.value, Gone)
    assert time.monotonic() - began < 5
    assert subject.container.frozen
    subject.runtime.ensure()
    subject.freezer.thaw()
    assert not subject.container.frozen
    subject.container.await_ticks()
    assert subject.freezer.freeze()
    subject.freezer.thaw()


def test_a_runtime_that_has_lost_sight_of_it(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has left frozen is thawed through its cgroup."""
    container = kubelet.pod(["user-container"], "crun")["user-container"]
    freezer = ContainerdFreezer(str(kubelet.containerd.socket), "k8s.io", container.id)
    assert freezer.freeze()
    freezer.knows(container.pid)

    def lost() -> None:
        raise Gone("There is none.")

    monkeypatch.setattr(freezer, "_resume", lost)
    with pytest.raises(Gone):
        freezer.thaw()
    assert not container.frozen
    monkeypatch.undo()
    freezer.thaw()  # as crun can
    freezer.close()


def test_a_forked_process_asks_for_itself(make: Make) -> None:
    """As the guard of attach does when its proxy has been killed."""
    subject = make()
    assert subject.freezer.freeze()
    child = os.fork()
    if not child:
        code = 1
        try:
            subject.again().thaw()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not subject.container.frozen
    assert subject.freezer.freeze()
    subject.freezer.thaw()


def test_many_at_once(make: Make) -> None:
    """Freezers share one connection to a runtime, whatever threads they are called from."""
    subject = make()
    failures: list[BaseException] = []

    def go() -> None:
        freezer = subject.again()
        try:
            for _ in range(5):
                freezer.still()
        except BaseException as error:
            failures.append(error)
        finally:
            freezer.close()

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures


def test_what_runs_in_containerd(make: Make, request: pytest.FixtureRequest) -> None:
    subject = make()
    node = request.getfixturevalue("containerd")
    here = "moby" if isinstance(subject.freezer, DockerFreezer) else node.namespace
    wanted = (here, subject.container.id, subject.container.pid)
    assert wanted in running(str(node.socket))
    assert wanted in running(str(node.socket), here)
    assert wanted not in running(str(node.socket), "another")
