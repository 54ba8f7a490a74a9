"""The daemon with real containers: who asks for what, and what stands still then."""

import signal

import pytest

from tests.support.cluster.containerd import RUNTIMES
from tests.support.daemons import Daemon
from tests.support.node import Node


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pod_is_frozen_and_thawed(daemon: Daemon, node: Node, runtime: str) -> None:
    pod, token = node.pod("user-container", "other", "queue-proxy", runtime=runtime)
    with daemon.control() as control:
        for _ in range(2):
            answer = control.call("/freeze", token)
            assert (answer.status, answer.facts.get("state")) == (200, "frozen"), answer
            assert answer.states == {"user-container": "frozen", "other": "frozen"}
            assert pod["user-container"].frozen
            assert pod["other"].stands_still()
            pod["queue-proxy"].await_ticks()
            answer = control.call("/thaw", token)
            assert (answer.status, answer.facts.get("state")) == (200, "awake"), answer
            pod["user-container"].await_ticks()
            pod["other"].await_ticks()
    assert node.api_server.reviews == 1


def test_it_leaves_with_everything_thawed(node: Node) -> None:
    pod, token = node.pod()
    with node.daemon() as daemon:
        control = daemon.control()
        assert control.call("/freeze", token).status == 200
        assert daemon.metric("freeze_proxy_frozen") == 1
        assert daemon.end(signal.SIGTERM) == 0
        pod["user-container"].await_awake()
        control.close()
