"""``freeze-proxy attach --containerd``: a container of a real containerd."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.containers.attaching import get_later, web
from tests.support.cluster.kubelet import Container, Kubelet
from tests.support.cluster.messages import EXITED
from tests.support.cluster.programs import processes_with
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.proxies import ROOT, Proxies, Proxy
from tests.support.wait import until

WAYS = ("auto", "containerd")


class Attached:
    """A container with a web server, and what attaches to it."""

    def __init__(self, kubelet: Kubelet, proxies: Proxies, runtime: str) -> None:
        self.node = kubelet.containerd
        self._proxies = proxies
        self.port = free_port()
        self.pod = kubelet.pod({"web": web(self.port)}, runtime)
        self.container: Container = self.pod["web"]
        await_port(self.port)

    def attach(self, *options: str, id: str | None = None, **how: Any) -> Proxy:
        socket = [] if "--containerd-socket" in options else ["--containerd-socket", str(self.node.socket)]
        target = ["--target", f"{LOOPBACK}:{self.port}"]
        return self._proxies.attach("--containerd", id or self.container.id, *socket, *target, *options, **how)

    def start(self, *options: str, **how: Any) -> Proxy:
        """Attach, and wait for the first freeze."""
        proxy = self.attach(*options, **how)
        proxy.event("frozen")
        self.container.await_frozen()
        return proxy

    def runtime_says(self) -> str:
        """What containerd has as its task's state."""
        for line in self.node.ctr("tasks", "list").splitlines():
            id, _pid, state = line.split()
            if id == self.container.id:
                return state
        return ""


@pytest.fixture
def attached(kubelet: Kubelet, proxies: Proxies, runtime: str) -> Iterator[Attached]:
    made = Attached(kubelet, proxies, runtime)
    yield made
    proxies.close()  # before the container is removed


@pytest.mark.parametrize("way", WAYS)
def test_frozen_between_requests(attached: Attached, way: str) -> None:
    container = attached.container
    proxy = attached.start("--freezer", way)
    if way == "containerd":
        assert (proxy.start["freezer"], proxy.where) == ("containerd", f"the container {container.id}")
        assert attached.runtime_says() == "PAUSED"
    else:
        assert proxy.where == str(container.cgroup)
        assert attached.runtime_says() == "RUNNING"
    for number in range(3):
        assert proxy.get() == b"hello\n"
        proxy.event("frozen", number + 1)
        container.await_frozen()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert not container.frozen
    assert attached.runtime_says() == "RUNNING"
    assert proxy.event("end")["requests"] == 3


@pytest.mark.parametrize("way", WAYS)
def test_killed_the_container_goes_on(attached: Attached, way: str) -> None:
    proxy = attached.start("--freezer", way)
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    attached.container.await_awake(5)
    proxy.assert_nothing_left()
    assert attached.runtime_says() == "RUNNING"


@pytest.mark.parametrize("way", WAYS)
def test_stopped_while_frozen(attached: Attached, way: str) -> None:
    """containerd thaws nothing by itself: it sends the signal, waits, and kills."""
    proxy = attached.start("--freezer", way)
    began = time.monotonic()
    attached.container.stop(grace=10)
    assert time.monotonic() - began < 6
    assert attached.container.status().status.exit_code == 0
    assert attached.container.printed == ["started", "terminated"]
    assert proxy.wait() == 0
    assert proxy.event("gone")["message"] == f"the container {attached.container.id} has ended."


def test_it_dies_while_frozen(attached: Attached) -> None:
    proxy = attached.start("--freezer", "containerd")
    attached.container.kill()
    until(lambda: attached.container.state == EXITED, "it has ended")
    assert proxy.wait() == 0
    assert proxy.event("gone")


def test_another_of_the_same_name_is_left_alone(attached: Attached) -> None:
    proxy = attached.start()
    second = attached.pod.restart("web")
    assert proxy.wait() == 0
    assert not second.frozen
    assert second.running


# containerd comes and goes.


def test_containerd_is_killed_while_it_is_frozen_through_its_cgroup(attached: Attached) -> None:
    proxy = attached.start()
    attached.node.kill()
    assert proxy.get() == b"hello\n"
    attached.container.await_frozen()
    assert proxy.end() == 0
    assert not attached.container.frozen


def test_containerd_is_killed_while_it_is_paused(attached: Attached) -> None:
    """The request waits until containerd is there again, and is served then."""
    proxy = attached.start("--freezer", "containerd", "--thaw-timeout", "30s")
    attached.node.kill()
    answer = get_later(proxy)
    assert "containerd cannot be asked" in proxy.event("failed")["reason"]
    assert not answer.done()
    attached.node.ensure()
    assert answer.result(20) == b"hello\n"
    attached.container.await_frozen()
    assert proxy.end() == 0
    assert attached.runtime_says() == "RUNNING"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_leaving_while_containerd_is_away(attached: Attached, by: int) -> None:
    """The guard stays, and thaws when it can."""
    proxy = attached.start("--freezer", "containerd")
    guard = proxy.guard
    attached.node.kill()
    proxy.signal(by)
    assert proxy.wait() == (125 if by == signal.SIGTERM else -signal.SIGKILL)
    assert guard
    assert attached.container.frozen
    attached.node.ensure()
    attached.container.await_awake()
    proxy.assert_nothing_left(5)


def test_its_shim_is_killed_while_it_is_paused(attached: Attached) -> None:
    """containerd then ends the container; nothing of it stays frozen, whatever becomes of it."""
    proxy = attached.start("--freezer", "containerd")
    (shim,) = processes_with(f"-id\0{attached.pod.id}")
    os.kill(shim, signal.SIGKILL)
    answer = get_later(proxy)
    attached.container.await_awake()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert not attached.container.frozen
    answer.exception(20)


# Which one is meant.


def test_by_the_beginning_of_its_id(attached: Attached) -> None:
    proxy = attached.start(id=attached.container.id[:13])
    assert proxy.get() == b"hello\n"
    assert proxy.end() == 0


def test_in_a_namespace(attached: Attached) -> None:
    proxy = attached.start("--containerd-namespace", "k8s.io")
    assert proxy.end() == 0
    proxy = attached.attach(environment={"CONTAINERD_NAMESPACE": "default"})
    assert proxy.wait() == 125
    assert proxy.sentence() == f"containerd runs no container {attached.container.id} in its namespace default."


def test_no_such_container(attached: Attached) -> None:
    proxy = attached.attach(id="nobody")
    assert proxy.wait() == 125
    assert proxy.sentence() == "containerd runs no container nobody in any of its namespaces."


def test_found_paused(attached: Attached) -> None:
    attached.node.ctr("tasks", "pause", attached.container.id)
    for way in WAYS:
        proxy = attached.attach("--freezer", way)
        assert proxy.wait() == 125
        assert proxy.sentence().startswith("Somebody has stopped ")
        assert attached.container.frozen
    attached.node.ctr("tasks", "resume", attached.container.id)


def test_nobody_at_the_socket(attached: Attached) -> None:
    proxy = attached.attach("--containerd-socket", "/nowhere/containerd.sock")
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        "containerd cannot be asked: there is no socket /nowhere/containerd.sock; start it, or say where its socket is."
    )


def test_without_the_library(attached: Attached, tmp_path: Any) -> None:
    (tmp_path / "grpclib.py").write_text("raise ImportError")
    proxy = attached.attach(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}/src"})
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        "containerd is asked by the libraries grpclib and protobuf, which are not installed: "
        "pip install 'freeze-proxy[cluster]'."
    )


def test_exec_into_a_frozen_one_is_refused(attached: Attached) -> None:
    """At once, since the runtime sees that it is frozen: nothing hangs."""
    attached.start()
    began = time.monotonic()
    with pytest.raises(grpc.RpcError):
        attached.container.execute("true")
    assert time.monotonic() - began < 5
