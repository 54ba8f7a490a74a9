"""What is remembered of pods, with a runtime that says what the test wants and counts how often it is asked."""

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.annotations import NEVER_FROZEN, SIDECARS
from freeze_proxy.daemon import places
from freeze_proxy.daemon import pods as pods_module
from freeze_proxy.daemon.cri import Lister, Running, RuntimeAway, Sandbox
from freeze_proxy.daemon.pods import Container, NoContainer, NoPod, Pod, Pods
from freeze_proxy.freezers import FreezeError, Freezer, Gone, cgroup
from tests.support.proxies import need_freezer

UID = "0b7e5a1c-6c55-4f0e-9a57-1d5e8c0f3a11"


class Script(Lister):
    """A runtime whose pods the test sets. While ``held`` it does not answer."""

    def __init__(self) -> None:
        self.pods: dict[str, Sandbox | Exception] = {}
        self.calls = 0
        self.under_way = self.most_under_way = 0
        self.held: asyncio.Event | None = None

    async def containers_of(self, uid: str) -> Sandbox | None:
        self.calls += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.held is not None:
                await self.held.wait()
        finally:
            self.under_way -= 1
        answer = self.pods.get(uid)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has(self, *names: str, uid: str = UID, settled: bool = True) -> None:
        """The pod runs these containers, ``name`` or ``name:id``."""
        split = [(name.partition(":")[0], name.partition(":")[2] or name) for name in names]
        running = tuple(Running(id, name, 100 + number) for number, (name, id) in enumerate(split))
        self.pods[uid] = Sandbox(uid, "default", "pod-1", running, settled)


class Stub(Freezer):
    """Does nothing, and lives until it is told not to."""

    def __init__(self, id: str, mode: str) -> None:
        self.id = id
        self.mode = mode
        self.closed = False
        self.lives: bool | FreezeError = True
        self.looks = 0

    def alive(self) -> bool:
        self.looks += 1
        if isinstance(self.lives, FreezeError):
            raise self.lives
        return self.lives

    def close(self) -> None:
        self.closed = True


class Setting:
    """Pods, their runtime, their clock, and the freezers that were made for them."""

    def __init__(self) -> None:
        self.runtime = Script()
        self.now = 1000.0
        self.made: list[Stub] = []
        self.pods = Pods(self.runtime, self._choose, SIDECARS, lambda: self.now)

    def _choose(self, id: str, pid: int, mode: str) -> Freezer:
        self.made.append(Stub(id, mode))
        return self.made[-1]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The PIDs that are of their containers still."""
    pids = set(range(100, 110))
    monkeypatch.setattr(places, "holds", lambda pid, _id: pid in pids)
    return pids


@pytest.fixture
def setting(alive: set[int]) -> Setting:
    return Setting()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work(), 10)

    asyncio.run(bounded())


def pod(*names: str, excluded: frozenset[str] = SIDECARS) -> Pod:
    def never(id: str, pid: int, mode: str) -> Freezer:
        raise AssertionError("nothing is frozen here")

    return Pod(UID, "default", "pod-1", [Container(name, name, 1, never) for name in names], excluded)


def chosen(pod: Pod, names: list[str] | None = None) -> list[str]:
    return [container.name for container in pod.chosen(names)]


# Which containers.


def test_all_but_the_excluded_are_frozen() -> None:
    assert chosen(pod("user-container", "queue-proxy", "helper", "istio-proxy", "freeze-proxy")) == [
        "user-container",
        "helper",
    ]
    assert chosen(pod("a", "b", excluded=frozenset({"a"}))) == ["b"]


def test_those_asked_for_are_frozen_even_if_excluded() -> None:
    assert chosen(pod("user-container", "istio-proxy"), ["istio-proxy"]) == ["istio-proxy"]
    assert chosen(pod("a", "b", "c"), ["c", "a", "c"]) == ["c", "a"]


@pytest.mark.parametrize("name", sorted(NEVER_FROZEN))
def test_who_would_ask_for_the_thaw_is_never_frozen(name: str) -> None:
    with pytest.raises(NoContainer, match="never frozen"):
        pod("user-container", name).chosen(["user-container", name])


def test_a_container_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(NoContainer, match=r"default/pod-1 has no running container 'x', only a, b"):
        pod("b", "a").chosen(["a", "x"])
    with pytest.raises(NoContainer, match="no container to freeze, only queue-proxy"):
        pod("queue-proxy").chosen()
    with pytest.raises(NoContainer, match="empty"):
        pod("a").chosen([])


@given(
    st.lists(st.sampled_from(["a", "b", *sorted(NEVER_FROZEN), "istio-proxy"]), unique=True),
    st.none() | st.lists(st.text()),
)
def test_whatever_is_asked_for_only_the_pod_s_own_are_chosen(names: list[str], wanted: list[str] | None) -> None:
    whole = pod(*names)
    try:
        found = chosen(whole, wanted)
    except NoContainer:
        return
    assert found
    assert set(found) <= set(names) - NEVER_FROZEN
    assert set(found) == set(wanted) if wanted is not None else not set(found) & SIDECARS


def test_a_token_s_names_must_be_the_pod_s() -> None:
    whole = pod("a")
    whole.expect("default", "pod-1")
    whole.expect("", "")
    for namespace, name in (("other", "pod-1"), ("default", "pod-2"), ("other", "")):
        with pytest.raises(NoPod, match="default/pod-1"):
            whole.expect(namespace, name)


def test_the_documentation_lists_who_is_left_out() -> None:
    text = (Path(__file__).parents[2] / "docs" / "nodes.md").read_text()
    table = [line for line in text.partition("## Which containers")[2].splitlines() if line.startswith("| `")]
    assert {name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[1])} == SIDECARS | NEVER_FROZEN


# What is remembered.


def test_what_is_known_needs_no_call(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("user-container", "queue-proxy")
        assert setting.pods.known(UID) is None
        found = await setting.pods.find(UID)
        assert setting.pods.known(UID) is found
        assert list(found.containers) == ["user-container", "queue-proxy"]
        assert setting.runtime.calls == 1
        assert len(setting.pods) == 1

    run(work)


def test_those_who_ask_at_the_same_time_share_one_look_up(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("user-container")
        setting.runtime.held = asyncio.Event()
        asking = [asyncio.create_task(setting.pods.find(UID)) for _ in range(20)]
        await asyncio.sleep(0)
        asking.pop().cancel()
        asking.pop(0).cancel()
        await asyncio.sleep(0)
        setting.runtime.held.set()
        found = await asyncio.gather(*asking)
        assert setting.runtime.calls == 1
        assert len(set(map(id, found))) == 1

    run(work)


def test_one_that_everybody_has_left_is_finished_all_the_same(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.pods[UID] = RuntimeAway("It is away.")
        setting.runtime.held = asyncio.Event()
        asking = asyncio.create_task(setting.pods.find(UID))
        await asyncio.sleep(0)
        asking.cancel()
        setting.runtime.held.set()
        await asyncio.gather(asking, return_exceptions=True)
        setting.runtime.has("user-container")
        assert (await setting.pods.find(UID)).containers

    run(work)


def test_no_more_than_eight_look_ups_go_on_at_a_time(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.held = asyncio.Event()
        uids = [f"{UID}-{number}" for number in range(50)]
        for uid in uids:
            setting.runtime.has("user-container", uid=uid)
        asking = [asyncio.create_task(setting.pods.find(uid)) for uid in uids]
        while setting.runtime.under_way < 8:
            await asyncio.sleep(0)
        setting.runtime.held.set()
        await asyncio.gather(*asking)
        assert setting.runtime.most_under_way == 8

    run(work)


def test_nobody_waits_for_ever_behind_a_runtime_that_does_not_answer(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods_module, "_MOST_WAITING", 0.05)

    async def work() -> None:
        setting.runtime.held = asyncio.Event()
        first = [asyncio.create_task(setting.pods.find(f"{UID}-{number}")) for number in range(8)]
        while setting.runtime.under_way < 8:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeAway, match="too many wait"):
            await setting.pods.find(UID)
        setting.runtime.held.set()
        await asyncio.gather(*first, return_exceptions=True)
        setting.runtime.has("user-container")
        assert (await setting.pods.find(UID)).containers

    run(work)


def test_a_pod_that_is_not_there_is_not_looked_for_again_at_once(setting: Setting) -> None:
    async def work() -> None:
        for _ in range(100):
            with pytest.raises(NoPod, match="no running pod"):
                await setting.pods.find(UID)
        assert setting.runtime.calls == 1
        setting.runtime.has()
        setting.now += 1.1
        for _ in range(100):
            with pytest.raises(NoPod, match="default/pod-1 has no running container yet"):
                await setting.pods.find(UID)
        assert setting.runtime.calls == 2
        setting.runtime.has("user-container")
        setting.now += 1.1
        assert (await setting.pods.find(UID)).containers

    run(work)


def test_absent_pods_are_remembered_in_bounded_number(setting: Setting) -> None:
    async def work() -> None:
        for number in range(3000):
            with pytest.raises(NoPod):
                await setting.pods.find(f"forged-{number}")
        assert len(setting.pods._absent) <= 1024
        setting.now += 2
        await setting.pods.sweep()
        assert not setting.pods._absent

    run(work)


def test_a_runtime_that_is_away_is_asked_again(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.pods[UID] = RuntimeAway("It is away.")
        with pytest.raises(RuntimeAway):
            await setting.pods.find(UID)
        setting.runtime.has("user-container")
        assert (await setting.pods.find(UID)).containers

    run(work)


def test_one_who_misses_a_container_may_have_it_looked_for_once_a_second(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a")
        found = await setting.pods.find(UID)
        setting.runtime.has("a", "b")
        for _ in range(10):
            assert await setting.pods.renewed(UID) is found
        setting.now += 1.1
        for _ in range(10):
            assert list((await setting.pods.renewed(UID)).containers) == ["a", "b"]
        assert setting.runtime.calls == 2

    run(work)


def test_a_restarted_container_is_found_under_its_new_id_and_the_others_stay_as_they_are(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a:1", "b:2")
        before = await setting.pods.find(UID)
        kept = before.containers["b"].freezer("freeze")
        setting.pods.forget(UID)
        assert setting.pods.known(UID) is None
        setting.runtime.has("a:3", "b:2")
        after = await setting.pods.find(UID)
        assert after.containers["a"].id == "3"
        assert after.containers["b"] is before.containers["b"]
        assert after.containers["b"].freezer("freeze") is kept

    run(work)


def test_a_freezer_is_chosen_once_for_each_mode(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a")
        container = (await setting.pods.find(UID)).containers["a"]
        freeze, throttle = container.freezer("freeze"), container.freezer("throttle")
        assert container.freezer("freeze") is freeze
        assert container.freezer("throttle") is throttle
        assert [stub.mode for stub in setting.made] == ["freeze", "throttle"]

    run(work)


# Sweeping.


def test_what_lives_is_kept(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a", "b")
        found = await setting.pods.find(UID)
        found.containers["a"].freezer("freeze")
        for _ in range(5):
            setting.now += 100
            await setting.pods.sweep()
        assert setting.pods.known(UID) is found
        assert not setting.made[0].closed

    run(work)


def test_each_container_is_looked_at_once_a_sweep_whether_its_pod_is_known_or_not(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a", "b")
        found = await setting.pods.find(UID)
        for container in found.containers.values():
            container.freezer("freeze")
        for looks, known in enumerate((True, False, True), 1):
            if not known:
                setting.pods.forget(UID)
            elif setting.pods.known(UID) is None:
                await setting.pods.find(UID)
            await setting.pods.sweep()
            assert [stub.looks for stub in setting.made] == [looks, looks]

    run(work)


def test_it_is_told_of_each_pod_that_is_forgotten_or_looked_up_anew(setting: Setting, alive: set[int]) -> None:
    async def work() -> None:
        told: list[tuple[str, bool]] = []
        setting.pods.forgotten = lambda uid: told.append((uid, setting.pods.known(uid) is None))
        setting.runtime.has("a")
        await setting.pods.find(UID)
        assert not told
        await setting.pods.find(UID)
        assert told == [(UID, True)]
        alive.remove(100)
        await setting.pods.sweep()
        setting.pods.forget(UID)  # as it is already
        assert told == [(UID, True)] * 2
        alive.add(100)
        await setting.pods.find(UID)
        del setting.runtime.pods[UID]
        with pytest.raises(NoPod):
            await setting.pods.find(UID)
        assert told == [(UID, True)] * 3

    run(work)


def test_the_cgroups_beside_a_container_are_counted() -> None:
    """Whatever becomes of the pod's own, and nothing stays open."""
    need_freezer("cgroup2")
    opened = len(os.listdir("/proc/self/fd"))
    pod = cgroup.create("cgroup2", f"freeze-proxy-test-{os.getpid()}-pod")
    Path(pod, "one").mkdir()
    neighbourhood = places.Neighbourhood(pod)
    assert not neighbourhood.changed()
    Path(pod, "two").mkdir()
    assert neighbourhood.changed()
    Path(pod, "two").rmdir()
    assert not neighbourhood.changed()
    assert cgroup.remove(pod)
    assert neighbourhood.changed()
    neighbourhood.close()
    neighbourhood.close()
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_pod_with_a_dead_container_is_forgotten_and_only_that_one_is_given_back(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a", "b")
        found = await setting.pods.find(UID)
        for container in found.containers.values():
            container.freezer("freeze")
        setting.made[0].lives = Gone("It is gone.")
        await setting.pods.sweep()
        assert setting.pods.known(UID) is None
        assert [stub.closed for stub in setting.made] == [True, False]
        setting.runtime.has("b")
        assert (await setting.pods.find(UID)).containers["b"] is found.containers["b"]

    run(work)


def test_a_container_that_was_never_frozen_is_known_by_its_process(setting: Setting, alive: set[int]) -> None:
    async def work() -> None:
        setting.runtime.has("a")
        await setting.pods.find(UID)
        await setting.pods.sweep()
        assert setting.pods.known(UID) is not None
        alive.remove(100)
        await setting.pods.sweep()
        assert setting.pods.known(UID) is None

    run(work)


def test_a_freezer_that_cannot_be_read_is_no_proof_of_death(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a")
        (await setting.pods.find(UID)).containers["a"].freezer("freeze")
        setting.made[0].lives = FreezeError("It cannot be read.")
        await setting.pods.sweep()
        assert not setting.made[0].closed

    run(work)


def test_one_that_is_no_longer_listed_is_kept_while_it_lives(setting: Setting) -> None:
    """It may be frozen: whoever froze it must be able to thaw it."""

    async def work() -> None:
        setting.runtime.has("a")
        (await setting.pods.find(UID)).containers["a"].freezer("freeze")
        setting.runtime.has("b")
        setting.pods.forget(UID)
        await setting.pods.find(UID)
        await setting.pods.sweep()
        assert not setting.made[0].closed
        setting.made[0].lives = False
        await setting.pods.sweep()
        assert setting.made[0].closed

    run(work)


def test_a_pod_that_was_still_starting_is_looked_at_again(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a", settled=False)
        await setting.pods.find(UID)
        await setting.pods.sweep()
        assert setting.pods.known(UID) is not None
        setting.now += 1.1
        await setting.pods.sweep()
        assert setting.pods.known(UID) is None

    run(work)


def test_at_the_end_everything_is_given_back(setting: Setting) -> None:
    async def work() -> None:
        setting.runtime.has("a", "b")
        for container in (await setting.pods.find(UID)).containers.values():
            container.freezer("freeze")
        setting.runtime.held = asyncio.Event()
        asking = asyncio.create_task(setting.pods.find("another"))
        await asyncio.sleep(0)
        setting.pods.close()
        assert all(stub.closed for stub in setting.made)
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(work)
