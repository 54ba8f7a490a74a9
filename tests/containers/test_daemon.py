"""The daemon with real containers: who asks for what, and what stands still then."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.support.cluster.containerd import RUNTIMES, Containerd
from tests.support.cluster.kubelet import Kubelet, Pod
from tests.support.daemons import Daemon

NODE = "this-node"


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api-server") as server:
        yield server


@pytest.fixture
def make(tmp_path: Path, api_server: ApiServer, containerd: Containerd) -> Callable[..., Daemon]:
    def daemon(*options: str) -> Daemon:
        options = ("--node-name", NODE, *options)
        return Daemon(tmp_path / "daemon", api_server.kubeconfig(), containerd.socket, *options)

    return daemon


@pytest.fixture
def daemon(make: Callable[..., Daemon]) -> Iterator[Daemon]:
    with make() as daemon:
        yield daemon


def token_of(api_server: ApiServer, pod: Pod) -> str:
    return api_server.token(pod.uid, pod.name, pod.namespace, NODE)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pod_is_frozen_and_thawed(daemon: Daemon, api_server: ApiServer, kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(("user-container", "other", "queue-proxy"), runtime=runtime)
    token = token_of(api_server, pod)
    with daemon.control() as control:
        for _ in range(2):
            answer = control.call("/freeze", token)
            assert (answer.status, answer.facts["state"]) == (200, "frozen")
            assert answer.states == {"user-container": "frozen", "other": "frozen"}
            assert pod["user-container"].frozen
            assert pod["other"].stands_still()
            pod["queue-proxy"].await_ticks()
            answer = control.call("/thaw", token)
            assert (answer.status, answer.facts["state"]) == (200, "awake")
            pod["user-container"].await_ticks()
            pod["other"].await_ticks()
    assert api_server.reviews == 1


def test_it_leaves_with_everything_thawed(make: Callable[..., Daemon], api_server: ApiServer, kubelet: Kubelet) -> None:
    pod = kubelet.pod(("user-container",))
    with make() as daemon:
        control = daemon.control()
        assert control.call("/freeze", token_of(api_server, pod)).status == 200
        assert daemon.metric("freeze_proxy_frozen") == 1
        assert daemon.end(signal.SIGTERM) == 0
        pod["user-container"].await_awake()
        control.close()
