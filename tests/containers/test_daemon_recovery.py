"""What an earlier daemon, or somebody else, has left frozen."""

import pytest

from tests.support.node import Node
from tests.support.wait import until


@pytest.mark.parametrize("lease", [True, False])
def test_what_its_pod_claims_stays_frozen_and_the_rest_is_thawed(node: Node, lease: bool) -> None:
    claimed, token = node.pod("user-container", "other")
    unclaimed, other_token = node.pod("user-container")
    with node.daemon("--claim-timeout", "1s") as daemon:
        with daemon.control() as control:
            assert control.call("/freeze", token, lease=False).status == 200
            assert control.call("/freeze", other_token, lease=False).status == 200
            daemon.kill_both()
        assert claimed["user-container"].frozen
        daemon.start()
        assert daemon.events("an earlier daemon has left containers frozen")[0]["containers"]
        with daemon.control() as control:
            assert control.call("/freeze", token, lease).status == 200
            until(
                lambda: daemon.events("what an earlier daemon had frozen, and nobody claimed, was thawed"),
                "the others are thawed",
            )
            unclaimed["user-container"].await_ticks()
            assert claimed["user-container"].frozen
            assert claimed["other"].frozen
            if not lease:
                assert control.call("/thaw", token).status == 200
        for container in claimed.containers.values():
            container.await_ticks()


def test_a_thaw_before_the_claim_needs_no_runtime(node: Node) -> None:
    pod, token = node.pod()
    with node.daemon("--claim-timeout", "30s") as daemon:
        with daemon.control() as control:
            assert control.call("/freeze", token, lease=False).status == 200
            daemon.kill_both()
        node.containerd.kill()
        daemon.start()
        assert pod["user-container"].frozen
        with daemon.control() as control:
            assert control.call("/thaw", token).status == 200
        pod["user-container"].await_ticks()
        assert not daemon.events("what an earlier daemon had frozen, and nobody claimed, was thawed")


def test_a_container_restarted_while_no_daemon_was_there(node: Node) -> None:
    pod, token = node.pod("user-container", "other")
    with node.daemon("--claim-timeout", "200ms") as daemon:
        with daemon.control() as control:
            assert control.call("/freeze", token, lease=False).status == 200
            daemon.kill_both()
        pod["user-container"].thaw_cgroup()
        pod.restart("user-container")
        daemon.start()
        for container in pod.containers.values():
            container.await_ticks()
        with daemon.control() as control:
            assert control.call("/freeze", token).status == 200
            assert pod["user-container"].frozen


def test_what_somebody_else_has_frozen_is_left_alone_and_told_of(node: Node) -> None:
    pod, token = node.pod("user-container", "other")
    pod["other"].freeze_cgroup()
    with node.daemon("--claim-timeout", "100ms") as daemon:
        told = until(lambda: daemon.events("a container is frozen by somebody else, and left alone"), "it is told of")
        assert [(event["pod"], event["container"]) for event in told] == [(f"{pod.namespace}/{pod.name}", "other")]
        with daemon.control() as control:
            assert control.call("/freeze", token, body={"containers": ["user-container"]}).status == 200
        pod["user-container"].await_awake()
        assert pod["other"].frozen
    assert pod["other"].frozen
    pod["other"].thaw_cgroup()


def test_a_journal_that_cannot_be_read(node: Node) -> None:
    pod, token = node.pod()
    with node.daemon("--claim-timeout", "200ms") as daemon:
        with daemon.control() as control:
            assert control.call("/freeze", token, lease=False).status == 200
            daemon.kill_both()
        (daemon.state / "a").write_text("frozen\n{")
        (daemon.state / "b").write_text("")
        (daemon.state / "c~").write_text("frozen\n{}")
        (daemon.state / "d").write_bytes(b"\xff\0" * 100_000)
        (daemon.state / "e").mkdir()
        (daemon.state / "f").write_text('frozen\n{"pod": 1}')
        (daemon.state / "g").symlink_to("/etc/hostname")
        daemon.start()
        until(lambda: not pod["user-container"].frozen, "what can be read is thawed")
        assert len(daemon.events("a file of the journal cannot be read, and is removed")) == 6
        with daemon.control() as control:
            assert control.call("/freeze", token).status == 200
