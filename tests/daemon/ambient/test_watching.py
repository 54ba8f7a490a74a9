"""Following the API server: lists, watches, what goes wrong with either."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from freeze_proxy.apiserver import ApiServer as Server
from freeze_proxy.daemon.ambient import watching
from freeze_proxy.daemon.ambient.watching import Client, Follower
from tests.support.api_server import ApiServer

HERE = "this-node"
Facts = dict[str, Any]


def path(name: str) -> str:
    return f"/api/v1/namespaces/n/pods/{name}"


def pod(name: str, node: str = HERE, **more: Any) -> Facts:
    return {
        "metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}", **more},
        "spec": {"nodeName": node, "containers": [{"name": "web"}]},
    }


class Followed:
    """A follower, and what it has told."""

    def __init__(self, server: ApiServer) -> None:
        self.client = Client(Server(str(server.kubeconfig())))
        self.told: list[str] = []
        self.follower: Follower[Pod, tuple[str, str]] = Follower(
            self.client, Pod, self._digest, self.told.append, {"spec.nodeName": HERE}
        )

    @staticmethod
    def _digest(one: Pod) -> tuple[str, str] | None:
        assert one.metadata is not None
        name, labels = one.metadata.name or "", one.metadata.labels or {}
        return None if labels.get("wanted") == "no" else (name, labels.get("color", ""))

    async def until(self, kept: dict[str, str]) -> None:
        """These are kept, by name and colour."""
        async with asyncio.timeout(10):
            while dict(self.follower.kept.values()) != kept:
                await asyncio.sleep(0.01)


def following(server: ApiServer, work: Callable[[Followed], Awaitable[None]]) -> None:
    async def run() -> None:
        followed = Followed(server)
        task = asyncio.create_task(followed.follower.run())
        try:
            await work(followed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await followed.client.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FIRST_PAUSE", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with ApiServer(tmp_path / "api") as server:
        yield server


def test_what_is_there_what_comes_and_what_goes(server: ApiServer) -> None:
    server.put(path("a"), pod("a"))
    server.put(path("elsewhere"), pod("elsewhere", "another-node"))
    server.put(path("unwanted"), pod("unwanted", labels={"wanted": "no"}))

    async def work(followed: Followed) -> None:
        await followed.until({"a": ""})
        server.put(path("b"), pod("b"))
        await followed.until({"a": "", "b": ""})
        server.put(path("a"), pod("a", labels={"color": "red"}))
        await followed.until({"a": "red", "b": ""})
        server.put(path("b"), pod("b", labels={"wanted": "no"}))
        await followed.until({"a": "red"})
        server.remove(path("a"))
        await followed.until({})
        assert followed.told == ["uid-a", "uid-b", "uid-a", "uid-b", "uid-a"]
        assert server.calls["/api/v1/pods"] == 2  # a list and a watch

    following(server, work)


def test_after_410_the_list_says_what_was_missed(server: ApiServer) -> None:
    async def work(followed: Followed) -> None:
        server.put(path("a"), pod("a"))
        await followed.until({"a": ""})
        server.forget()
        server.remove(path("a"))
        server.put(path("b"), pod("b"))
        await followed.until({"b": ""})
        assert not followed.follower.away

    following(server, work)


@pytest.mark.parametrize("fault", ["forbidden", "garbage", "broken", "overloaded", "cut"])
def test_what_is_known_goes_on_while_it_fails(server: ApiServer, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    server.put(path("a"), pod("a"))

    async def work(followed: Followed) -> None:
        await followed.until({"a": ""})
        server.become(fault)
        followed.follower.again()
        async with asyncio.timeout(10):
            while not followed.follower.away:
                await asyncio.sleep(0.01)
            asked = server.calls["/api/v1/pods"]
            while server.calls["/api/v1/pods"] < asked + 2:
                await asyncio.sleep(0.01)
        assert dict(followed.follower.kept.values()) == {"a": ""}
        server.become()
        server.put(path("b"), pod("b"))
        await followed.until({"a": "", "b": ""})
        assert not followed.follower.away

    following(server, work)
    said = [record for record in caplog.records if "cannot be followed" in record.message]
    assert len(said) == 1
    assert "credentials-of-the-daemon" not in json.dumps([record.__dict__ for record in said], default=str)


def test_pauses_grow(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("random.uniform", lambda _low, _high: 1.0)

    async def work(followed: Followed) -> None:
        real = asyncio.sleep

        async def noted(seconds: float) -> None:
            pauses.append(seconds)
            await real(0)

        server.become("broken")
        monkeypatch.setattr("asyncio.sleep", noted)
        async with asyncio.timeout(10):
            while len([pause for pause in pauses if pause >= 1]) < 9:
                await real(0.01)
        monkeypatch.setattr("asyncio.sleep", real)

    monkeypatch.setattr(watching, "_FIRST_PAUSE", 1.0)
    following(server, work)
    assert pauses[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_there_is_an_end_to_what_is_kept(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST", 3)
    for number in range(5):
        server.put(path(f"p{number}"), pod(f"p{number}"))

    async def work(followed: Followed) -> None:
        await followed.until({"p0": "", "p1": "", "p2": ""})
        server.put(path("p0"), pod("p0", labels={"color": "red"}))
        await followed.until({"p0": "red", "p1": "", "p2": ""})

    following(server, work)
