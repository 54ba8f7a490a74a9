"""When requests on connections of their own are over."""

from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.ambient.conversations import LISTINGS
from freeze_proxy.daemon.ambient.visits import MOST, MOST_PACKETS, Visits

A, B, C = b"a", b"b", b"c"


def over(visits: Visits, *listed: bytes) -> bool:
    """Whether they are by the time that enough listings have said so, and not before."""
    early = [visits.over(listed) for _ in range(LISTINGS - 1)]
    assert not any(early)
    return visits.over(listed)


def test_one_is_over_when_its_connection_is_gone() -> None:
    visits = Visits()
    visits.opened(A)
    assert not visits.under_way, "nobody has said anything"
    assert visits.visited(A)
    assert visits.under_way
    assert not over(visits, A, C)
    assert over(visits, C)
    visits.leave()
    assert not visits.under_way
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
    assert over(visits, B)
    visits.leave()
    assert visits.visited(B)
    assert not over(visits, B)


def test_bytes_that_come_meanwhile_begin_it_anew() -> None:
    visits = Visits()
    visits.opened(A)
    assert visits.visited(A)
    assert not visits.over([])
    assert not visits.over([])
    assert visits.visited(A)
    assert over(visits)


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


@given(st.lists(st.tuples(st.sampled_from(["opened", "visited", "listed"]), st.sets(st.sampled_from([A, B, C])))))
def test_nothing_is_over_whose_connection_is_listed(steps: list[tuple[str, set[bytes]]]) -> None:
    visits, spoken = Visits(), set[bytes]()
    for what, keys in steps:
        if what == "listed":
            if visits.under_way and visits.over(keys):
                assert not spoken & keys
                visits.leave()
                spoken.clear()
        else:
            for key in sorted(keys):
                if getattr(visits, what)(key):
                    spoken.add(key)
    assert visits.under_way == bool(spoken)
