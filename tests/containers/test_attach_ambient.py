"""``freeze-proxy attach --ambient`` to containers of a real containerd and a real dockerd, on cgroup2 alone."""

import signal
from collections.abc import Iterator

import pytest

from tests.containers.attaching import web
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.dockerd import DockerContainer, Dockerd
from tests.support.cluster.kubelet import Container, Kubelet
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.proxies import Proxies, Proxy


class Attached:
    """A container with a web server, and what attaches to it."""

    def __init__(self, proxies: Proxies, container: Container | DockerContainer, port: int, *names: str) -> None:
        self.container = container
        await_port(port)
        target = ("--target", f"{LOOPBACK}:{port}")
        self.proxy: Proxy = proxies.start("attach", "--ambient", *names, *target, "--grace", "20ms")


@pytest.fixture(params=["containerd", "docker"])
def attached(request: pytest.FixtureRequest, unified_containerd: Containerd, proxies: Proxies) -> Iterator[Attached]:
    unified_containerd.ensure()
    port = free_port()
    if request.param == "docker":
        dockerd = Dockerd(unified_containerd)
        try:
            dockerd.start()
            made = dockerd.run("web", web(port), network="host")
            yield Attached(proxies, made, port, "--docker", "web", "--docker-socket", str(dockerd.socket))
            proxies.close()  # before the container is removed
            dockerd.clear()
        finally:
            dockerd.close()
    else:
        kubelet = Kubelet(unified_containerd)
        try:
            container = kubelet.pod({"web": web(port)}, "runc")["web"]
            names = ("--containerd", container.id, "--containerd-socket", str(unified_containerd.socket))
            yield Attached(proxies, container, port, *names)
            proxies.close()
        finally:
            kubelet.close()


def test_requests_go_straight_to_it_and_wake_it(attached: Attached) -> None:
    proxy, container = attached.proxy, attached.container
    assert (proxy.start["way"], proxy.start["freezer"]) == ("ambient", "cgroup2")
    proxy.event("frozen")
    container.await_frozen()
    for number in range(3):
        assert proxy.get() == b"hello\n"
        proxy.event("frozen", number + 1)
        container.await_frozen()
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    container.await_awake()
    proxy.assert_nothing_left()
