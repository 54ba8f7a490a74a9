"""The whole path: a request, the relay, its gate, the client of the daemon, the daemon, and a container that serves."""

import http.client
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from freeze_proxy.control import client as module
from freeze_proxy.control.client import Client
from freeze_proxy.control.token import TokenFile
from freeze_proxy.gate import AWAKE, FROZEN, Settings
from tests.support.cluster.kubelet import Container, Pod
from tests.support.daemons import Daemon
from tests.support.house import House
from tests.support.node import Node
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.wait import until

GRACE = 0.005
BODY = b"Here I am.\n"


class Scene:
    """A pod that serves, and what stands before it: ``house``. ``said`` is what the client of the daemon said."""

    def __init__(self, pod: Pod, house: House, token: Path, said: list[str]) -> None:
        self.pod = pod
        self.house = house
        self.token = token
        self.said = said
        self.passed_to_frozen = 0

    @property
    def server(self) -> Container:
        return self.pod["user-container"]

    @property
    def client(self) -> Client:
        return cast(Client, self.house.driver)

    def watch_releases(self) -> None:
        """From now on the kernel is asked, before anything held is sent on, whether the server is frozen."""
        release = self.house.relay.release

        def watched() -> None:
            self.passed_to_frozen += self.server.frozen
            release()

        class Watched:
            catch_up = self.house.relay.catch_up
            before_freeze = self.house.relay.before_freeze
            refuse = self.house.relay.refuse

        Watched.release = staticmethod(watched)  # type: ignore[attr-defined]
        self.house.keeper.gated = Watched()  # type: ignore[assignment]

    def get(self, within: float = 20.0) -> float:
        """One request, which must be answered as it should be; returns the seconds it took."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(LOOPBACK, self.house.port, timeout=within)
        try:
            connection.request("GET", "/index.html")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, BODY)
        finally:
            connection.close()
        return time.monotonic() - began


@contextmanager
def scene(node: Node, daemon: Daemon, folder: Path, thaw_timeout: float = 10.0, **options: float) -> Iterator[Scene]:
    port = free_port()
    pod = node.kubelet.pod({"user-container": ("httpd", "-f", "-p", f"{LOOPBACK}:{port}", "-h", "/ticks")})
    (pod["user-container"].folder / "index.html").write_bytes(BODY)
    token = folder / "token"
    token.write_text(node.token(pod))
    await_port(port)
    said: list[str] = []
    house = House(
        port,
        Settings(grace=GRACE, thaw_timeout=thaw_timeout),
        driver=lambda loop: Client(
            loop,
            (LOOPBACK, daemon.port),
            TokenFile(str(token)),
            said.append,
            **options,  # type: ignore[arg-type]
        ),
    )
    made = Scene(pod, house, token, said)
    made.watch_releases()
    with house:
        house.on_loop(made.client.start)
        try:
            yield made
        finally:
            house.on_loop(house.keeper.disarm)
            house.on_loop(made.client.close)
    assert made.passed_to_frozen == 0, "bytes were passed on to a frozen server"
    made.server.await_awake()


@contextmanager
def traffic(scene: Scene, seed: int) -> Iterator[list[float]]:
    """Requests with pauses in which it freezes, or nearly; yields how long each took. All must be answered well."""
    chance = random.Random(seed)
    took: list[float] = []
    troubles: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                took.append(scene.get())
                over.wait(chance.choice([0.0, GRACE, GRACE * 1.1, GRACE * 2, 0.05]))
        except BaseException as trouble:  # the test's own thread raises it
            troubles.append(trouble)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not troubles, (troubles, scene.said)
    assert not any(thread.is_alive() for thread in threads)


def test_requests_thaw_and_silence_freezes(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage:
        for _ in range(20):
            stage.house.await_frozen()
            assert stage.server.frozen
            assert stage.get() < 2
        stage.house.await_frozen()
        assert stage.said == []
        assert daemon.metric("freeze_proxy_leases") == 1
    assert node.api_server.reviews == 1


def test_the_daemon_is_killed_and_comes_back_under_load(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    chance = random.Random(7)
    with scene(node, daemon, tmp_path) as stage:
        with traffic(stage, 1) as took:
            for _ in range(6):
                time.sleep(chance.uniform(0.05, 0.5))  # the moment is the point
                os.kill(daemon.pid, signal.SIGKILL)
                assert daemon.process is not None
                daemon.process.wait(10)
                time.sleep(chance.choice([0.0, 0.3]))
                daemon.start()
            before = len(took)
            until(lambda: len(took) > before + 10, "requests go on")
        assert max(took) < 10
        stage.house.await_frozen()
        assert stage.server.frozen
        # One line that it is away, one that it is back, each time at most; and not one a second.
        assert len(stage.said) <= 12, stage.said


def test_daemon_and_supervisor_are_killed_together(
    node: Node, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays frozen then is thawed by the next daemon, and until then nothing passes."""
    monkeypatch.setattr(module, "NOBODY", 60.0)
    with scene(node, daemon, tmp_path, thaw_timeout=60.0) as stage:
        for seed in range(3):
            stage.house.await_frozen()
            daemon.kill_both()
            assert stage.server.frozen
            with traffic(stage, seed) as took:
                until(lambda: stage.house.in_flight() == 2, "requests wait")
                daemon.start()
                until(lambda: len(took) > 10, "requests are answered")
            assert max(took) < 20


def test_a_daemon_that_is_gone_for_good_leaves_the_pod_serving(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage:
        stage.house.await_frozen()
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.process is not None
        daemon.process.wait(10)
        stage.server.await_awake()  # by the supervisor
        waited = stage.get()
        assert waited < module.NOBODY + 2
        for _ in range(5):
            assert stage.get() < 1
        assert stage.client.state == module.PRESUMED
        assert 1 <= len(stage.said) <= 2
        assert "cannot be reached (connection refused)" in stage.said[-1]
        daemon.start()
        stage.house.await_frozen()


def test_a_daemon_that_ends_in_peace(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage:
        stage.house.await_frozen()
        daemon.end(signal.SIGTERM)
        assert not stage.server.frozen
        daemon.start()
        assert stage.get() < 5
        stage.house.await_frozen()


def test_a_daemon_that_hangs_for_a_while(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path, silence=0.3) as stage:
        stage.house.await_frozen()
        pid = daemon.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with traffic(stage, 3) as took:
                until(lambda: any("does not answer" in said for said in stage.said), "it has been noticed")
                assert stage.server.frozen
                assert took == []
                os.kill(pid, signal.SIGCONT)
                until(lambda: len(took) > 10, "requests are answered")
        finally:
            os.kill(pid, signal.SIGCONT)
        stage.house.await_frozen()
        assert stage.server.frozen


@pytest.mark.alone
def test_a_daemon_that_knows_no_token_any_more(
    node: Node, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been restarted, and the API server is away: it thaws what nobody could claim, and the pod serves."""
    monkeypatch.setattr(module, "HELPLESS", 5.0)
    with scene(node, daemon, tmp_path, thaw_timeout=30.0) as stage:
        stage.house.await_frozen()
        node.api_server.vanish()
        daemon.kill_both()
        daemon.start()
        assert stage.get() < 15
        assert stage.get() < 1
        node.api_server.listen()
        stage.house.await_frozen()


def test_a_token_is_replaced(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage, traffic(stage, 5) as took:
        for _ in range(5):
            before = len(took)
            until(lambda: len(took) > before + 5, "requests are answered")  # noqa: B023 - called before the next turn
            new = tmp_path / "token.new"
            new.write_text(node.token(stage.pod))
            os.rename(new, stage.token)
        assert stage.said == []


def test_a_token_of_another_audience_leaves_the_pod_serving(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage:
        stage.house.await_frozen()
        stage.token.write_text(node.token(stage.pod, "somebody-else"))
        assert stage.get() < 6  # the lease has ended, and the daemon thaws by that
        until(lambda: stage.said, "it says what is wrong")
        for _ in range(5):
            assert stage.get() < 1
        assert len(stage.said) == 1, stage.said
        stage.token.write_text(node.token(stage.pod))
        stage.house.await_frozen()


def test_a_container_that_restarts_is_frozen_again(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as stage:
        stage.house.await_frozen()
        stage.server.kill()
        server = stage.pod.restart("user-container")
        (server.folder / "index.html").write_bytes(BODY)
        await_port(stage.house.relay.connections.target[1])
        assert stage.get() < 5
        stage.house.await_frozen()
        assert server.frozen
        assert stage.house.state() in (FROZEN, AWAKE)
