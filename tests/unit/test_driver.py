"""The driver for freezers that are not quick: the loop never waits for it, and the newest order wins."""

import threading
import time
from collections.abc import Iterator

import pytest

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.gate import Gate, Settings
from freeze_proxy.keeper import Keeper, Witness
from freeze_proxy.local.driver import LocalDriver, ThreadDriver, driver_for
from freeze_proxy.loop import Loop
from tests.support.wait import until


class Slow(Freezer):
    """Takes its time, and notes what it was asked for; fails as often as it is told to."""

    quick = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.looks = 0
        self.failures = 0
        self.error: Exception = FreezeError("It cannot.")
        self.let = threading.Event()
        self.let.set()
        self.busy = 0

    def _note(self, what: str) -> None:
        self.busy += 1
        assert self.busy == 1, "called twice at once"
        self.calls.append(what)
        assert self.let.wait(10)
        self.busy -= 1
        if self.failures:
            self.failures -= 1
            raise self.error

    def freeze(self) -> bool:
        self._note("freeze")
        return not self.looks

    def frozen(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    def thaw(self) -> None:
        self._note("thaw")


class Answers(Keeper):
    """Notes the answers, and stops the loop when as many have come as were waited for."""

    def __init__(self, loop: Loop, driver: ThreadDriver) -> None:
        super().__init__(loop, Gate(Settings()), driver, Witness())
        self.loop = loop
        self.got: list[tuple[int, str | None]] = []
        self.wanted = 0

    def done(self, ticket: int) -> None:
        self._take(ticket, None)

    def failed(self, ticket: int, reason: str) -> None:
        self._take(ticket, reason)

    def _take(self, ticket: int, reason: str | None) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.got.append((ticket, reason))
        if len(self.got) >= self.wanted:
            self.loop.stop()

    def await_answers(self, count: int) -> list[tuple[int, str | None]]:
        self.wanted = count
        if len(self.got) < count:
            late = self.loop.at(time.monotonic() + 10, self.loop.stop)
            self.loop.run()
            late.cancel()
        assert len(self.got) >= count, f"{self.got} only"
        return self.got


class Stage:
    def __init__(self) -> None:
        self.loop = Loop()
        self.freezer = Slow()
        self.driver = ThreadDriver(self.loop, self.freezer)
        self.answers = Answers(self.loop, self.driver)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.freezer.let.set()
    made.driver.close()
    made.loop.close()


def test_orders_are_answered(stage: Stage) -> None:
    stage.driver.freeze(1)
    assert stage.answers.await_answers(1) == [(1, None)]
    stage.driver.thaw(2)
    assert stage.answers.await_answers(2) == [(1, None), (2, None)]
    assert stage.freezer.calls == ["freeze", "thaw"]


def test_an_order_takes_the_loop_no_time(stage: Stage) -> None:
    stage.freezer.let.clear()
    began = time.monotonic()
    stage.driver.freeze(1)
    until(lambda: stage.freezer.calls, "it has begun")
    stage.driver.thaw(2)
    stage.loop.at(began + 0.05, stage.loop.stop)
    stage.loop.run()
    assert time.monotonic() - began < 1
    assert not stage.answers.got
    stage.freezer.let.set()
    assert stage.answers.await_answers(2) == [(1, None), (2, None)]


def test_the_newest_order_wins(stage: Stage) -> None:
    """Those that came meanwhile are left out."""
    stage.freezer.let.clear()
    stage.driver.freeze(1)
    until(lambda: stage.freezer.calls, "it has begun")
    for ticket in range(2, 6):
        (stage.driver.thaw if ticket % 2 else stage.driver.freeze)(ticket)
    stage.freezer.let.set()
    assert stage.answers.await_answers(2) == [(1, None), (5, None)]
    assert stage.freezer.calls == ["freeze", "thaw"]


def test_a_freeze_is_waited_for(stage: Stage) -> None:
    stage.freezer.looks = 3
    stage.driver.freeze(1)
    assert stage.answers.await_answers(1) == [(1, None)]
    assert stage.freezer.looks == 0


def test_a_thaw_does_not_wait_for_a_freeze(stage: Stage) -> None:
    stage.freezer.looks = 1_000_000
    stage.driver.freeze(1)
    until(lambda: stage.freezer.calls, "it has begun")
    stage.driver.thaw(2)
    assert stage.answers.await_answers(1) == [(2, None)]


@pytest.mark.parametrize("what", ["freeze", "thaw"])
def test_failures_are_told(stage: Stage, what: str) -> None:
    stage.freezer.failures = 1
    getattr(stage.driver, what)(1)
    assert stage.answers.await_answers(1) == [(1, "It cannot.")]
    assert stage.freezer.calls == (["freeze", "thaw"] if what == "freeze" else ["thaw"])


def test_whatever_fails_is_told(stage: Stage) -> None:
    stage.freezer.failures, stage.freezer.error = 1, RuntimeError("a bug")
    stage.driver.thaw(1)
    assert stage.answers.await_answers(1) == [(1, "The freezer failed: RuntimeError('a bug').")]
    stage.driver.thaw(2)
    assert stage.answers.await_answers(2)[1] == (2, None)


def test_closed_it_does_nothing_more(stage: Stage) -> None:
    """Nothing is carried out that was not begun; what was is waited for."""
    stage.freezer.let.clear()
    stage.driver.freeze(1)
    until(lambda: stage.freezer.calls, "it has begun")
    stage.driver.freeze(2)
    threading.Timer(0.05, stage.freezer.let.set).start()
    stage.driver.close()
    assert stage.freezer.calls == ["freeze"]
    assert stage.freezer.busy == 0
    stage.driver = ThreadDriver(stage.loop, stage.freezer)


def test_which_driver_for_which_freezer(stage: Stage) -> None:
    quick = driver_for(stage.loop, Freezer())
    assert isinstance(quick, LocalDriver)
    slow = driver_for(stage.loop, stage.freezer)
    assert isinstance(slow, ThreadDriver)
    slow.close()
