"""Pods of a real containerd, found over CRI and frozen by their own cgroups."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from freeze_proxy.daemon.cri import DOCKER, Runtime, RuntimeAway
from freeze_proxy.daemon.places import Ways
from freeze_proxy.daemon.pods import NoPod, Pods
from freeze_proxy.freezers import Freezer, Gone
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.crio_stand_in import CrioStandIn
from tests.support.cluster.dockerd import Dockerd
from tests.support.cluster.kubelet import Kubelet
from tests.support.wait import until


@asynccontextmanager
async def pods_of(socket: Path, kind: str = "auto", docker: str = DOCKER) -> AsyncIterator[Pods]:
    runtime = Runtime(str(socket), docker)
    pods = Pods(runtime, Ways(kind, runtime.identity))
    try:
        yield pods
    finally:
        pods.close()
        await runtime.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def freeze(freezer: Freezer) -> None:
    if not freezer.freeze():
        until(freezer.frozen, f"{freezer.where} is frozen")


def test_a_pod_is_found_with_all_its_running_containers(kubelet: Kubelet, runtime: str) -> None:
    mine, other = (kubelet.pod(["user-container", "helper", "queue-proxy"], runtime) for _ in range(2))

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            found = await pods.find(mine.uid)
            assert (found.namespace, found.name) == (mine.namespace, mine.name)
            assert {(c.name, c.id, c.pid) for c in found.containers.values()} == {
                (c.name, c.id, c.pid) for c in mine.containers.values()
            }
            assert [c.name for c in found.chosen()] == ["user-container", "helper"]
            for container in found.chosen():
                freezer = container.freezer("freeze")
                assert freezer.where == str(mine[container.name].cgroup)
                freeze(freezer)
            assert {name for name, c in mine.containers.items() if c.frozen} == {"user-container", "helper"}
            assert not any(c.frozen for c in other.containers.values())
            # Frozen ones are found like any other.
            pods.forget(mine.uid)
            assert set((await pods.find(mine.uid)).containers) == {"user-container", "helper", "queue-proxy"}
            for container in found.chosen():
                container.freezer("freeze").thaw()
            assert not any(c.frozen for c in mine.containers.values())

    run(work)


def test_throttling_is_of_the_container_s_own_cgroup(kubelet: Kubelet) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            container = (await pods.find(pod.uid)).containers["user-container"]
            freezer = container.freezer("throttle")
            assert container.id in freezer.where
            assert kubelet.containerd.cgroups.pod_name(pod.uid) in freezer.where
            assert freezer.freeze()
            assert freezer.still()
            freezer.thaw()
            assert not freezer.still()

    run(work)


def test_through_the_runtime_if_so_wanted(kubelet: Kubelet) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket, "containerd") as pods:
            freezer = (await pods.find(pod.uid)).containers["user-container"].freezer("freeze")
            assert (freezer.kind, freezer.quick) == ("containerd", False)
            freeze(freezer)
            assert pod["user-container"].frozen
            freezer.thaw()
            assert not pod["user-container"].frozen

    run(work)


def test_through_cri_o_played_by_a_stand_in(kubelet: Kubelet, crio_stand_in: CrioStandIn) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(crio_stand_in.socket, "crio") as pods:
            found = await pods.find(pod.uid)
            assert found.containers["user-container"].pid == pod["user-container"].pid
            freezer = found.containers["user-container"].freezer("freeze")
            assert (freezer.kind, freezer.quick) == ("crio", False)
            await asyncio.to_thread(freeze, freezer)
            assert pod["user-container"].frozen
            await asyncio.to_thread(freezer.thaw)
            assert not pod["user-container"].frozen

    run(work)


def test_pods_that_are_not_there(kubelet: Kubelet) -> None:
    kubelet.pod()
    deleted = kubelet.pod()
    deleted.delete()

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            for uid in (deleted.uid, "", "not-a-uid", "x" * 5000, "a=b,c"):
                with pytest.raises(NoPod, match="no running pod"):
                    await pods.find(uid)

    run(work)


def test_a_pod_that_has_been_deleted_is_forgotten(kubelet: Kubelet) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            container = (await pods.find(pod.uid)).containers["user-container"]
            freezer = container.freezer("freeze")
            await pods.sweep()
            assert pods.known(pod.uid) is not None
            pod.delete()
            await pods.sweep()
            assert pods.known(pod.uid) is None
            with pytest.raises(Gone):
                freezer.freeze()
            with pytest.raises(Gone):
                container.freezer("freeze")
            with pytest.raises(NoPod):
                await pods.find(pod.uid)

    run(work)


def test_a_restarted_container_is_another_one(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(runtime=runtime)

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            before = await pods.find(pod.uid)
            old = before.containers["user-container"].freezer("freeze")
            new = pod.restart("user-container")
            assert not before.containers["user-container"].alive()
            await pods.sweep()
            assert pods.known(pod.uid) is None
            after = await pods.find(pod.uid)
            assert after.containers["user-container"].id == new.id
            assert after.containers["queue-proxy"] is before.containers["queue-proxy"]
            freeze(after.containers["user-container"].freezer("freeze"))
            assert new.frozen
            with pytest.raises(Gone):
                old.freeze()
            after.containers["user-container"].freezer("freeze").thaw()

    run(work)


def test_a_container_that_joins_is_noticed(kubelet: Kubelet) -> None:
    pod = kubelet.pod(["user-container"])

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            assert list((await pods.find(pod.uid)).containers) == ["user-container"]
            pod.start("late", pod["user-container"].command)
            await pods.sweep()
            assert pods.known(pod.uid) is None
            assert set((await pods.find(pod.uid)).containers) == {"user-container", "late"}
            await pods.sweep()
            assert pods.known(pod.uid) is not None

    run(work)


def test_the_runtime_restarts(kubelet: Kubelet, containerd: Containerd) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(containerd.socket) as pods:
            await pods.find(pod.uid)
            containerd.kill()
            containerd.start()
            pods.forget(pod.uid)
            assert (await pods.find(pod.uid)).containers["user-container"].id == pod["user-container"].id
            containerd.kill()
            # What is known needs no runtime.
            known = pods.known(pod.uid)
            assert known is not None
            freeze(known.containers["user-container"].freezer("freeze"))
            known.containers["user-container"].freezer("freeze").thaw()
            pods.forget(pod.uid)
            with pytest.raises(RuntimeAway, match="not running"):
                await pods.find(pod.uid)
            containerd.start()
            assert (await pods.find(pod.uid)).containers["user-container"] is known.containers["user-container"]

    run(work)


@pytest.mark.alone
def test_an_unknown_pod_is_found_in_a_few_milliseconds(kubelet: Kubelet) -> None:
    pod = kubelet.pod()

    async def work() -> None:
        async with pods_of(kubelet.containerd.socket) as pods:
            await pods.find(pod.uid)
            took = []
            for _ in range(20):
                pods.forget(pod.uid)
                begun = time.perf_counter()
                await pods.find(pod.uid)
                took.append(time.perf_counter() - begun)
            assert sorted(took)[10] < 0.012
            begun = time.perf_counter()
            for _ in range(1000):
                pods.known(pod.uid)
            assert (time.perf_counter() - begun) / 1000 < 10e-6

    run(work)


def test_docker_tells_the_process_of_a_container_if_cri_does_not(dockerd: Dockerd) -> None:
    container = dockerd.run("plain")

    async def work() -> None:
        runtime = Runtime(str(dockerd.containerd.socket), str(dockerd.socket))
        assert await runtime._pid_by_docker(container.id) == container.pid
        assert await runtime._pid_by_docker("0" * 64) == 0
        runtime = Runtime(str(dockerd.containerd.socket), str(dockerd.socket) + ".none")
        with pytest.raises(RuntimeAway, match="Docker at"):
            await runtime._pid_by_docker(container.id)

    run(work)
