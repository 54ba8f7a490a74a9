"""SIGKILL at any moment, to any of them: no container stays frozen that nobody holds, and all goes on afterwards."""

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.cluster import cgroups
from tests.support.cluster.containerd import RUNTIMES
from tests.support.cluster.kubelet import Pod
from tests.support.daemons import Control, Daemon
from tests.support.node import Node
from tests.support.wait import until

KINDS = ("daemon", "supervisor", "both")
MOMENTS = 4
"""How often each of them is killed."""


def kill(daemon: Daemon, who: str) -> None:
    if who == "both":
        daemon.kill_both()
    else:
        os.kill(daemon.pid if who == "daemon" else daemon.supervisor, signal.SIGKILL)


class Busy:
    """A sidecar that freezes and thaws without end, on one connection, until that breaks.

    ``held``: whether the last thing that it was told is that its pod is frozen.
    """

    def __init__(self, daemon: Daemon, token: str, lease: bool = True) -> None:
        self._control = daemon.control()
        self._token = token
        self._lease = lease
        self.rounds = 0
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def _go(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                for path in ("/freeze", "/thaw"):
                    self._control.send(path, self._token, self._lease)
                    self._control.hear()
                self.rounds += 1

    def reset(self) -> None:
        """RST instead of FIN."""
        raw = self._control._socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()

    def __enter__(self) -> "Busy":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._control._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._control.close()


def random_moment(most: float = 0.02) -> None:
    time.sleep(random.uniform(0, most))  # that it is any moment is the point


def works(daemon: Daemon, pod: Pod, token: str) -> None:
    """The daemon freezes and thaws it."""
    with daemon.control() as control:
        answer = control.call("/freeze", token)
        assert answer.status == 200, answer
        for name in answer.states:
            assert pod[name].frozen
        assert control.call("/thaw", token).status == 200
        for name in answer.states:
            pod[name].await_ticks()


def all_run(pod: Pod, within: float = 10.0) -> None:
    for container in pod.containers.values():
        container.await_awake(within)
        container.await_ticks(within)


@contextlib.contextmanager
def killed(node: Node, daemon: Daemon, who: str) -> Iterator[None]:
    """It is killed; afterwards it has ended, and is started again at the end."""
    kill(daemon, who)
    assert daemon.process is not None
    daemon.process.wait(10)
    yield
    daemon.start()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("who", KINDS)
def test_daemon_and_supervisor(node: Node, who: str, runtime: str) -> None:
    leased, token = node.pod("user-container", "other", runtime=runtime)
    old, old_token = node.pod("user-container", runtime=runtime)
    with node.daemon("--claim-timeout", "200ms") as daemon:
        for _ in range(MOMENTS):
            with Busy(daemon, token), Busy(daemon, old_token, lease=False):
                random_moment()
                child = daemon.pid
                with killed(node, daemon, who):
                    if who == "supervisor":
                        until(partial(ended, child), "the daemon leaves too")
                    if who != "both":
                        all_run(leased)
                        all_run(old)
            all_run(leased)
            all_run(old)
            works(daemon, leased, token)
            works(daemon, old, old_token)


@pytest.mark.parametrize("who", KINDS)
def test_while_all_are_frozen(node: Node, who: str) -> None:
    pod, token = node.pod("user-container", "other")
    old, old_token = node.pod("user-container")
    with node.daemon("--claim-timeout", "200ms") as daemon, daemon.control() as one, daemon.control() as two:
        assert one.call("/freeze", token).status == 200
        assert two.call("/freeze", old_token, lease=False).status == 200
        begun = time.monotonic()
        with killed(node, daemon, who):
            if who != "both":
                all_run(pod)
                all_run(old)
                assert time.monotonic() - begun < 3.0
        all_run(pod)
        all_run(old)
        works(daemon, pod, token)


def test_a_client_is_reset_at_any_moment(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod("user-container", "other")
    works(daemon, pod, token)
    for _ in range(60):
        with Busy(daemon, token) as busy:
            random_moment(0.01)
            busy.reset()
        all_run(pod)
    works(daemon, pod, token)
    assert daemon.metric("freeze_proxy_frozen") == 0
    assert daemon.metric("freeze_proxy_leases") == 0


def test_a_client_is_killed_at_any_moment(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod("user-container", "other")
    works(daemon, pod, token)
    for _ in range(40):
        child = os.fork()
        if child == 0:
            try:
                control = Control(daemon.port)
                while True:
                    control.call("/freeze", token)
                    control.call("/thaw", token)
            finally:
                os._exit(1)
        random_moment(0.015)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        all_run(pod)
    works(daemon, pod, token)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_containerd(node: Node, daemon: Daemon, runtime: str) -> None:
    pod, token = node.pod(runtime=runtime)
    works(daemon, pod, token)
    for _ in range(2):
        strangers = [node.pod("user-container", runtime=runtime) for _ in range(2)]
        asking = [daemon.control() for _ in strangers]
        with contextlib.ExitStack() as stack:
            for control in asking:
                stack.enter_context(control)
            busy = stack.enter_context(Busy(daemon, token))
            for control, (_, its) in zip(asking, strangers, strict=True):
                control.send("/freeze", its)
            random_moment()
            node.containerd.kill()
            rounds = busy.rounds
            for control in asking:
                assert control.hear().status in (200, 503)
            until(partial(further, busy, rounds), "a known pod is frozen and thawed")
        all_run(pod)
        for stranger, _ in strangers:
            all_run(stranger)
        node.containerd.start()
        for stranger, its in strangers:
            until(partial(thawed, daemon, its), "the runtime is asked again")
            works(daemon, stranger, its)
        works(daemon, pod, token)


def ended(pid: int) -> bool:
    return not cgroups.lives(pid)


def further(busy: Busy, rounds: int) -> bool:
    return busy.rounds > rounds + 2


def thawed(daemon: Daemon, token: str) -> bool:
    return call(daemon, "/thaw", token) == 200


def call(daemon: Daemon, path: str, token: str) -> int:
    with daemon.control() as control:
        return control.call(path, token).status


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_is_killed_while_it_is_frozen_or_about_to_be(node: Node, daemon: Daemon, runtime: str) -> None:
    pod, token = node.pod("user-container", "other", runtime=runtime)
    works(daemon, pod, token)
    for _ in range(5):
        with Busy(daemon, token):
            random_moment()
            before = pod["user-container"]
            before.kill()
            before.await_exit()
            all_run_but(pod, "user-container")
            pod.start("user-container", before.command)
        all_run(pod)
        until(lambda: call(daemon, "/freeze", token) == 200 and call(daemon, "/thaw", token) == 200, "it is found anew")
        works(daemon, pod, token)


def all_run_but(pod: Pod, name: str) -> None:
    """The others go on being frozen and thawed, and so tick now and then."""
    for other, container in pod.containers.items():
        if other != name:
            container.await_ticks()


def test_a_container_that_ends_while_frozen_leaves_nothing_behind(node: Node, daemon: Daemon) -> None:
    pod, token = node.pod("user-container", "other")
    with daemon.control() as control:
        assert control.call("/freeze", token).status == 200
        old = pod["user-container"]
        old.kill()
        # A frozen task of cgroup v1 dies when it is thawed, for it has been asked to end.
        old.await_exit()
        pod.start("user-container", old.command)
        until(lambda: control.call("/freeze", token).status == 200, "it is frozen again, with the new one")
        assert pod["user-container"].frozen
        assert pod["other"].frozen
        until(lambda: not (daemon.state / old.id).exists(), "the old one is struck out")
    all_run(pod)
