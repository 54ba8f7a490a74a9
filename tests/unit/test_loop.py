"""The loop by itself: pairs of sockets, timers, and what happens within one round."""

import socket
from collections.abc import Iterator

import pytest

from freeze_proxy.loop import READ, WRITE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()  # where the test has closed it already, this does nothing


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_timers_run_in_the_order_of_their_times_and_a_cancelled_one_does_not(loop: Loop) -> None:
    ran: list[str] = []
    start = loop.now
    loop.at(start + 0.02, lambda: ran.append("second"))
    loop.at(start + 0.01, lambda: ran.append("first"))
    loop.at(start + 0.015, lambda: ran.append("never")).cancel()
    loop.at(start + 0.03, loop.stop)
    loop.run()
    assert ran == ["first", "second"]
    assert loop.now >= start + 0.03


def test_a_timer_of_the_past_runs_at_once(loop: Loop) -> None:
    loop.at(loop.now - 5.0, loop.stop)
    loop.run()


def test_soon_runs_in_order_at_the_end_of_the_round_and_without_any_event(loop: Loop) -> None:
    ran: list[int] = []

    def last() -> None:
        ran.append(3)
        loop.stop()

    def first() -> None:
        ran.append(1)
        loop.soon(last)

    loop.soon(first)
    loop.soon(lambda: ran.append(2))
    loop.run()
    assert ran == [1, 2, 3]


def test_handlers_get_the_events_they_watch_for(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    seen: list[int] = []

    def on_right(events: int) -> None:
        seen.append(events)
        if len(seen) == 1:
            loop.change(right.fileno(), READ | WRITE)
        elif len(seen) == 2:
            right.recv(10)
        else:
            loop.stop()

    loop.watch(right.fileno(), READ, on_right)
    left.send(b"x")
    loop.run()
    assert seen == [READ, READ | WRITE, WRITE]


def test_what_a_round_still_holds_for_a_forgotten_descriptor_is_not_handed_out(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def handler(own: int, other: int) -> None:
        called.append(own)
        loop.forget(other)
        loop.forget(own)
        loop.at(loop.now, loop.stop)

    fds = [right.fileno() for _, right in pairs]
    loop.watch(fds[0], READ, lambda _: handler(fds[0], fds[1]))
    loop.watch(fds[1], READ, lambda _: handler(fds[1], fds[0]))
    for left, _ in pairs:
        left.send(b"x")
    loop.run()
    for left, right in pairs:
        left.close()
        right.close()
    assert len(called) == 1


def test_a_socket_is_closed_only_after_the_round_so_that_its_number_is_not_taken_in_it(loop: Loop) -> None:
    left, right = socket.socketpair()
    number = right.fileno()
    inside: list[int] = []

    def on_right(_events: int) -> None:
        loop.forget(number)
        loop.close_after(right)
        with socket.socket() as other:
            inside.append(other.fileno())
        loop.stop()

    loop.watch(number, READ, on_right)
    left.send(b"x")
    loop.run()
    left.close()
    assert number not in inside
    assert right.fileno() == -1


def test_forgetting_what_is_not_watched_does_no_harm(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    loop.forget(pair[0].fileno())
    loop.forget(10_000)


def test_closing_closes_what_waited_for_the_end_of_a_round(loop: Loop) -> None:
    left, right = socket.socketpair()
    loop.close_after(right)
    loop.close()
    left.close()
    assert right.fileno() == -1
