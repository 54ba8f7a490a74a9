"""What pods may ask for, old clients and new, and what it does to their containers."""

import http.client
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster.cgroups import places
from tests.support.cluster.containerd import RUNTIMES
from tests.support.cluster.crio_stand_in import CrioStandIn
from tests.support.daemons import Daemon
from tests.support.node import Node, frozen
from tests.support.ports import LOOPBACK
from tests.support.wait import until

HOOK = "concurrency-state-hook"


def ask(daemon: Daemon, path: str, token: str, body: Any = None) -> tuple[int, Any]:
    """As the old clients do: a new connection a call."""
    connection = http.client.HTTPConnection(LOOPBACK, daemon.port, timeout=20)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("POST", path, data, {"Token": token})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# Old clients.


def test_the_sidecar_of_the_proof_of_concept(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    for _ in range(2):
        assert ask(daemon, "/freeze", token)[0] == 200
        assert pod["user-container"].frozen  # though its connection is closed
        assert pod["user-container"].stands_still()
        pod["queue-proxy"].await_ticks()
        assert ask(daemon, "/thaw", token)[0] == 200
        pod["user-container"].await_ticks()


def test_queue_proxy_of_knative_0_26_to_1_9(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    hook = node.token(pod, HOOK)
    assert ask(daemon, "/", hook, {"action": "pause"})[0] == 200
    assert pod["user-container"].frozen
    assert ask(daemon, "/", hook, {"action": "resume"})[0] == 200
    pod["user-container"].await_ticks()
    # Each path has its audience.
    assert ask(daemon, "/", token, {"action": "pause"})[0] == 403
    assert ask(daemon, "/freeze", hook)[0] == 403
    assert ask(daemon, "/", hook, {"action": "stop"})[0] == 400
    assert ask(daemon, "/", hook)[0] == 400
    assert not pod["user-container"].frozen


@pytest.mark.parametrize("end", ["sigterm", "both killed"])
def test_what_is_held_by_no_connection_is_thawed_at_the_end(node: Node, end: str) -> None:
    pod, token = node.pod()
    with node.daemon("--claim-timeout", "200ms") as daemon:
        assert ask(daemon, "/freeze", token)[0] == 200
        if end == "sigterm":
            assert daemon.end(signal.SIGTERM) == 0
        else:
            daemon.kill_both()
            assert pod["user-container"].frozen
            daemon.start()
        pod["user-container"].await_awake()


# Leases.


def test_a_lease_ends_with_its_connection(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    with frozen(pod, token, daemon.control):
        assert daemon.metric("freeze_proxy_leases") == 1
    pod["user-container"].await_awake()
    until(lambda: daemon.metric('freeze_proxy_thawed_total{why="lease"}') == 1, "it is counted")


def test_a_lease_is_taken_over_by_a_second_connection(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    with daemon.control() as second:
        with frozen(pod, token, daemon.control):
            assert second.call("/freeze", token).status == 200
        until(lambda: daemon.metric("freeze_proxy_connections") == 1, "the first is closed")
        assert pod["user-container"].frozen
    pod["user-container"].await_awake()


def test_a_silent_end_is_found_out(node: Node, daemon: Daemon) -> None:
    """Keep-alive is on, and asks after 15 s of silence: the kernel shows the timer that runs."""
    pod, token = node.pod()
    with frozen(pod, token, daemon.control):
        inodes = {os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")}
        timers = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [
            f for f in timers if f"socket:[{f[9]}]" in inodes and f[3] == "01" and f[1].endswith(f":{daemon.port:04X}")
        ]
        # The second figure of "02:00000123": ticks until keep-alive asks (proc(5)).
        assert [timer[5].split(":")[0] for timer in ours] == ["02"]
        ticks = int(ours[0][5].split(":")[1], 16)
        assert 0 < ticks / os.sysconf("SC_CLK_TCK") <= 15


# Which containers.


def test_containers_are_named(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod("user-container", "other", "istio-proxy", "queue-proxy")
    with daemon.control() as control:
        call = partial(control.call, "/freeze", token)
        assert call().states == {"user-container": "frozen", "other": "frozen"}
        assert call(body={"containers": ["istio-proxy"]}).states == {"istio-proxy": "frozen"}
        assert pod["istio-proxy"].frozen
        assert not pod["user-container"].frozen
        assert not pod["other"].frozen
        assert call(body={"containers": ["other", "istio-proxy"]}).status == 200
        assert pod["other"].frozen
        for names in (["nobody"], ["other", "nobody"], ["queue-proxy"]):
            answer = call(body={"containers": names})
            assert answer.status == 404, answer
            assert names[-1] in answer.error
        assert control.call("/thaw", token).status == 200
        for container in pod.containers.values():
            container.await_awake()


def test_what_was_never_frozen_is_thawed_all_the_same(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    with daemon.control() as control:
        answer = control.call("/thaw", token)
        assert (answer.status, answer.states) == (200, {"user-container": "awake"})
        pod["user-container"].freeze_cgroup()  # somebody else
        assert control.call("/thaw", token).status == 200
        pod["user-container"].await_ticks()


def test_modes(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    container = pod["user-container"]
    its = places(container.pid)
    quota = its["cpu"] / "cpu.cfs_quota_us" if "cpu" in its else its[""] / "cpu.max"
    before = quota.read_text()
    with daemon.control() as control:
        answer = control.call("/freeze", token, body={"mode": "dry-run"})
        assert (answer.status, answer.facts["state"]) == (200, "awake")
        assert not container.frozen
        for _ in range(2):
            answer = control.call("/freeze", token, body={"mode": "throttle"})
            assert (answer.status, answer.facts["state"]) == (200, "throttled")
            assert quota.read_text() != before
        assert control.call("/freeze", token).facts["state"] == "frozen"
        assert quota.read_text() == before  # one or the other
        assert container.frozen
        assert control.call("/freeze", token, body={"mode": "throttle"}).status == 200
        assert not container.frozen
        assert control.call("/freeze", token, body={"mode": "off"}).status == 400
    until(lambda: quota.read_text() == before, "the quota is put back")


def test_a_pod_whose_container_crashes_again_and_again(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod("user-container", "other")
    with daemon.control() as control:
        for _ in range(3):
            assert control.call("/freeze", token).status == 200
            pod["other"].kill()
            control.call("/thaw", token)
            pod["other"].await_exit()
            # What is there is frozen, if not at once: the other has just been seen to be gone.
            until(lambda: control.call("/freeze", token).status == 200, "the one that is left is frozen")
            assert pod["user-container"].frozen
            assert control.call("/thaw", token).status == 200
            pod.start("other", pod["other"].command)
            until(lambda: set(control.call("/freeze", token).states) == {"user-container", "other"}, "it is back")
            assert pod["other"].frozen


# Together or not at all.


@pytest.mark.alone
@pytest.mark.parametrize("lease", [True, False])
def test_one_that_cannot_be_frozen_leaves_the_other_running(node: Node, lease: bool) -> None:
    pod, token = node.pod("user-container", "other")
    control_file = pod["other"].cgroup / "freezer.state"
    if not control_file.exists():
        control_file = pod["other"].cgroup / "cgroup.freeze"
    options = ("--freeze-timeout", "300ms", "--freezer", "cgroup")
    # What the daemon writes into that file of the other's goes nowhere.
    apart = ("unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {control_file} && exec "$@"', "sh")
    with node.daemon(*options, prefix=apart) as daemon, daemon.control() as control:
        for _ in range(2):
            answer = control.call("/freeze", token, lease)
            assert answer.status == 504, answer
            assert "other" in answer.error
            assert not pod["user-container"].frozen
            pod["user-container"].await_ticks()
        assert daemon.metric('freeze_proxy_failures_total{reason="slow",what="freeze"}') == 2
        # Alone it can be frozen.
        assert control.call("/freeze", token, lease, {"containers": ["user-container"]}).status == 200
        assert pod["user-container"].frozen
        assert control.call("/freeze", token, lease).status == 504
        pod["user-container"].await_ticks()


# Deletion.


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("whole", [False, True], ids=["container", "pod"])
def test_what_is_deleted_while_frozen_ends_in_about_a_second(
    node: Node, daemon: Daemon, runtime: str, whole: bool
) -> None:
    pod, token = node.pod("user-container", "other", runtime=runtime)
    assert ask(daemon, "/freeze", token)[0] == 200
    container = pod["user-container"]
    begun = time.monotonic()
    if whole:
        pod.delete(grace=30)
    else:
        container.stop(grace=30)
    took = time.monotonic() - begun
    assert took < 4.0
    if not whole:
        assert "terminated" in container.printed  # it was not killed
        pod["other"].await_ticks()
    print(f"{runtime}: {took:.2f} s")


# Others that are away.


def test_without_the_api_server_known_tokens_go_on(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    _, strange = node.pod("user-container")
    with daemon.control() as control:
        assert control.call("/freeze", token).status == 200
        node.api_server.vanish()
        try:
            assert control.call("/thaw", token).status == 200
            assert control.call("/freeze", token).status == 200
            answer = control.call("/freeze", strange)
            assert answer.status == 503, answer
            assert control.call("/thaw", token).status == 200
        finally:
            node.api_server.listen()
        pod["user-container"].await_ticks()
        until(lambda: control.call("/freeze", strange).status == 200, "it is asked again")


def test_a_slow_api_server_holds_up_nobody_else(node: Node, daemon: Daemon) -> None:
    _, token = node.pod()
    _, strange = node.pod("user-container")
    with daemon.control() as control, daemon.control() as other:
        assert control.call("/freeze", token).status == 200
        node.api_server.become(delay=1.0)
        other.send("/freeze", strange)
        begun = time.monotonic()
        for _ in range(20):
            assert control.call("/thaw", token).status == 200
            assert control.call("/freeze", token).status == 200
        assert time.monotonic() - begun < 0.9
        assert other.hear().status == 200
        assert time.monotonic() - begun > 0.9


def test_without_the_runtime_known_pods_go_on_and_readiness_says_so(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod()
    _, strange = node.pod("user-container")
    assert daemon.ask("/readyz")[0] == 200
    with daemon.control() as control:
        assert control.call("/freeze", token).status == 200
        node.containerd.kill()
        assert control.call("/thaw", token).status == 200
        assert control.call("/freeze", token).status == 200
        assert control.call("/freeze", strange).status == 503
        until(lambda: daemon.ask("/readyz")[0] == 503, "readiness says so")
        told = json.loads(daemon.ask("/readyz")[1])
        assert str(node.containerd.socket) in told["why"][0]
        assert daemon.ask("/healthz")[0] == 200
        node.containerd.start()
        until(lambda: daemon.ask("/readyz")[0] == 200, "readiness recovers")
        assert control.call("/freeze", strange).status == 200
        assert control.call("/thaw", token).status == 200
    pod["user-container"].await_ticks()


# Other ways to freeze, and to know.


@pytest.mark.parametrize("kind", ["containerd", "crio"])
def test_through_the_runtime(node: Node, crio_stand_in: CrioStandIn, kind: str) -> None:
    pod, token = node.pod("user-container", "other")
    socket = crio_stand_in.socket if kind == "crio" else node.containerd.socket
    with node.daemon("--freezer", kind, "--claim-timeout", "200ms", runtime_socket=socket) as daemon:
        for _ in range(2):
            with daemon.control() as control:
                assert control.call("/freeze", token).status == 200
                assert pod["user-container"].frozen
                assert pod["other"].frozen
                assert control.call("/thaw", token).status == 200
                pod["user-container"].await_ticks()
                assert control.call("/freeze", token).status == 200
            for container in pod.containers.values():
                container.await_awake()
        for who in ("daemon", "both"):
            for delay in (0.0, 0.003, 0.008, 0.015):
                with daemon.control() as control:
                    control.send("/freeze", token)
                    time.sleep(delay)  # in the middle of it, at one moment or another
                    if who == "both":
                        daemon.kill_both()
                    else:
                        os.kill(daemon.pid, signal.SIGKILL)
                        assert daemon.process is not None
                        daemon.process.wait(20)
                daemon.start()
                for container in pod.containers.values():
                    container.await_ticks()
                with daemon.control() as control:
                    assert control.call("/thaw", token).status == 200


def test_offline_identity(node: Node) -> None:
    pod, token = node.pod()
    _, other = node.pod("user-container")
    with node.daemon("--identity", "jwks") as daemon, daemon.control() as control:
        assert control.call("/freeze", token).status == 200
        assert pod["user-container"].frozen
        node.api_server.vanish()
        try:
            assert control.call("/freeze", other).status == 200  # the keys are known
        finally:
            node.api_server.listen()
        assert control.call("/freeze", node.token(pod, "elsewhere")).status == 403
        assert control.call("/thaw", token).status == 200
    assert node.api_server.reviews == 0
