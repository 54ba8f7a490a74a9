"""What a runtime may answer, or not: every failure is a sentence, in bounded time."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freeze_proxy.freezers import FreezeError, Gone, containerd, places, processes, runtime, unix_http
from freeze_proxy.freezers.containerd import ContainerdFreezer
from freeze_proxy.freezers.crio import CrioFreezer
from freeze_proxy.freezers.docker import DockerFreezer
from freeze_proxy.freezers.runtime import Refused, RuntimeFreezer, Seen
from freeze_proxy.local.containers import ContainerdId
from tests.support.needs import need_root
from tests.support.wait import until

RUNNING = {"Id": "f" * 64, "State": {"Status": "running", "Running": True, "Paused": False, "Pid": os.getpid()}}
PAUSED = {"Id": "f" * 64, "State": {"Status": "paused", "Running": True, "Paused": True, "Pid": os.getpid()}}
EXITED = {"Id": "f" * 64, "State": {"Status": "exited", "Running": False, "Paused": False, "Pid": 0}}


class Answering:
    """A server on a unix socket that answers each request as ``answers`` has it; without one, not at all."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answers: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drop = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def says(self, request: str, status: int, body: object = "") -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.answers[request] = b"HTTP/1.1 %d Status\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data = b""
            while piece := connection.recv(65536):
                data += piece
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    request = " ".join(head.split(b"\r\n")[0].decode().split()[:2])
                    self.requests.append(request)
                    if self.drop:
                        self.drop -= 1
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    if request in self.answers:
                        connection.sendall(self.answers[request])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Answering]:
    made = Answering(tmp_path / "runtime.sock")
    yield made
    made.close()


@pytest.fixture
def docker(server: Answering) -> Iterator[DockerFreezer]:
    made = DockerFreezer(server.path, "web/1")
    yield made
    made.close()


@pytest.fixture
def crio(server: Answering) -> Iterator[CrioFreezer]:
    made = CrioFreezer(server.path, "f" * 64)
    yield made
    made.close()


PAUSE, UNPAUSE, LOOK = (
    "POST /containers/web%2F1/pause",
    "POST /containers/web%2F1/unpause",
    "GET /containers/web%2F1/json",
)


def sentence(call: Callable[[], object], kind: type[FreezeError] = FreezeError) -> str:
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert str(raised.value).endswith(".")
    return str(raised.value)


def test_docker_in_a_word(server: Answering, docker: DockerFreezer) -> None:
    server.says(PAUSE, 204)
    server.says(UNPAUSE, 204)
    assert docker.freeze()
    docker.thaw()
    assert server.requests == [PAUSE, UNPAUSE]


def test_docker_says_that_it_is_so_already(server: Answering, docker: DockerFreezer) -> None:
    server.says(PAUSE, 409, {"message": "Container f is already paused"})
    server.says(LOOK, 200, PAUSED)
    assert docker.freeze()
    server.says(UNPAUSE, 500, {"message": "Container f is not paused"})
    server.says(LOOK, 200, RUNNING)
    docker.thaw()


def test_docker_refuses(server: Answering, docker: DockerFreezer) -> None:
    server.says(PAUSE, 500, {"message": "no freezer"})
    server.says(UNPAUSE, 500, "<html>broken")
    server.says(LOOK, 200, RUNNING)
    assert sentence(docker.freeze) == "Docker does not pause the container web/1: no freezer."
    server.says(LOOK, 200, PAUSED)
    assert sentence(docker.thaw) == "Docker does not resume the container web/1: <html>broken."


def test_docker_knows_nothing_of_it(server: Answering, docker: DockerFreezer) -> None:
    for request in (PAUSE, UNPAUSE, LOOK):
        server.says(request, 404, {"message": "No such container"})
    for call in (docker.freeze, docker.thaw, docker.still):
        assert sentence(call, Gone) == "Docker knows of no container web/1."
    assert not docker.alive()


def test_docker_has_it_ended(server: Answering, docker: DockerFreezer) -> None:
    server.says(PAUSE, 409, {"message": "Container f is not running"})
    server.says(UNPAUSE, 409, {"message": "Container f is not running"})
    server.says(LOOK, 200, EXITED)
    for call in (docker.freeze, docker.thaw, docker.still):
        assert sentence(call, Gone) == "The container web/1 does not run: Docker has it as exited."


@pytest.mark.parametrize(("status", "body"), [(500, "oh"), (200, "oh"), (200, "[]"), (403, "no")])
def test_docker_talks_nonsense(server: Answering, docker: DockerFreezer, status: int, body: str) -> None:
    server.says(LOOK, status, body)
    assert sentence(docker.still).startswith("Docker does not say how the container web/1 is: ")


def test_it_answers_no_http(server: Answering, docker: DockerFreezer) -> None:
    server.answers[LOOK] = b"\x00\x01\x02\r\n\r\n"
    assert sentence(docker.still).startswith(f"Docker cannot be asked at {server.path}: ")


def test_it_hangs_up_once(server: Answering, docker: DockerFreezer) -> None:
    """As a connection that was kept while the runtime was started again: it is asked anew."""
    server.says(LOOK, 200, RUNNING)
    assert docker.alive()
    server.drop = 1
    assert docker.alive()
    server.drop = 2
    assert sentence(docker.still).startswith("Docker cannot be asked")


def test_it_does_not_answer(server: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_http, "PATIENCE", 0.2)
    docker = DockerFreezer(server.path, "web/1")
    began = time.monotonic()
    assert "has not answered at" in sentence(docker.freeze)
    assert time.monotonic() - began < 3
    docker.close()


@pytest.mark.parametrize("answers", [False, True])
def test_containerd_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """It accepts, and is silent; or speaks another language."""
    monkeypatch.setattr(containerd, "PATIENCE", 0.3)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/silent.sock")
    listener.listen()
    connections: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                if answers:
                    connections[-1].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

    threading.Thread(target=accept, daemon=True).start()
    freezer = ContainerdFreezer(f"{tmp_path}/silent.sock", "k8s.io", "x")
    try:
        began = time.monotonic()
        for call in (freezer.freeze, freezer.thaw):
            assert sentence(call).startswith("containerd cannot be asked")
        assert time.monotonic() - began < 10
    finally:
        freezer.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()


def test_crio(server: Answering, crio: CrioFreezer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "holds", lambda _pid, _id: True)
    pause, unpause, look = (f"GET /{what}/{'f' * 64}" for what in ("pause", "unpause", "containers"))
    server.says(look, 200, {"pid": os.getpid()})
    server.says(pause, 409, "container is not in running or created state, now is paused\n")
    assert crio.freeze()
    assert crio.frozen()
    server.says(unpause, 409, "container is not in paused state, now is running\n")
    crio.thaw()
    assert not crio.frozen()
    server.says(pause, 409, "container is not in running or created state, now is stopped\n")
    assert sentence(crio.freeze, Gone) == f"The container {'f' * 64} does not run."
    server.says(pause, 500, "exit status 1\n")
    assert sentence(crio.freeze) == f"CRI-O does not pause the container {'f' * 64}: exit status 1."
    server.says(look, 200, "nonsense")
    assert sentence(crio.still).startswith("CRI-O does not say how the container")
    server.says(look, 404, "can't find the container")
    assert not crio.alive()


def test_connections_are_shared_and_given_back(server: Answering) -> None:
    server.says("GET /containers/a/json", 200, RUNNING)
    freezers = [DockerFreezer(server.path, "a") for _ in range(3)]
    assert all(freezer.alive() for freezer in freezers)
    assert len(server._connections) == 1
    for freezer in freezers:
        freezer.close()
        freezer.close()
    assert not unix_http._clients._users


def test_a_line_to_containerd_ends_with_its_last_user(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # others' may be ending just now
    freezers = [ContainerdFreezer(f"{tmp_path}/none.sock", "k8s.io", "x") for _ in range(3)]
    assert len(set(threading.enumerate()) - before) == 1
    assert "there is no socket" in sentence(freezers[0].freeze)
    for freezer in freezers:
        freezer.close()
    assert not set(threading.enumerate()) - before


# Which container is meant.


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("abc", "More than one container is meant by abc: k8s.io/abc1 and k8s.io/abc2 and moby/abc1; say which with"),
        ("abc2", ("k8s.io", "abc2", 2)),
        ("abc1", "More than one container is meant by abc1: k8s.io/abc1 and moby/abc1; say which with"),
        ("ab", ("default", "ab", 4)),
        ("x", "containerd runs no container x in any of its namespaces."),
    ],
)
def test_ids(asked: str, found: str | tuple[str, str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = [("k8s.io", "abc1", 1), ("k8s.io", "abc2", 2), ("moby", "abc1", 3), ("default", "ab", 4)]
    monkeypatch.setattr(containerd, "running", lambda _socket, _namespace: everywhere)
    wanted = ContainerdId(asked, None, "/none")
    if isinstance(found, str):
        assert sentence(wanted.find).startswith(found)
    else:
        assert (wanted.find().id, wanted.find().pid) == found[1:]


# Ways that are mixed, as far as no real runtime shows it.


class Word(RuntimeFreezer):
    """A runtime that refuses, and says what it believes."""

    runtime = "It"

    def __init__(self, paused: bool, kernel: bool | None) -> None:
        super().__init__("x")
        self.where = "the container x"
        self._paused = paused
        self._kernel = kernel

    def _pause(self) -> None:
        raise Refused("no.")

    _resume = _pause

    def _look(self) -> Seen:
        return Seen(1, self._paused)

    def _cgroup(self, pid: int) -> tuple[str, bool | None]:
        return ("", None) if self._kernel is None else ("/cgroup/x", self._kernel)


@pytest.mark.parametrize(
    ("paused", "kernel", "freeze", "thaw", "still"),
    [
        (True, True, "", "does not resume", True),
        (True, None, "", "does not resume", True),
        (True, False, "somebody has thawed its cgroup /cgroup/x", "", False),
        (False, False, "does not pause", "", False),
        (False, None, "does not pause", "", False),
        (False, True, "Somebody has frozen the container x", "Somebody has frozen the container x", True),
    ],
)
def test_the_runtimes_word_and_the_kernels(
    paused: bool, kernel: bool | None, freeze: str, thaw: str, still: bool
) -> None:
    freezer = Word(paused, kernel)
    for call, wanted in ((freezer.freeze, freeze), (freezer.thaw, thaw)):
        if wanted:
            assert wanted in sentence(call)
        else:
            call()
    assert freezer.still() == still
    assert runtime.PATIENCE == 5


# Signals that wait.


@pytest.mark.parametrize(
    ("number", "asked"),
    [
        (signal.SIGTERM, True),
        (signal.SIGQUIT, True),
        (signal.SIGUSR1, True),
        (signal.SIGRTMIN + 3, True),
        (signal.SIGALRM, False),
        (signal.SIGRTMIN + 4, False),
    ],
)
def test_asked_to_end(number: int, asked: bool) -> None:
    """A process that is stopped has it pending."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            until(lambda: processes.state(process.pid) == processes.STOPPED, "it is stopped")
            assert not processes.asked_to_end(process.pid)
            process.send_signal(number)
            assert processes.asked_to_end(process.pid) == asked
        finally:
            process.kill()
    assert not processes.asked_to_end(process.pid)


@pytest.mark.parametrize("groups", [3000, 65536])
def test_asked_to_end_in_more_groups_than_anybody_needs(groups: int) -> None:
    """They stand before the signals, and push them far back."""
    need_root()
    with subprocess.Popen(["sleep", "60"], extra_groups=range(2**31, 2**31 + groups)) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            until(lambda: processes.state(process.pid) == processes.STOPPED, "it is stopped")
            assert not processes.asked_to_end(process.pid)
            process.send_signal(signal.SIGTERM)
            assert processes.asked_to_end(process.pid)
        finally:
            process.kill()


def test_who_cannot_be_read_counts_as_asked_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda *_: b"Name:\tserver\n")
    assert processes.asked_to_end(os.getpid())
