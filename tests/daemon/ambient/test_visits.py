"""When requests on connections of their own are over."""

from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.daemon.ambient.visits import MOST, MOST_PACKETS, Visits

A, B, C = b"a", b"b", b"c"


def test_one_is_over_when_its_connection_is_closed() -> None:
    visits = Visits()
    visits.opened(A)
    assert not visits.under_way, "nobody has said anything"
    assert visits.visited(A)
    assert visits.under_way
    assert not visits.closed(C), "it was there before"
    assert not visits.over
    assert visits.closed(A)
    assert visits.over
    visits.leave()
    assert not visits.under_way
    assert not visits.over
    assert not visits.visited(A), "that connection is gone"


def test_a_connection_that_was_open_before_is_not_one() -> None:
    visits = Visits()
    visits.opened(A)
    assert not visits.visited(B)
    assert not visits.under_way


def test_what_has_not_spoken_yet_may_stay_open() -> None:
    visits = Visits()
    visits.opened(A)
    visits.opened(B)
    assert visits.visited(A)
    visits.closed(A)
    assert visits.over
    assert visits.connections == {B}
    assert visits.visited(B)
    assert not visits.over
    visits.closed(B)
    assert visits.over


def test_who_sends_much_is_not_visited() -> None:
    visits = Visits()
    visits.opened(A)
    assert all(visits.visited(A) for _ in range(MOST_PACKETS))
    assert not visits.visited(A)


def test_the_youngest_are_kept_in_mind() -> None:
    visits = Visits()
    for number in range(MOST + 1):
        visits.opened(bytes([number]))
    assert len(visits.connections) == MOST
    assert not visits.visited(bytes([0]))
    assert visits.visited(bytes([MOST]))


_steps = st.tuples(st.sampled_from(["opened", "visited", "closed", "leave", "forget"]), st.sampled_from([A, B, C]))


@given(st.lists(_steps))
def test_nothing_is_over_that_has_spoken_and_is_open(steps: list[tuple[str, bytes]]) -> None:
    visits, spoken = Visits(), set[bytes]()
    for what, key in steps:
        if what in ("leave", "forget"):
            if what == "forget" or visits.over:
                getattr(visits, what)()
                spoken.clear()
        elif what == "closed":
            visits.closed(key)
            spoken.discard(key)
        elif getattr(visits, what)(key):
            spoken.add(key)
        assert visits.over == (visits.under_way and not spoken)
        assert visits.under_way or not spoken
