"""What sidecars say they have counted: believed only as numbers, under the names that the runtime knows."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from freeze_proxy.control.messages import COUNTS, SECONDS, WAIT_BOUNDS, WAITS
from freeze_proxy.daemon import sidecars
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.daemon.sidecars import Full, Numbers, Sidecars
from freeze_proxy.gate import Gate, Settings
from freeze_proxy.keeper import Driver, Keeper
from freeze_proxy.loop import Loop
from freeze_proxy.sidecar.numbers import Numbers as Counted

ZERO: dict[str, Any] = dict.fromkeys((*COUNTS, *SECONDS), 0) | {WAITS: [0] * (len(WAIT_BOUNDS) + 1)}


def said(**members: Any) -> bytes:
    return json.dumps(ZERO | members).encode()


class Present(Container):
    there = True

    def alive(self) -> bool:
        return self.there


def pod(name: str = "pod-1", revision: str = "app-00001") -> Pod:
    def never(*_: object) -> Any:
        raise AssertionError

    return Pod(f"uid of {name}", "default", name, [Present("id", "app", 1, never)], revision=revision)


class Known(dict[str, Pod]):
    def known(self, uid: str) -> Pod | None:
        return self.get(uid)


@pytest.fixture
def known() -> Known:
    return Known()


def kept(known: Known) -> Sidecars:
    return Sidecars(known)  # type: ignore[arg-type]


def samples(some: Sidecars) -> dict[tuple[str, str], float]:
    """Value by metric and pod, of what has no other labels."""
    text = asyncio.run(some.text()).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a metric's lines stand together"
    return {
        (sample.name, sample.labels["pod"]): sample.value
        for family in families
        for sample in family.samples
        if set(sample.labels) == {"namespace", "pod", "revision"}
    }


def test_what_a_sidecar_says_is_what_the_daemon_reads() -> None:
    loop = Loop()
    counted = Counted(loop.now)
    counted.keeper = Keeper(loop, Gate(Settings()), Driver(), counted)
    counted.keeper.requests = 7
    counted.frozen(1.0, 0.001)
    counted.thawed(3.5, 0.0004)
    counted.failed("freeze", "")
    counted.refused(2)
    read = Numbers(counted.as_json())
    assert read.counts == {
        "requests": 7,
        "freezes": 1,
        "thaws": 1,
        "failed_freezes": 1,
        "failed_thaws": 0,
        "refused": 2,
    }
    assert read.seconds["frozen_seconds"] == 2.5
    assert read.seconds["waited_seconds"] == 0.0004
    assert read.seconds["started"] == pytest.approx(counted.started, abs=0.01)
    assert (read.waits[1], sum(read.waits)) == (1, 1)
    loop.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*COUNTS, *SECONDS, WAITS]), json_values, max_size=3))
def test_anything_else_is_refused_or_a_number_that_can_be_written(members: dict[str, Any]) -> None:
    try:
        read = Numbers(said(**members))
    except ValueError:
        return
    for value in (*read.counts.values(), *read.seconds.values(), *read.waits):
        assert 0 <= value < 2**53


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 16000,
        said(requests=-1),
        said(requests=True),
        said(requests=1.5),
        said(requests=2**60),
        said(started=float("nan")),
        said(started=float("inf")),
        said(waits=[0]),
        b'{"requests": ' + b"9" * 15000 + b"}",
    ],
)
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        Numbers(body)


def test_each_pod_has_the_last_that_it_said_under_its_own_name(known: Known) -> None:
    some = kept(known)
    for each in (pod(), pod("pod-2")):
        known[each.uid] = each
    one, two = object(), object()
    some.heard("uid of pod-1", one, Numbers(said(requests=3)))
    some.heard("uid of pod-2", two, Numbers(said(requests=5)))
    some.heard("uid of pod-1", one, Numbers(said(requests=4, waits=[1] * 15, waited_seconds=1.5)))
    found = samples(some)
    assert found["freeze_proxy_pod_requests_total", "pod-1"] == 4
    assert found["freeze_proxy_pod_requests_total", "pod-2"] == 5
    assert found["freeze_proxy_pod_wait_seconds_count", "pod-1"] == 15
    assert found["freeze_proxy_pod_wait_seconds_sum", "pod-1"] == 1.5
    some.closed(one)
    assert {name for _, name in samples(some)} == {"pod-2"}
    some.closed(two)
    assert samples(some) == {}
    assert len(some) == 0


def test_of_two_connections_the_newest_counts_and_the_end_of_the_other_changes_nothing(known: Known) -> None:
    some = kept(known)
    known["uid of pod-1"] = pod()
    old, new = object(), object()
    some.heard("uid of pod-1", old, Numbers(said(requests=1)))
    some.heard("uid of pod-1", new, Numbers(said(requests=2)))
    some.closed(old)
    assert samples(some)["freeze_proxy_pod_requests_total", "pod-1"] == 2
    some.closed(new)
    assert len(some) == 0


def test_who_is_gone_is_forgotten_whoever_holds_his_connection(known: Known) -> None:
    some = kept(known)
    one = known["uid of pod-1"] = pod()
    some.heard(one.uid, "connection", Numbers(said()))
    del known[one.uid]
    asyncio.run(some.sweep())
    assert len(some) == 1, "it is only not known just now"
    some.heard(one.uid, "connection", Numbers(said(requests=1)))
    one.containers["app"].there = False  # type: ignore[attr-defined]
    asyncio.run(some.sweep())
    assert len(some) == 0


def test_there_is_an_end_to_them(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MOST_PODS", 2)
    some = kept(known)
    for number in range(3):
        known[f"uid of {number}"] = pod(str(number))
    some.heard("uid of 0", 0, Numbers(said()))
    some.heard("uid of 1", 1, Numbers(said()))
    with pytest.raises(Full, match="default/2 are not"):
        some.heard("uid of 2", 2, Numbers(said()))
    some.heard("uid of 1", 1, Numbers(said()))
    some.closed(0)
    some.heard("uid of 2", 2, Numbers(said()))


@given(st.text(), st.text())
def test_no_name_can_break_the_text(name: str, revision: str) -> None:
    # The runtime's names are DNS labels; that they are is not relied on.
    one = SimpleNamespace(uid="uid", namespace="default", name=name, revision=revision, alive=lambda: True)
    everyone = Known()
    everyone["uid"] = one  # type: ignore[assignment]
    some = kept(everyone)
    some.heard("uid", 1, Numbers(said(requests=1)))
    text = asyncio.run(some.text()).decode()
    assert {line.split("{")[0] for line in text.split("\n") if line and not line.startswith("#")} <= {
        line.split()[2] + suffix
        for line in text.split("\n")
        if line.startswith("# TYPE")
        for suffix in ("", "_bucket", "_sum", "_count")
    }
