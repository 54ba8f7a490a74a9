"""The daemon as a container sees its node: in a cgroup namespace of its own, or without the right to write cgroups."""

from pathlib import Path

import pytest

from tests.support.cluster import cgroups
from tests.support.cluster.kubelet import Kubelet
from tests.support.daemons import Daemon
from tests.support.needs import need_program
from tests.support.node import NAME, Node

LAYOUTS = {
    "beside the pods": "kubepods/burstable/pod-of-the-daemon/box",
    "elsewhere": "daemons/box",
}


def confined(node: Node, *prefix: str, options: tuple[str, ...] = ()) -> Daemon:
    return Daemon(
        node.folder / "daemon",
        node.api_server.kubeconfig(),
        node.containerd.socket,
        *("--node-name", NAME, *options),
        prefix=prefix,
    )


def in_a_namespace(kubelet: Kubelet, place: str) -> tuple[str, ...]:
    """What starts a process in a cgroup here, which is the root of all that it sees in /proc."""
    script = ""
    for mounted in dict.fromkeys(cgroups.hierarchies().values()):
        box = mounted / kubelet.containerd.cgroups.name / place
        if "cpuset" not in mounted.name:  # a new cpuset has no CPU to run on
            box.mkdir(parents=True)
            script += f"echo $$ >{box}/cgroup.procs\n"
    return ("sh", "-ec", script + 'exec unshare --cgroup "$@"', need_program("unshare", "util-linux"))


@pytest.mark.parametrize("place", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_from_a_cgroup_namespace_of_its_own(node: Node, kubelet: Kubelet, place: str) -> None:
    pod, token = node.pod("user-container", "queue-proxy")
    with confined(node, *in_a_namespace(kubelet, place)) as daemon, daemon.control() as control:
        path = Path(f"/proc/{daemon.pid}/cgroup").read_text()
        assert place in path
        for _ in range(2):
            answer = control.call("/freeze", token)
            assert answer.status == 200, daemon.log()
            assert pod["user-container"].frozen
            pod["queue-proxy"].await_ticks()
            assert control.call("/thaw", token).status == 200
            pod["user-container"].await_ticks()
        assert control.call("/freeze", token, body={"mode": "throttle"}).status == 200
        assert control.call("/thaw", token).status == 200


def read_only() -> tuple[str, ...]:
    """What starts a process that can read cgroups and not write them."""
    mounts = dict.fromkeys(map(str, cgroups.hierarchies().values()))
    script = "".join(f"mount -o remount,bind,ro {place}\n" for place in mounts) + 'exec "$@"'
    return (need_program("unshare", "util-linux"), "--mount", "sh", "-ec", script, "sh")


def test_where_cgroups_cannot_be_written_the_runtime_is_asked(node: Node) -> None:
    pod, token = node.pod("user-container", "queue-proxy")
    with confined(node, *read_only()) as daemon, daemon.control() as control:
        status, text = daemon.ask("/readyz")
        assert status == 200, text
        assert control.call("/freeze", token).status == 200, daemon.log()
        assert pod["user-container"].frozen
        assert control.call("/thaw", token).status == 200
        pod["user-container"].await_ticks()


def test_where_cgroups_cannot_be_written_and_must_be_nothing_moves(node: Node) -> None:
    pod, token = node.pod("user-container", "queue-proxy")
    with confined(node, *read_only(), options=("--freezer", "cgroup")) as daemon, daemon.control() as control:
        status, text = daemon.ask("/readyz")
        assert status == 503
        assert "writable" in text
        answer = control.call("/freeze", token)
        assert answer.status == 503
        assert "cannot be written" in answer.error
        pod["user-container"].await_ticks()
