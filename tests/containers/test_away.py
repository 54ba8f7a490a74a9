"""The daemon while the API server is away, refuses, or is slow: whoever is known goes on, and every thaw does."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer, key
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.kubelet import Kubelet, Pod
from tests.support.daemons import Daemon

NODE = "this-node"


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api-server") as server:
        yield server


@pytest.fixture(params=["tokenreview", "jwks"])
def daemon(
    request: pytest.FixtureRequest, tmp_path: Path, api_server: ApiServer, containerd: Containerd
) -> Iterator[Daemon]:
    """With either kind of identity."""
    options = ("--node-name", NODE, "--identity", request.param)
    with Daemon(tmp_path / "daemon", api_server.kubeconfig(), containerd.socket, *options) as daemon:
        yield daemon


only_reviews = pytest.mark.parametrize("daemon", ["tokenreview"], indirect=True)


def token_of(api_server: ApiServer, pod: Pod, lifetime: float = 600) -> str:
    return api_server.token(pod.uid, pod.name, pod.namespace, NODE, lifetime=lifetime)


def test_known_pods_go_on_and_unknown_ones_are_told(
    daemon: Daemon, api_server: ApiServer, kubelet: Kubelet, request: pytest.FixtureRequest
) -> None:
    known, unknown = kubelet.pod(("user-container",)), kubelet.pod(("user-container",))
    token = token_of(api_server, known)
    with daemon.control() as control, daemon.control() as other:
        assert control.call("/freeze", token).status == 200
        api_server.vanish()
        for _ in range(3):
            assert control.call("/thaw", token).status == 200
            known["user-container"].await_ticks()
            assert control.call("/freeze", token).status == 200
            assert known["user-container"].frozen
        answer = other.call("/freeze", token_of(api_server, unknown))
        if "jwks" in request.node.name:
            assert answer.status == 200, "its token is signed with a key that is known"
            return
        assert answer.status == 503
        assert api_server.address in answer.error
        assert not unknown["user-container"].frozen


@only_reviews
def test_a_renewed_token_thaws_at_once_without_the_api_server(
    daemon: Daemon, api_server: ApiServer, kubelet: Kubelet
) -> None:
    pod, victim = kubelet.pod(("user-container",)), kubelet.pod(("user-container",))
    with daemon.control() as control, daemon.control() as victims:
        assert victims.call("/freeze", token_of(api_server, victim)).status == 200
        assert control.call("/freeze", token_of(api_server, pod)).status == 200
        reviews = api_server.reviews
        api_server.become("silent")
        renewed = token_of(api_server, pod)
        began = time.monotonic()
        assert control.call("/thaw", renewed).status == 200
        assert time.monotonic() - began < 1
        pod["user-container"].await_ticks()
        assert api_server.reviews == reviews
        # It is good for nothing else: not for a freeze, not on another connection, not for another pod.
        api_server.become()
        forged = api_server.token(pod.uid, pod.name, pod.namespace, NODE, key=key("forger"))
        others = api_server.token(victim.uid, victim.name, victim.namespace, NODE, key=key("forger"))
        assert control.call("/freeze", forged).status == 403
        assert control.call("/thaw", others).status == 403
        with daemon.control() as another:
            assert another.call("/thaw", api_server.token(pod.uid, key=key("another forger"))).status == 403
        assert victim["user-container"].frozen
        assert control.call("/freeze", renewed).status == 200
        assert control.call("/thaw", renewed).status == 200


@only_reviews
def test_a_token_that_expired_meanwhile_still_thaws(daemon: Daemon, api_server: ApiServer, kubelet: Kubelet) -> None:
    pod = kubelet.pod(("user-container",))
    token = token_of(api_server, pod, lifetime=2)
    with daemon.control() as control:
        assert control.call("/freeze", token).status == 200
        time.sleep(2.1)  # that it expires is the point
        assert control.call("/freeze", token).status == 403
        assert pod["user-container"].frozen
        with daemon.control() as another:
            assert another.call("/thaw", token).status == 403
        assert pod["user-container"].frozen


@only_reviews
@pytest.mark.parametrize(
    ("fault", "why"),
    [("forbidden", "create tokenreviews"), ("broken", "answered 500"), ("garbage", "cannot be understood")],
)
def test_an_api_server_that_does_not_review_is_named(
    daemon: Daemon, api_server: ApiServer, kubelet: Kubelet, fault: str, why: str
) -> None:
    pod = kubelet.pod(("user-container",))
    token = token_of(api_server, pod)
    api_server.become(fault)
    with daemon.control() as control:
        answer = control.call("/freeze", token)
        assert (answer.status, why in answer.error) == (503, True)
        assert not pod["user-container"].frozen
        api_server.become()
        assert control.call("/freeze", token).status == 200, "it is not held against the token"


@only_reviews
def test_a_slow_api_server_holds_up_nobody_who_is_known(
    daemon: Daemon, api_server: ApiServer, kubelet: Kubelet
) -> None:
    known, unknown = kubelet.pod(("user-container",)), kubelet.pod(("user-container",))
    token = token_of(api_server, known)
    with daemon.control() as control, daemon.control() as other:
        assert control.call("/freeze", token).status == 200
        api_server.become(delay=1.0)
        other.send("/freeze", token_of(api_server, unknown))
        began = time.monotonic()
        for _ in range(10):
            assert control.call("/thaw", token).status == 200
            assert control.call("/freeze", token).status == 200
        assert time.monotonic() - began < 0.9, "while the other one waits"
        assert other.hear().status == 200
