"""The rule by which nothing is in flight, against a model of queue-proxy that may be held up anywhere."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeze_proxy.daemon.ambient.idle import Proof, Report
from freeze_proxy.daemon.ambient.statistics import TABLE, read
from freeze_proxy.protobuf import classes
from tests.support.queue_proxies import Stats

BUSY, QUIET, NONE = Report(0.5, 0, 7), Report(0, 0, 8), Report(0, 0, 0)


def told(*steps: tuple[int, Report]) -> Proof:
    proof = Proof()
    for packets, report in steps:
        proof.asking(packets)
        proof.heard(report)
    return proof


def at(uptime: float, concurrency: float = 0, requests: float = 0) -> Report:
    return Report(concurrency, requests, uptime)


@pytest.mark.parametrize(
    ("steps", "packets", "holds"),
    [
        ([(5, at(1)), (5, at(2)), (5, at(3))], 5, True),
        ([(5, at(1, 0.5, 1)), (5, at(2, 0.1)), (5, at(3))], 5, True),
        ([(5, at(1)), (5, at(2))], 5, False),
        ([(5, at(1)), (5, at(1)), (5, at(1)), (5, at(1))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(3))], 6, False),
        ([(5, at(1)), (6, at(2)), (6, at(3))], 6, False),
        ([(5, at(1)), (6, at(2)), (6, at(3)), (6, at(4))], 6, True),
        ([(5, at(1)), (5, at(2)), (5, at(3, 1.0))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(3, 0, 1))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(3, 1.0)), (5, at(4))], 5, True),
        ([(5, at(0)), (5, at(0)), (5, at(0)), (5, at(0))], 5, False),
        ([(5, at(8)), (5, at(9)), (5, at(1))], 5, False),
        ([(5, at(8)), (5, at(9)), (5, at(1)), (5, at(2)), (5, at(3))], 5, True),
        ([(5, at(1)), (5, at(2)), (5, at(float("nan")))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(float("inf")))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(3, float("nan")))], 5, False),
        ([(5, at(1)), (5, at(2)), (5, at(3, -1.0))], 5, False),
        ([], 0, False),
    ],
)
def test_the_rule(steps: list[tuple[int, Report]], packets: int, holds: bool) -> None:
    assert told(*steps).holds(packets) is holds


def test_an_answer_to_a_question_from_before_is_not_heard() -> None:
    proof = told((5, at(1)), (5, at(2)))
    proof.asking(5)
    proof.again()
    proof.heard(at(3))
    assert not proof.holds(5)
    for uptime in (4, 5):
        proof.asking(5)
        proof.heard(at(uptime))
        assert not proof.holds(5)


def test_it_is_read_as_queue_proxy_writes_it() -> None:
    stat: Any = classes("freeze_proxy.test_stat", TABLE)["Stat"]
    # pod_name (1) and the fields between are passed over.
    assert read(b"\x0a\x03pod" + stat(average_concurrent_requests=1.5, process_uptime=3).SerializeToString()) == (
        Report(1.5, 0, 3)
    )
    assert read(b"") == NONE
    with pytest.raises(ValueError, match="no statistics"):
        read(b"<html>")


class World:
    """queue-proxy, a server and one who asks, each of whose steps comes whenever it is drawn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stats = Stats(0.0)
        self.packets = 0
        self.proof = Proof()
        self.waiting: list[int] = []  # requests that have begun in queue-proxy and not yet reached the server
        self.open = 0  # that have
        self.made: tuple[float, float] | None = None  # a report that is not published yet
        self.measured: float | None = None
        self.asked: list[str] = []

    def nothing_in_flight(self) -> bool:
        return not self.open

    # The steps of a request.

    def begin(self) -> None:
        self.stats.began(self.now)
        self.waiting.append(0)

    def reach(self) -> None:
        if self.waiting:
            self.waiting.pop()
            self.packets += 1
            self.open += 1

    def finish(self) -> None:
        if self.open:
            self.open -= 1
            self.stats.ended(self.now)

    # The steps of the goroutine that reports; in order, each after any delay.

    def report(self) -> None:
        if self.made is None:
            self.made = self.stats.report(self.now)
        elif self.measured is None:
            self.measured = self.now
        else:
            self.stats.publish(self.made, self.measured)
            self.made = self.measured = None

    # The steps of the one who asks.

    def ask(self) -> None:
        if not self.asked:
            self.proof.asking(self.packets)
            self.asked.append("sent")

    def answer(self) -> None:
        if self.asked == ["sent"]:
            self.answered = Report(*self.stats.published)
            self.asked.append("answered")

    def hear(self) -> None:
        if len(self.asked) == 2:
            self.asked.clear()
            self.proof.heard(self.answered)

    def probe(self) -> None:
        self.packets += 1


def whole_report(world: World) -> None:
    """What is left of it."""
    world.report()
    while world.made is not None:
        world.report()


def whole_question(world: World) -> None:
    """Likewise."""
    world.ask()
    world.answer()
    world.hear()


STEPS: list[Callable[[World], None]] = [
    *(World.begin, World.reach, World.finish, World.report, World.ask, World.answer, World.hear, World.probe),
    *(whole_report, whole_question) * 3,
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from([0.001, 0.5, 1.0])), max_size=60))
def test_it_never_holds_while_a_request_is_with_the_server(steps: list[tuple[Callable[[World], None], float]]) -> None:
    world = World()
    for step, pause in steps:
        world.now += pause
        step(world)
        if world.proof.holds(world.packets):
            assert world.nothing_in_flight()


def test_why_two_reports_are_too_few() -> None:
    """A report is made, and published late: a request has begun and reached the server in between, and was counted."""
    world = World()
    world.now = 1.0
    whole_report(world)
    world.now = 2.0
    world.report()  # clean
    world.begin()
    world.reach()
    whole_question(world)  # the count, with the request's packet; the answer is the report before
    whole_report(world)
    for _ in range(3):
        whole_question(world)  # the clean one
        assert not world.proof.holds(world.packets)
    world.now += 1.0
    whole_report(world)
    whole_question(world)
    assert not world.proof.holds(world.packets)


def rounds(world: World, count: int) -> None:
    """Reports and questions as they come where nothing is slow: two questions a report."""
    for _ in range(count):
        for _ in range(3):
            world.report()
        for _ in range(2):
            world.now += 0.5
            world.ask()
            world.answer()
            world.hear()


@given(st.integers(0, 40))
def test_it_holds_three_seconds_after_the_last_request(seconds: int) -> None:
    world = World()
    world.begin()
    world.reach()
    rounds(world, seconds)
    assert not world.proof.holds(world.packets)
    world.finish()
    rounds(world, 4)
    assert world.proof.holds(world.packets)


def test_a_websocket_that_is_silent_is_in_flight() -> None:
    world = World()
    world.begin()
    world.reach()
    rounds(world, 1000)
    assert not world.proof.holds(world.packets)
