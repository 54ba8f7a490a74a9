"""Pods without a sidecar in real containers of cgroup2 alone: frozen by what queue-proxy says, woken by packets."""

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from freeze_proxy.ambient.bpf import INGRESS, attached
from freeze_proxy.annotations import PREFIX
from freeze_proxy.daemon.ambient.sockets import PodSockets
from tests.support.ambient_pods import AGAIN, ATTACH, PORT, SERVE, AmbientPod
from tests.support.api_server import ApiServer
from tests.support.cluster import cgroups
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.kubelet import Kubelet
from tests.support.daemons import Daemon
from tests.support.node import Node
from tests.support.ports import free_port
from tests.support.wait import FACTOR, until

AWAY = "the API server cannot be followed; what is known goes on"


@pytest.fixture
def containerd(unified_containerd: Containerd) -> Containerd:
    unified_containerd.ensure()
    return unified_containerd


class Rig:
    """One daemon and one API server for the tests that leave both as they are."""

    def __init__(self, api_server: ApiServer, daemon: Daemon) -> None:
        self.api_server = api_server
        self.daemon = daemon


@pytest.fixture(scope="module")
def rig(unified_containerd: Containerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    with ApiServer(folder / "api-server") as api_server:
        node = Node(folder, unified_containerd, Kubelet(unified_containerd), api_server)
        with node.daemon("--ambient") as daemon:
            yield Rig(api_server, daemon)
        node.check_logs()


Make = Callable[..., AmbientPod]


@pytest.fixture
def make(kubelet: Kubelet, rig: Rig) -> Make:
    """A pod that the common daemon knows of."""
    return lambda runtime="runc", **more: AmbientPod(kubelet, rig.api_server, runtime, **more)


@pytest.fixture
def daemon(node: Node) -> Iterator[Daemon]:
    """One of the test's own."""
    with node.daemon("--ambient") as daemon:
        yield daemon


@pytest.fixture
def own(kubelet: Kubelet, api_server: ApiServer) -> Make:
    """A pod that only the daemon of the test knows of."""
    return lambda runtime="runc", **more: AmbientPod(kubelet, api_server, runtime, **more)


def place(pod: AmbientPod) -> Path:
    return cgroups.places(pod.server.pid)[""]


def programs(pod: AmbientPod) -> list[int]:
    directory = os.open(place(pod), os.O_RDONLY | os.O_DIRECTORY)
    try:
        return attached(directory, INGRESS)
    finally:
        os.close(directory)


def test_it_is_frozen_when_idle_and_a_request_wakes_it(make: Make, runtime: str) -> None:
    with make(runtime) as pod:
        pod.server.await_frozen()
        assert pod.server.stands_still()
        assert not pod.pod["queue-proxy"].frozen
        status, took = pod.queue.get("/index.html")
        assert status == 200
        assert took < 0.5
        pod.server.await_ticks()
        pod.server.await_frozen()


def test_a_long_request_keeps_it_awake_however_silent(make: Make) -> None:
    with make() as pod:
        pod.server.await_frozen()
        with pod.queue.in_flight(), socket.create_connection((pod.ip, PORT)) as connection:
            connection.sendall(b"GET /index.html HTTP/1.1\r\n")
            asked = pod.queue.asked
            until(lambda: pod.queue.asked >= asked + 5, "queue-proxy was asked some times")
            assert not pod.server.frozen
            connection.sendall(b"Connection: close\r\n\r\n")
            assert b"hello" in b"".join(iter(lambda: connection.recv(4096), b""))
        pod.server.await_frozen()


def test_what_queue_proxy_does_not_count_wakes_it_too(make: Make) -> None:
    """Its probes, and those of the kubelet."""
    with make() as pod:
        pod.server.await_frozen()
        assert pod.queue.past("/index.html")[0] == 200
        pod.server.await_frozen()


def test_a_tcp_probe_wakes_it_for_the_grace_alone(make: Make) -> None:
    """Knative's, unless another is asked for. What is said on such a connection later is a request all the same."""
    with make() as pod:
        # A pod that has just come is looked at once more when its last container has.
        until(lambda: pod.server.frozen and pod.server.stands_still(2.5), "it is frozen for good")
        asked = pod.queue.asked
        socket.create_connection((pod.ip, PORT)).close()
        pod.server.await_ticks()
        pod.server.await_frozen(within=2)
        assert pod.queue.asked == asked
        with pod.queue.in_flight(), socket.create_connection((pod.ip, PORT)) as connection:
            pod.server.await_ticks()
            pod.server.await_frozen(within=2)
            connection.sendall(b"GET /index.html HTTP/1.1\r\n")
            pod.server.await_awake()
            assert not pod.server.stands_still(1.0)
            connection.sendall(b"Connection: close\r\n\r\n")
            assert b"hello" in b"".join(iter(lambda: connection.recv(4096), b""))
        pod.server.await_frozen()
        assert pod.queue.asked > asked


def test_a_probe_that_asks_something_wakes_it_for_a_moment(make: Make) -> None:
    """It comes on a connection of its own, and is over with it: queue-proxy need not be asked."""
    with make() as pod:
        until(lambda: pod.server.frozen and pod.server.stands_still(2.5), "it is frozen for good")
        asked = pod.queue.asked
        for _ in range(3):
            assert pod.queue.past("/index.html")[0] == 200
            pod.server.await_frozen(within=1)
        assert pod.queue.asked == asked


def test_while_it_is_frozen_nobody_asks_for_statistics(make: Make) -> None:
    with make() as pod:
        until(lambda: pod.server.frozen and pod.server.stands_still(2.5), "it is frozen for good")
        asked = pod.queue.asked
        assert pod.server.stands_still(1.5)
        assert pod.queue.asked == asked


def test_without_statistics_it_stays_awake(own: Make, daemon: Daemon) -> None:
    with own() as pod:
        pod.queue.broken = True
        until(
            lambda: daemon.events("queue-proxy tells no statistics, and the pod stays awake"), "it is said", within=20
        )
        assert not pod.server.frozen
        pod.queue.broken = False
        pod.server.await_frozen(within=20)


def test_it_is_not_frozen_before_it_is_ready_nor_after(make: Make) -> None:
    pod = make()
    pod.ready = False
    with pod:
        until(lambda: pod.queue.asked >= 3, "queue-proxy has said that nothing is in flight")
        assert not pod.server.stands_still(0.5)
        pod.ready = True
        pod.tell()
        pod.server.await_frozen()
        pod.ready = False
        pod.tell()
        pod.server.await_awake()


def test_one_with_a_startup_probe_is_frozen_after_its_first_request(make: Make) -> None:
    pod = make(period=1.0)  # a shorter report is missed when nobody asks in its time
    pod.facts["spec"]["containers"][0]["startupProbe"] = {"tcpSocket": {"port": PORT}}
    with pod:
        until(lambda: pod.queue.asked >= 3, "queue-proxy has said that nothing is in flight")
        assert not pod.server.stands_still(0.5)
        pod.queue.get("/index.html")
        pod.server.await_frozen()


def test_at_its_deletion_it_is_thawed_and_the_program_is_gone(make: Make) -> None:
    with make() as pod:
        pod.server.await_frozen()
        assert programs(pod)
        pod.facts["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
        pod.tell()
        pod.server.await_awake()
        until(lambda: not programs(pod), "no program is left")
        pod.server.await_ticks()


@pytest.mark.parametrize("how", ["kill", "ctr", "crictl"])
def test_a_signal_to_end_is_heard_without_the_api_server(
    own: Make, daemon: Daemon, api_server: ApiServer, containerd: Containerd, how: str
) -> None:
    with own() as pod:
        pod.server.await_frozen()
        api_server.vanish()
        began = time.monotonic()
        if how == "kill":
            pod.server.kill(signal.SIGTERM)
        elif how == "ctr":
            containerd.ctr("tasks", "kill", "--signal", "SIGTERM", pod.server.id)
        else:
            pod.server.stop(grace=30)
        pod.server.await_exit()
        assert time.monotonic() - began < 5 * FACTOR
        assert "terminated" in pod.server.printed
        api_server.listen()


def test_a_command_that_somebody_runs_in_it_is_not_frozen(make: Make) -> None:
    """A probe of the kind exec would fail when its time is over."""
    with make(annotations={ATTACH: "ambient", f"{PREFIX}grace": "500ms"}) as pod, ThreadPoolExecutor(1) as pool:
        until(lambda: pod.server.frozen and pod.server.stands_still(2.5), "it is frozen for good")
        pod.queue.past("/index.html")  # and it is awake for half a second
        began = time.monotonic()
        command = pool.submit(pod.server.execute, "sleep", "2")
        assert command.result().code == 0
        assert time.monotonic() - began < 3
        pod.server.await_frozen(within=3)


def test_a_container_that_is_started_again_is_watched_again(make: Make) -> None:
    with make() as pod:
        pod.server.await_frozen()
        pod.pod.restart("user-container")
        pod.tell()
        pod.server.await_frozen()
        assert pod.queue.get("/index.html")[0] == 200


def test_one_that_asks_no_longer_is_left_alone(make: Make) -> None:
    with make() as pod:
        pod.server.await_frozen()
        pod.facts["metadata"]["annotations"] = {}
        pod.tell()
        pod.server.await_awake()
        until(lambda: not programs(pod), "no program is left")


def test_a_namespace_may_ask_for_all_its_pods(make: Make, rig: Rig) -> None:
    path = "/api/v1/namespaces/default"
    namespace = {"metadata": {"name": "default", "uid": "1"}}
    rig.api_server.put(path, namespace)
    with make(annotations={}) as pod:
        namespace["metadata"]["labels"] = {"freeze.extensions.knative.dev/attach": "ambient"}  # type: ignore[assignment]
        rig.api_server.put(path, namespace)
        pod.server.await_frozen()
        rig.api_server.remove(path)
        pod.server.await_awake()


def test_while_the_api_server_is_away_what_is_known_goes_on(own: Make, daemon: Daemon, api_server: ApiServer) -> None:
    with own() as pod:
        pod.server.await_frozen()
        api_server.vanish()
        until(lambda: daemon.events(AWAY), "it is said")
        assert pod.server.frozen
        assert pod.queue.get("/index.html")[0] == 200
        pod.server.await_frozen()
        api_server.listen()
        until(lambda: daemon.events("the API server is back"), "it is back", within=20)
        pod.ready = False
        pod.tell()
        pod.server.await_awake()


def test_a_version_that_is_too_old_is_no_trouble(own: Make, daemon: Daemon, api_server: ApiServer) -> None:
    with own() as pod:
        pod.server.await_frozen()
        api_server.forget()
        pod.facts["metadata"]["annotations"] = {}
        pod.tell()
        pod.server.await_awake()
        assert not daemon.events(AWAY)


def test_two_capabilities_are_enough(own: Make, node: Node) -> None:
    """Those of the manifests' component."""
    confined = ("setpriv", "--bounding-set=-all,+bpf,+net_admin", "--inh-caps=-all", "--no-new-privs")
    # It cannot tell whose ports are whose on the machine's network, which the pods of tests share.
    all_sockets = {ATTACH: "ambient", f"{PREFIX}wake-on": "any"}
    with (
        node.daemon("--ambient", prefix=confined) as daemon,
        own(annotations=all_sockets) as pod,
        own(annotations=all_sockets, queue_proxy=False) as other,
    ):
        effective = re.search(r"CapEff:\s+(\w+)", Path(f"/proc/{daemon.pid}/status").read_text())
        assert effective
        assert int(effective[1], 16) == 1 << 39 | 1 << 12  # CAP_BPF, CAP_NET_ADMIN
        for each in (pod, other):
            each.server.await_frozen()
            assert each.queue.get("/index.html")[0] == 200
            each.server.await_frozen()


@pytest.mark.parametrize("whom", ["told", "daemon", "supervisor", "both", "hung"])
def test_a_daemon_that_dies_leaves_nothing(own: Make, node: Node, whom: str) -> None:
    """Neither a frozen container nor a program: at once, or when the next daemon starts."""
    with node.daemon("--ambient") as daemon, own() as pod:
        pod.server.await_frozen()
        assert programs(pod)
        if whom == "told":
            os.kill(daemon.supervisor, signal.SIGTERM)
        elif whom == "daemon":
            os.kill(daemon.pid, signal.SIGKILL)
        elif whom == "supervisor":
            os.kill(daemon.supervisor, signal.SIGKILL)
        elif whom == "hung":
            os.kill(daemon.pid, signal.SIGSTOP)
        else:
            daemon.kill_both()
        until(lambda: not programs(pod), "no program is left", within=20)
        if whom == "both":
            assert pod.server.frozen
            daemon.start()
        pod.server.await_awake(within=20)
        if whom != "both":
            assert daemon.process is not None
            daemon.process.wait(20)
            assert (place(pod) / "cgroup.freeze").read_text() == "0\n"
            daemon.start()
        pod.server.await_frozen()
        assert pod.queue.get("/index.html")[0] == 200


def test_the_runtime_may_be_started_again_meanwhile(own: Make, daemon: Daemon, containerd: Containerd) -> None:
    with own(queue_proxy=False) as pod:
        pod.server.await_frozen()
        containerd.kill()
        assert pod.queue.past("/index.html")[0] == 200
        pod.server.await_frozen()
        containerd.start()
        assert pod.queue.past("/index.html")[0] == 200
        pod.server.await_frozen()


def test_one_without_queue_proxy_is_frozen_by_what_its_packets_say(make: Make, rig: Rig) -> None:
    with make(queue_proxy=False) as pod:
        pod.server.await_frozen()
        for _ in range(3):
            assert pod.queue.past("/index.html")[0] == 200
            pod.server.await_frozen(within=2)
        name = f'namespace="default",pod="{pod.pod.name}",revision=""'
        until(lambda: rig.daemon.metric(f"freeze_proxy_pod_requests_total{{{name}}}") == 3, "requests are counted")
        # A connection in which nothing has been said yet does not keep it awake, half a request does.
        with socket.create_connection((pod.ip, PORT)) as connection:
            pod.server.await_frozen(within=2)
            connection.sendall(b"GET /index.html HTTP/1.1\r\n")
            pod.server.await_awake()
            assert not pod.server.stands_still(0.5)
            connection.sendall(b"Connection: close\r\n\r\n")
            assert b"hello" in b"".join(iter(lambda: connection.recv(4096), b""))
        pod.server.await_frozen(within=2)


KINDS = pytest.mark.parametrize("queue_proxy", [True, False], ids=["counted", "observed"])


@KINDS
def test_a_server_that_is_killed_while_frozen_is_started_again_by_who_looks_after_it(
    make: Make, queue_proxy: bool
) -> None:
    """As when memory runs out. Nobody listens then, so no packet would wake who is to start it."""
    with make(queue_proxy=queue_proxy, serve=AGAIN) as pod:
        pod.server.await_frozen()
        (server,) = pod.servers()
        os.kill(server, signal.SIGKILL)
        pod.server.await_awake()
        # It is frozen again before anybody listens, which is seen as well.
        until(lambda: pod.servers() not in ([], [server]), "it is started again")
        until(lambda: answers(pod), "it listens again")
        pod.server.await_frozen()
        assert pod.queue.past("/index.html")[0] == 200


@KINDS
def test_what_waits_in_a_socket_wakes_it_after_the_freeze(make: Make, queue_proxy: bool) -> None:
    """The server has not got round to it: here it was stopped."""
    with make(queue_proxy=queue_proxy) as pod, socket.socket() as client:
        pod.server.await_frozen()
        assert pod.queue.past("/index.html")[0] == 200
        server = min(pod.servers())  # it has another for each request
        pod.server.await_awake()
        os.kill(server, signal.SIGSTOP)
        client.settimeout(20)
        client.connect((pod.ip, PORT))
        if queue_proxy:  # who says that nothing is in flight; else it is known to be
            client.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        pod.server.await_frozen()
        os.kill(server, signal.SIGCONT)
        if not queue_proxy:
            waits = PodSockets((PORT,), pod.server.pid)
            until(lambda: not waits.look().waiting, "the connection is accepted, though no packet comes")
            client.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        assert b"hello" in b"".join(iter(lambda: client.recv(4096), b""))
        pod.server.await_frozen()


ECHO = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind((sys.argv[2], int(sys.argv[3])))
    print(flush=True)
    while True:
        server.sendto(*server.recvfrom(100))
"""
"""Sends datagrams back, from within a container's cgroup: busybox has no such server."""


@contextlib.contextmanager
def echoing(pod: AmbientPod) -> Iterator[None]:
    command = [sys.executable, "-I", "-S", "-c", ECHO, str(place(pod)), pod.ip, str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.kill()


@KINDS
def test_ipv6_and_datagrams_wake_it_as_well(make: Make, queue_proxy: bool) -> None:
    port = free_port()
    with (
        make(queue_proxy=queue_proxy, serve=f"{SERVE}; httpd -p [::1]:{port} -h /tmp") as pod,
        echoing(pod),
        contextlib.closing(http.client.HTTPConnection("::1", port, timeout=10)) as connection,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        pod.server.await_frozen()
        connection.request("GET", "/index.html")
        assert connection.getresponse().read() == b"hello\n"
        pod.server.await_frozen()
        client.settimeout(10)
        client.sendto(b"hello", (pod.ip, PORT))
        assert client.recv(100) == b"hello"
        pod.server.await_frozen()


@KINDS
def test_a_port_on_which_it_listens_later_is_found(make: Make, queue_proxy: bool) -> None:
    later = PORT + 1
    serve = f"{SERVE}; (sleep 1; exec httpd -f -p ${{AT%:*}}:{later} -h /tmp) &"
    with make(queue_proxy=queue_proxy, serve=serve) as pod:
        pod.server.await_frozen()
        while not answers(pod, later):  # it cannot get there while it is frozen
            assert answers(pod)
        pod.server.await_frozen()
        assert answers(pod, later)  # at once, or when that has been looked at


def test_dry_run_stops_nothing_and_counts(make: Make, rig: Rig) -> None:
    with make(annotations={ATTACH: "ambient", f"{PREFIX}mode": "dry-run"}, queue_proxy=False) as pod:
        name = f'namespace="default",pod="{pod.pod.name}",revision=""'
        for number in (1, 2):
            until(lambda n=number: rig.daemon.metric(f"freeze_proxy_pod_freezes_total{{{name}}}") >= n, "it is counted")  # type: ignore[misc]
            assert not pod.server.stands_still()
            assert answers(pod)
        assert rig.daemon.metric(f"freeze_proxy_pod_thaws_total{{{name}}}") >= 1


def test_throttled_it_goes_on_slowly_where_there_is_a_quota(own: Make, daemon: Daemon) -> None:
    """Where the node has none, as in containers of cgroup2 on a hybrid one, it stays as it is."""
    with own(annotations={ATTACH: "ambient", f"{PREFIX}mode": "throttle"}, queue_proxy=False) as pod:
        quota = place(pod) / "cpu.max"
        if quota.exists():
            before = quota.read_text()
            until(lambda: quota.read_text() == "1000 100000\n", "it is throttled")
            assert not pod.server.frozen
            assert answers(pod)
            until(lambda: quota.read_text() == "1000 100000\n", "it is throttled again")
            pod.ready = False
            pod.tell()
            until(lambda: quota.read_text() == before, "it has its quota back")
        else:
            until(lambda: daemon.events("an order failed"), "it is said")
            assert answers(pod)
            assert not pod.server.stands_still()


def answers(pod: AmbientPod, port: int = PORT) -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection(pod.ip, port, timeout=10)) as connection:
            connection.request("GET", "/index.html")
            return connection.getresponse().status == 200
    except ConnectionError:
        return False


def test_what_can_be_told_of_it(make: Make, rig: Rig) -> None:
    with make() as pod:
        name = f'namespace="default",pod="{pod.pod.name}",revision=""'
        # The kernel has it frozen a moment before the daemon knows; a request in between is no thaw of a frozen pod.
        until(lambda: rig.daemon.metric(f"freeze_proxy_pod_freezes_total{{{name}}}") >= 1, "the freeze is counted")
        pod.queue.get("/index.html")
        until(lambda: rig.daemon.metric(f"freeze_proxy_pod_thaws_total{{{name}}}") >= 1, "the thaw is counted")
        # Its packet waited, though by the first nobody knows yet that it is a request's.
        assert rig.daemon.metric(f"freeze_proxy_pod_wait_seconds_count{{{name}}}") >= 1
        assert 0 < rig.daemon.metric(f"freeze_proxy_pod_wait_seconds_sum{{{name}}}") < 1
        assert rig.daemon.metric(f"freeze_proxy_pod_frozen_seconds_total{{{name}}}") > 0
        assert f"freeze_proxy_pod_requests_total{{{name}}}" not in rig.daemon.ask("/metrics")[1]
        assert rig.daemon.metric("freeze_proxy_ambient_watched") == 1


def test_no_request_is_lost_or_late_around_a_freeze(make: Make) -> None:
    """At random moments around it, each on a connection of its own."""
    chance = random.Random(7)
    annotations = {ATTACH: "ambient", f"{PREFIX}grace": "2ms"}
    with make(queue_proxy=False, annotations=annotations) as pod:
        pod.server.await_frozen()
        for _ in range(200):
            time.sleep(chance.uniform(0, 0.008))
            status, took = pod.queue.past("/index.html")
            assert status == 200
            # One that has woken nobody is answered after a second, when the server is let run for a moment.
            assert took < 0.9
        pod.server.await_frozen()
