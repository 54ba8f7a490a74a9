"""What is made of a runtime's answers, and of sockets at which there is no runtime."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream

from freeze_proxy.daemon import cri
from freeze_proxy.daemon.cri import Runtime, RuntimeAway, Sandbox, newest, pid_in
from freeze_proxy.protobuf import classes
from tests.support.needs import need

UID = "0b7e5a1c-6c55-4f0e-9a57-1d5e8c0f3a11"
MESSAGES = classes("test.cri", cri.TABLE)

Play = Callable[..., object]


class MortalServer(Server):
    """Ends its connections with itself, as a process does."""

    def __init__(self, *handlers: Any) -> None:
        super().__init__(*handlers)
        self._protocols: list[H2Protocol] = []

    def _protocol_factory(self) -> H2Protocol:
        self._protocols.append(super()._protocol_factory())
        return self._protocols[-1]

    def close(self) -> None:
        super().close()
        for protocol in self._protocols:
            protocol.connection._transport.abort()


class Actor:
    """A runtime that answers as the test has it: ``answers`` by method, from the request to the response's fields."""

    def __init__(self, path: Path, **answers: Play) -> None:
        self._path = path
        self._answers: dict[str, Play] = {
            "Version": lambda _: {"runtime_name": "containerd", "runtime_version": "9"},
            **answers,
        }
        self.calls: list[str] = []

    def __mapping__(self) -> dict[str, Handler]:
        def handler(method: str) -> Handler:
            request, response = (MESSAGES[name] for name in cri.METHODS[method])

            async def handle(stream: Stream) -> None:  # type: ignore[type-arg]
                asked = await stream.recv_message()
                self.calls.append(method)
                await stream.send_message(response(**self._answers[method](asked)))  # type: ignore[arg-type]

            return Handler(handle, Cardinality.UNARY_UNARY, request, response)

        return {f"/runtime.v1.RuntimeService/{method}": handler(method) for method in self._answers}

    async def __aenter__(self) -> "Actor":
        self._server = MortalServer([self])
        await self._server.start(path=str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()


def sandbox(id: str, uid: str = UID, created: int = 1) -> dict[str, object]:
    return {"id": id, "metadata": {"name": "pod-1", "uid": uid, "namespace": "default"}, "created_at": created}


def container(id: str, pod: str, name: str, state: int = cri.RUNNING, attempt: int = 0) -> dict[str, object]:
    metadata = {"name": name, "attempt": attempt}
    return {"id": id, "pod_sandbox_id": pod, "metadata": metadata, "state": state, "created_at": attempt}


def status(pids: dict[str, int]) -> Play:
    def play(asked: object) -> dict[str, object]:
        id: str = asked.container_id  # type: ignore[attr-defined]
        if id not in pids:
            raise GRPCError(Status.NOT_FOUND, "no such container")
        return {"status": {"state": cri.RUNNING}, "info": {"info": json.dumps({"pid": pids[id], "sandboxID": "s"})}}

    return play


def look_up(path: Path, actor: Actor | None = None) -> Sandbox | None:
    async def work() -> Sandbox | None:
        runtime = Runtime(str(path))
        try:
            if actor is None:
                return await runtime.containers_of(UID)
            async with actor:
                return await runtime.containers_of(UID)
        finally:
            await runtime.close()

    return asyncio.run(asyncio.wait_for(work(), 20))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cri.sock"


def test_a_pod_made_anew_is_the_newest(path: Path) -> None:
    found = look_up(
        path,
        Actor(
            path,
            ListPodSandbox=lambda _: {"items": [sandbox("old", created=1), sandbox("new", created=2)]},
            ListContainers=lambda _: {"containers": [container("1", "old", "a"), container("2", "new", "a")]},
            ContainerStatus=status({"1": 101, "2": 102}),
        ),
    )
    assert found is not None
    assert [(each.id, each.pid) for each in found.containers] == [("2", 102)]


def test_a_pod_with_another_uid_is_none_of_it_whatever_its_labels_say(path: Path) -> None:
    actor = Actor(
        path,
        ListPodSandbox=lambda _: {"items": [sandbox("s", uid="another")]},
        ListContainers=lambda _: {"containers": [container("1", "s", "a")]},
        ContainerStatus=status({"1": 101}),
    )
    assert look_up(path, actor) is None


def test_of_each_name_the_last_attempt_counts_if_it_runs(path: Path) -> None:
    found = look_up(
        path,
        Actor(
            path,
            ListPodSandbox=lambda _: {"items": [sandbox("s")]},
            ListContainers=lambda _: {
                "containers": [
                    container("1", "s", "a", state=2),
                    container("2", "s", "a", attempt=1),
                    container("3", "s", "b", state=cri.CREATED),
                    container("4", "s", "gone meanwhile"),
                    container("5", "elsewhere", "c"),
                ]
            },
            ContainerStatus=status({"1": 101, "2": 102, "5": 105}),
        ),
    )
    assert found is not None
    assert [(each.name, each.id) for each in found.containers] == [("a", "2")]
    assert not found.settled


def test_a_runtime_that_does_not_tell_the_process(path: Path) -> None:
    actor = Actor(
        path,
        ListPodSandbox=lambda _: {"items": [sandbox("s")]},
        ListContainers=lambda _: {"containers": [container("1", "s", "a")]},
        ContainerStatus=lambda _: {"status": {"state": cri.RUNNING}},
    )
    with pytest.raises(RuntimeAway, match="does not tell the process of the container 1"):
        look_up(path, actor)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "7", '{"pid": "7"}', '{"pid": 0}', '{"pid": null}', '{"Pid": 7}']
)
def test_no_process_is_read_where_none_is_told(text: str | None) -> None:
    assert pid_in({} if text is None else {"info": text}) is None


def test_the_process_is_read_from_json() -> None:
    assert pid_in({"info": '{"sandboxID": "s", "pid": 4242, "runtimeSpec": {}}'}) == 4242


def test_the_last_attempts_in_the_order_of_their_making() -> None:
    made = [
        MESSAGES["Container"](**container(id, "s", name, attempt=attempt))
        for id, name, attempt in (("3", "b", 2), ("1", "b", 1), ("2", "a", 0))
    ]
    assert [each.id for each in newest(made)] == ["2", "3"]


# Where there is no runtime.


def test_no_socket(path: Path) -> None:
    with pytest.raises(RuntimeAway, match=f"no container runtime at {path}.*--runtime-socket"):
        look_up(path)


def test_a_socket_that_nobody_listens_at(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))
    with pytest.raises(RuntimeAway, match="not running"):
        look_up(path)


def test_a_socket_that_is_forbidden(path: Path) -> None:
    need(os.geteuid() == 0, "Only root may take away rights and then become somebody who lacks them.")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o600)
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        folder.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setuid(65534)
            look_up(path)
        except RuntimeAway as reason:
            code = 0 if "run freeze-proxy as root" in str(reason) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    listener.close()


def test_a_runtime_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "_PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        begun = time.monotonic()
        with pytest.raises(RuntimeAway, match=r"did not answer within 0.2 s"):
            look_up(path)
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0" * 4096])
def test_something_that_is_no_runtime(path: Path, words: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "_PATIENCE", 0.5)

    async def work() -> None:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(words)
            writer.close()

        server = await asyncio.start_unix_server(serve, path)
        runtime = Runtime(str(path))
        try:
            with pytest.raises(RuntimeAway, match=str(path)):
                await runtime.containers_of(UID)
        finally:
            await runtime.close()
            server.close()

    asyncio.run(asyncio.wait_for(work(), 10))


def test_a_runtime_without_cri(path: Path) -> None:
    def unknown(_: object) -> object:
        raise GRPCError(Status.UNIMPLEMENTED, "unknown service runtime.v1.RuntimeService")

    with pytest.raises(RuntimeAway, match="does not speak CRI v1"):
        look_up(path, Actor(path, Version=unknown))


def test_a_runtime_that_fails(path: Path) -> None:
    def fail(_: object) -> object:
        raise GRPCError(Status.INTERNAL, "disk full")

    with pytest.raises(RuntimeAway, match="failed at ListPodSandbox: disk full"):
        look_up(path, Actor(path, ListPodSandbox=fail, ListContainers=lambda _: {}))


def test_a_runtime_that_comes_back_is_asked_as_if_nothing_had_been(path: Path) -> None:
    async def work() -> None:
        runtime = Runtime(str(path))
        for _ in range(3):
            async with Actor(path):
                assert await runtime.version() == ("containerd", "9")
                assert await runtime.version() == ("containerd", "9")
            path.unlink(missing_ok=True)
            with pytest.raises(RuntimeAway, match="no container runtime"):
                await runtime.version()
        for _ in range(3):
            async with Actor(path):
                assert await runtime.version() == ("containerd", "9")
            path.unlink(missing_ok=True)
        await runtime.close()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_auto_takes_the_first_that_answers_and_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("none.sock", "dead.sock", "good.sock", "other.sock")]
    monkeypatch.setattr(cri, "SOCKETS", tuple(map(str, paths)))
    socket.socket(socket.AF_UNIX).bind(str(paths[1]))

    async def work() -> None:
        runtime = Runtime("auto")
        with pytest.raises(RuntimeAway, match=r"dead.sock is not running"):
            await runtime.version()
        assert runtime.identity() == ("", "")
        async with Actor(paths[2], Version=lambda _: {"runtime_name": "cri-o"}), Actor(paths[3]):
            await runtime.version()
            assert runtime.identity() == ("cri-o", str(paths[2]))
        with pytest.raises(RuntimeAway, match=r"good.sock"):
            await runtime.version()
        await runtime.close()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_auto_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "SOCKETS", (str(tmp_path / "none.sock"), str(tmp_path / "nor.sock")))

    async def work() -> None:
        with pytest.raises(RuntimeAway, match=r"No container runtime listens at .*none.sock.*--runtime-socket"):
            await Runtime("auto").containers_of(UID)

    asyncio.run(work())
