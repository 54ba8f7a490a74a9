"""What is remembered of tokens, and who may ask for a review; time and reviewer are the tests' own."""

import asyncio
import base64
import itertools
import json
import math
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.control.messages import MOST_TOKEN
from freeze_proxy.daemon import identity
from freeze_proxy.daemon.identity import (
    ACCEPTED,
    AT_ONCE_FROM_ONE,
    MOST_FROM_ONE,
    MOST_REVIEWS,
    MOST_WAITING,
    REFUSAL_LASTS,
    REFUSED,
    REST,
    UNDATED_LASTS,
    UNREACHABLE,
    Caller,
    Identities,
    Observer,
    Refused,
    claimed_pod,
    expiry,
    without_token,
)
from tests.support.examples import examples

AUDIENCE = "freeze"
TOKEN = "aaaa.bbbb.cccc"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(10):
            return await work

    return asyncio.run(bounded())


def caller(expires: float = 1000.0, uid: str = "uid-1", node: str | None = "here") -> Caller:
    return Caller(uid, "default", "pod-1", node, expires)


class Desk:
    """A reviewer who answers as told, counts, and can be made to wait."""

    def __init__(self, answer: Caller | Exception | None = None) -> None:
        self.answer: Caller | Exception = answer or caller()
        self.asked: list[tuple[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.door: asyncio.Event | None = None
        self.closed = False

    async def review(self, token: str, audience: str) -> Caller:
        self.asked.append((token, audience))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.door is not None:
                await self.door.wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Notes(Observer):
    def __init__(self) -> None:
        self.hits = 0
        self.reviews: list[str] = []

    def remembered(self) -> None:
        self.hits += 1

    def reviewed(self, outcome: str, seconds: float) -> None:
        assert 0 <= seconds < 10
        self.reviews.append(outcome)


# Remembering.


def test_a_token_is_reviewed_once_until_it_expires() -> None:
    async def story() -> None:
        desk, clock, notes = Desk(caller(expires=700)), Clock(100), Notes()
        identities = Identities(desk, "here", notes, clock)
        assert identities.known(TOKEN, AUDIENCE) is None
        assert (await identities.identify(TOKEN, AUDIENCE)).uid == "uid-1"
        clock.now = 699.9
        assert identities.known(TOKEN, AUDIENCE) == desk.answer
        assert await identities.identify(TOKEN, AUDIENCE) == desk.answer
        assert len(desk.asked) == 1
        clock.now = 700
        assert identities.known(TOKEN, AUDIENCE) is None
        assert notes.hits == 2
        assert notes.reviews == [ACCEPTED]

    run(story())


def test_who_was_known_is_so_until_the_token_expires() -> None:
    clock, notes = Clock(100), Notes()
    identities = Identities(Desk(), None, notes, clock)
    assert identities.still(caller(expires=101))
    clock.now = 101
    assert not identities.still(caller(expires=101))
    assert notes.hits == 1


def test_a_token_is_known_for_the_audience_that_was_reviewed_alone() -> None:
    async def story() -> None:
        desk = Desk()
        identities = Identities(desk, None, clock=Clock())
        await identities.identify(TOKEN, AUDIENCE)
        assert identities.known(TOKEN, "another") is None
        await identities.identify(TOKEN, "another")
        assert desk.asked == [(TOKEN, AUDIENCE), (TOKEN, "another")]

    run(story())


def test_what_the_reviewer_accepts_though_our_clock_says_expired_is_served_and_not_remembered() -> None:
    async def story() -> None:
        identities = Identities(Desk(caller(expires=99)), None, clock=Clock(100))
        assert (await identities.identify(TOKEN, AUDIENCE)).uid == "uid-1"
        assert identities.known(TOKEN, AUDIENCE) is None

    run(story())


def test_a_refusal_is_remembered_for_a_moment() -> None:
    async def story() -> None:
        desk, clock, notes = Desk(Refused("No.")), Clock(), Notes()
        identities = Identities(desk, None, notes, clock)
        for _ in range(3):
            with pytest.raises(Refused, match=r"^No\.$"):
                await identities.identify(TOKEN, AUDIENCE)
        with pytest.raises(Refused, match=r"^No\.$"):
            identities.known(TOKEN, AUDIENCE)
        assert len(desk.asked) == 1
        clock.now += REFUSAL_LASTS
        desk.answer = caller()
        assert identities.known(TOKEN, AUDIENCE) is None
        assert await identities.identify(TOKEN, AUDIENCE) == desk.answer
        assert notes.reviews == [REFUSED, ACCEPTED]

    run(story())


def test_a_clock_set_back_does_not_make_a_refusal_last() -> None:
    async def story() -> None:
        desk, clock = Desk(Refused("No.")), Clock(1_000_000)
        identities = Identities(desk, None, clock=clock)
        with pytest.raises(Refused):
            await identities.identify(TOKEN, AUDIENCE)
        clock.now = 100
        assert identities.known(TOKEN, AUDIENCE) is None

    run(story())


def test_that_nobody_could_be_asked_is_not_remembered() -> None:
    async def story() -> None:
        desk, notes = Desk(Unreachable("Away.")), Notes()
        identities = Identities(desk, None, notes, Clock())
        with pytest.raises(Unreachable, match="Away"):
            await identities.identify(TOKEN, AUDIENCE)
        desk.answer = caller()
        assert await identities.identify(TOKEN, AUDIENCE) == desk.answer
        assert notes.reviews == [UNREACHABLE, ACCEPTED]

    run(story())


def test_known_tokens_go_on_while_the_reviewer_is_away() -> None:
    async def story() -> None:
        desk = Desk()
        identities = Identities(desk, None, clock=Clock())
        await identities.identify(TOKEN, AUDIENCE)
        desk.answer = Unreachable("Away.")
        assert await identities.identify(TOKEN, AUDIENCE) == caller()
        with pytest.raises(Unreachable):
            await identities.identify("x.y.z", AUDIENCE)

    run(story())


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MOST_CALLERS", 8)
    monkeypatch.setattr(identity, "MOST_REFUSALS", 4)

    async def story() -> None:
        desk = Desk()
        identities = Identities(desk, None, clock=Clock())
        for number in range(20):
            await identities.identify(f"a.b.{number}", AUDIENCE)
        known = [number for number in range(20) if identities.known(f"a.b.{number}", AUDIENCE)]
        assert known == list(range(12, 20))
        desk.answer = Refused("No.")
        for number in range(20, 40):
            with pytest.raises(Refused):
                await identities.identify(f"a.b.{number}", AUDIENCE)
        assert len(identities._refusals) == 4
        assert len(identities._callers) == 8, "refusals push no caller out"

    run(story())


def test_what_has_expired_is_swept_out() -> None:
    async def story() -> None:
        clock = Clock()
        desk = Desk(caller(expires=150))
        identities = Identities(desk, None, clock=clock)
        for number in range(100):
            await identities.identify(f"a.b.{number}", AUDIENCE)
        clock.now = 200
        desk.answer = caller(expires=1000)
        await identities.identify(TOKEN, AUDIENCE)
        assert len(identities._callers) == 1

    run(story())


def test_tokens_are_kept_as_hashes_only() -> None:
    async def story() -> None:
        identities = Identities(Desk(), None, clock=Clock())
        token = "head.payload.s3cr3t-signature"
        await identities.identify(token, AUDIENCE)
        assert "s3cr3t" not in repr(vars(identities._callers)) + repr(vars(identities))

    run(story())


# One review for all.


def test_those_who_ask_for_the_same_at_once_share_one_review() -> None:
    async def story() -> None:
        desk, notes = Desk(), Notes()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, notes, Clock())
        waiting = [asyncio.create_task(identities.identify(TOKEN, AUDIENCE)) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        desk.door.set()
        assert await asyncio.gather(*waiting) == [caller()] * 50
        assert len(desk.asked) == 1
        assert notes.reviews == [ACCEPTED]

    run(story())


def test_all_of_them_get_the_refusal() -> None:
    async def story() -> None:
        desk = Desk(Refused("No."))
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        waiting = [asyncio.create_task(identities.identify(TOKEN, AUDIENCE)) for _ in range(5)]
        await asyncio.sleep(0)
        desk.door.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["No."] * 5

    run(story())


@pytest.mark.parametrize("leaving", [[0], [1, 2], [0, 1, 2, 3]])
def test_who_stops_waiting_does_not_stop_the_review(leaving: list[int]) -> None:
    async def story() -> None:
        desk = Desk()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        waiting = [asyncio.create_task(identities.identify(TOKEN, AUDIENCE)) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in leaving:
            waiting[number].cancel()
        await asyncio.sleep(0)
        desk.door.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) == (number in leaving)
        assert await identities.identify(TOKEN, AUDIENCE) == caller()
        assert len(desk.asked) == 1

    run(story())


# Limits.


def test_only_so_many_reviews_at_a_time_and_only_so_many_wait() -> None:
    async def story() -> None:
        desk = Desk()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        most = MOST_REVIEWS + MOST_WAITING
        waiting = [
            asyncio.create_task(identities.identify(f"a.b.{number}", AUDIENCE, f"10.0.0.{number % 64}"))
            for number in range(most)
        ]
        await asyncio.sleep(0.01)
        with pytest.raises(Unreachable, match="Too many"):
            await identities.identify("one.too.many", AUDIENCE)
        joining = asyncio.create_task(identities.identify("a.b.0", AUDIENCE))  # needs no review of its own
        await asyncio.sleep(0)
        desk.door.set()
        await asyncio.gather(*waiting, joining)
        assert desk.most_at_once == MOST_REVIEWS
        assert len(desk.asked) == most
        await identities.identify("one.too.many", AUDIENCE)

    run(story())


def test_one_address_has_not_all_the_reviews() -> None:
    async def story() -> None:
        desk = Desk()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        greedy = [
            asyncio.create_task(identities.identify(f"a.b.{number}", AUDIENCE, "10.0.0.1"))
            for number in range(MOST_FROM_ONE)
        ]
        await asyncio.sleep(0.01)
        assert desk.at_once == AT_ONCE_FROM_ONE
        with pytest.raises(Unreachable, match="from this address"):
            await identities.identify("one.too.many", AUDIENCE, "10.0.0.1")
        other = asyncio.create_task(identities.identify("one.more.pod", AUDIENCE, "10.0.0.2"))
        await asyncio.sleep(0.01)
        assert ("one.more.pod", AUDIENCE) in desk.asked
        desk.door.set()
        await asyncio.gather(other, *greedy)
        await identities.identify("one.too.many", AUDIENCE, "10.0.0.1")
        await asyncio.sleep(0.01)
        assert not identities._origins

    run(story())


@pytest.mark.parametrize("at_a_time", [1, 50])
def test_forged_tokens_cost_few_reviews(at_a_time: int) -> None:
    """And nobody at another address waits for them, nor who has been accepted."""

    async def story() -> None:
        desk = Desk(Refused("No."))
        identities = Identities(desk, None, clock=Clock())
        end = asyncio.get_running_loop().time() + 5.5 * REST
        numbers = itertools.count()

        async def forge() -> None:
            while asyncio.get_running_loop().time() < end:
                with pytest.raises(Refused):
                    await identities.identify(f"a.b.{next(numbers)}", AUDIENCE, "10.0.0.1")

        forging = [asyncio.create_task(forge()) for _ in range(at_a_time)]
        await asyncio.sleep(2 * REST)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Refused):
            await identities.identify("a.b.other", AUDIENCE, "10.0.0.2")
        assert asyncio.get_running_loop().time() - began < 0.8 * REST
        await asyncio.sleep(end - asyncio.get_running_loop().time())
        assert 3 <= len(desk.asked) <= AT_ONCE_FROM_ONE * 6 + 1
        for task in forging:
            task.cancel()
        await asyncio.gather(*forging, return_exceptions=True)
        await identities.close()

    run(story())


def test_an_address_whose_turn_never_comes_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PATIENCE", 0.05)

    async def story() -> None:
        desk = Desk()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        waiting = [identities.identify(f"a.b.{number}", AUDIENCE, "10.0.0.1") for number in range(5)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(answer, Unreachable) for answer in answers)
        await asyncio.sleep(0.01)
        assert not identities._origins

    run(story())


def test_a_reviewer_that_never_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PATIENCE", 0.05)

    async def story() -> None:
        desk, notes = Desk(), Notes()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, notes, Clock())
        with pytest.raises(Unreachable, match="not reviewed within"):
            await identities.identify(TOKEN, AUDIENCE)
        assert notes.reviews == [UNREACHABLE]
        assert desk.at_once == 0

    run(story())


def test_an_error_nobody_thought_of_is_unreachable_and_does_not_quote_the_token() -> None:
    async def story() -> None:
        identities = Identities(Desk(RuntimeError(f"bad {TOKEN}")), None, clock=Clock())
        with pytest.raises(Unreachable, match="RuntimeError") as error:
            await identities.identify(TOKEN, AUDIENCE)
        assert TOKEN not in str(error.value)

    run(story())


def test_closing_ends_reviews_and_tells_who_waits() -> None:
    async def story() -> None:
        desk = Desk()
        desk.door = asyncio.Event()
        identities = Identities(desk, None, clock=Clock())
        waiting = asyncio.create_task(identities.identify(TOKEN, AUDIENCE))
        await asyncio.sleep(0.01)
        await identities.close()
        with pytest.raises(Unreachable, match="ending"):
            await waiting
        assert desk.closed

    run(story())


# Who is admitted.


@pytest.mark.parametrize(
    ("ours", "theirs", "admitted"),
    [
        ("here", "here", True),
        ("here", "there", False),
        ("here", None, True),
        (None, "there", True),
        (None, None, True),
        ("here", "HERE", False),
        ("here", "", False),
    ],
)
def test_a_pod_of_another_node_is_refused(ours: str | None, theirs: str | None, admitted: bool) -> None:
    identities = Identities(Desk(caller(node=theirs)), ours, clock=Clock())
    if admitted:
        assert run(identities.identify(TOKEN, AUDIENCE)).node == theirs
    else:
        with pytest.raises(Refused, match=r"on node .*, and this is node here; ask the daemon of the pod's own node"):
            run(identities.identify(TOKEN, AUDIENCE))


def test_a_token_without_a_pod_is_refused_with_what_to_do() -> None:
    identities = Identities(Desk(caller(uid="")), None, clock=Clock())
    with pytest.raises(Refused, match="not bound to a pod; mount one as a projected volume"):
        run(identities.identify(TOKEN, AUDIENCE))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.",
        ".b.c",
        "a..c",
        "a.b.c.d",
        "a.b.c=",
        "a.b.c\n",
        "a b.c.d",
        "ä.b.c",
        "a.b.\udc80",
        "a.b.c\0",
        "a" * MOST_TOKEN + ".b.c",
        "Bearer a.b.c",
    ],
)
def test_what_has_not_the_shape_of_a_token_is_refused_without_a_call(token: str) -> None:
    desk = Desk()
    with pytest.raises(Refused):
        run(Identities(desk, None, clock=Clock()).identify(token, AUDIENCE))
    assert desk.asked == []


@given(
    st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1")), st.from_regex(r"[.a-zA-Z0-9_=-]{0,40}"))
)
@examples(500)
def test_any_text_is_refused_or_reviewed_and_raises_nothing_else(token: str) -> None:
    desk = Desk(Refused("No."))
    identities = Identities(desk, "here", clock=Clock())
    for _ in range(2):
        with pytest.raises(Refused):
            run(identities.identify(token, AUDIENCE))
    parts = token.split(".")
    shaped = len(parts) == 3 and all(
        part and set(part) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") for part in parts
    )
    assert len(desk.asked) == shaped


class Remembering(RuleBasedStateMachine):
    """``Identities`` against a plain list of what was accepted and refused when."""

    names = st.integers(0, 5)

    @initialize(most=st.integers(1, 4))
    def begin(self, most: int) -> None:
        self.clock, self.desk = Clock(1000.0), Desk()
        self.identities = Identities(self.desk, None, clock=self.clock)
        self.identities._callers._most = most
        self.most = most
        self.accepted: dict[int, float] = {}  # in the order in which they were remembered
        self.refused: dict[int, float] = {}

    @rule(seconds=st.one_of(st.floats(0, 3), st.floats(0, 1000)))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(name=names, lifetime=st.floats(-5, 1000), good=st.booleans())
    def ask(self, name: int, lifetime: float, good: bool) -> None:
        now = self.clock.now
        self.desk.answer = caller(expires=now + lifetime) if good else Refused("No.")
        calls = len(self.desk.asked)
        try:
            # Each from an address of its own: that one has to rest is not the matter here, and would outlast its loop.
            run(self.identities.identify(f"a.b.{name}", AUDIENCE, f"address {calls} at {now}"))
            served = True
        except Refused:
            served = False
        reviewed = len(self.desk.asked) > calls
        if name in self.alive(self.accepted):
            assert served
            assert not reviewed
        elif name in self.alive(self.refused):
            assert not served
            assert not reviewed
        else:
            assert reviewed
            assert served == good
            if good and now + lifetime > now:
                self.accepted.pop(name, None)
                if len(self.accepted) == self.most:
                    del self.accepted[next(iter(self.accepted))]
                self.accepted[name] = now + lifetime
            elif not good:
                self.refused[name] = now + REFUSAL_LASTS

    def alive(self, kept: dict[int, float]) -> list[int]:
        return [name for name, until in kept.items() if until > self.clock.now]

    @invariant()
    def knows_no_more_than_it_may(self) -> None:
        known = set()
        for name in range(6):
            try:
                if self.identities.known(f"a.b.{name}", AUDIENCE):
                    known.add(name)
            except Refused:
                assert self.refused[name] > self.clock.now
        self.accepted = {name: self.accepted[name] for name in self.alive(self.accepted)}  # which looking has swept out
        assert known == set(self.accepted)
        assert len(self.identities._callers) <= self.most


TestRemembering = Remembering.TestCase
TestRemembering.settings = examples(60, steps=30)


# What a token says of its expiry, and what others say of a token.


def shaped(payload: bytes) -> str:
    return f"e30.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}.x"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"exp": 1234}', 1234.0),
        (b'{"exp": 1234.5}', 1234.5),
        (b"{}", 100 + UNDATED_LASTS),
        (b'{"exp": null}', 100 + UNDATED_LASTS),
        (b'{"exp": "soon"}', 100 + UNDATED_LASTS),
        (b'{"exp": NaN}', 100 + UNDATED_LASTS),
        (b'{"exp": Infinity}', 100 + UNDATED_LASTS),
        (b'{"exp": 1e999}', 100 + UNDATED_LASTS),
        (b'{"exp": 1' + b"0" * 400 + b"}", 100 + UNDATED_LASTS),
        (b'{"exp": ' + b"1" * 5000 + b"}", 100 + UNDATED_LASTS),
        (b'{"exp": [1]}', 100 + UNDATED_LASTS),
        (b"[]", 100 + UNDATED_LASTS),
        (b"3", 100 + UNDATED_LASTS),
        (b"[" * 6000, 100 + UNDATED_LASTS),
        (b"\xff", 100 + UNDATED_LASTS),
    ],
)
def test_expiry(payload: bytes, expected: float) -> None:
    assert expiry(shaped(payload), now=100) == expected


@given(
    st.one_of(
        st.text(),
        st.binary().map(shaped),
        st.recursive(st.none() | st.floats() | st.text(), st.lists).map(
            lambda value: shaped(json.dumps({"exp": value}).encode())
        ),
    )
)
@examples(300)
def test_expiry_of_anything_is_a_number(token: str) -> None:
    assert math.isfinite(expiry(token, now=100))
    assert claimed_pod(token) == ""


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"kubernetes.io": {"pod": {"uid": "u-1"}}}', "u-1"),
        (b'{"kubernetes.io": {"pod": {"uid": 1}}}', ""),
        (b'{"kubernetes.io": {"pod": ["uid"]}}', ""),
        (b'{"kubernetes.io": {"pod": null}}', ""),
        (b'{"kubernetes.io": {}}', ""),
        (b'{"kubernetes.io": "pod"}', ""),
        (b"{}", ""),
        (b"null", ""),
        (b"[" * 6000, ""),
        (b"\xff", ""),
    ],
)
def test_claimed_pod(payload: bytes, expected: str) -> None:
    assert claimed_pod(shaped(payload)) == expected
    assert claimed_pod("no token") == ""


def test_a_foreign_text_never_quotes_the_token() -> None:
    token = "aaaaaaaa.bbbbbbbb.cccccccc"
    for text in (token, f"bad signature cccccccc of {token}", "payload bbbbbbbb"):
        for part in token.split("."):
            assert part not in without_token(text, token)
    assert without_token("[invalid bearer token,\n  expired].", token) == "[invalid bearer token, expired]"
    assert len(without_token("x" * 10_000, token)) <= 200


# What it costs.


def test_known_takes_microseconds() -> None:
    async def story() -> float:
        identities = Identities(Desk(caller(expires=time.time() + 600)), "here")
        token = "e" * 100 + "." + "p" * 700 + "." + "s" * 342
        await identities.identify(token, AUDIENCE)
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                identities.known(token, AUDIENCE)
            best = min(best, (time.perf_counter() - began) / 200)
        return best

    assert run(story()) < 50e-6
