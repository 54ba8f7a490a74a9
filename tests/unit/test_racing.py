"""What a race is judged by."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.racing import Pace, Race, chance_of, judge

MS = 1e-3


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.99))
def test_the_chance_is_the_binomial_one(late: int, others: int, share: float) -> None:
    of, each = late + others, Fraction(share)
    exact = sum(comb(of, some) * each**some * (1 - each) ** (of - some) for some in range(late, of + 1))
    assert chance_of(late, of, share) == pytest.approx(float(exact), rel=1e-9)


def _race(late: int, excused: int, longest: float = 20 * MS) -> Race:
    """A thousand tries that take 1 ms, twice as long as those of the yardstick, and these."""
    race = Race(Pace(0.008, 1.5 * MS), 0)
    race.raced = [1 * MS] * (1000 - late) + [longest] * late
    race.yardstick = [0.5 * MS] * (1000 - excused) + [20 * MS] * excused
    return race


@pytest.mark.parametrize(
    ("race", "freezes", "why"),
    [
        (_race(0, 0), 500, None),
        (_race(3, 0), 500, None),  # two of three strike what takes twice as long
        (_race(16, 0), 500, None),
        (_race(18, 0), 500, "Freezing makes requests late"),
        (_race(18, 4), 500, None),
        (_race(60, 10), 500, "Freezing makes requests late"),
        (_race(0, 50), 500, None),
        (_race(1, 50, 199 * MS), 500, None),
        (_race(1, 50, 200 * MS), 500, "A request stalled"),
        (_race(0, 0), 250, "The tries did not meet freezes"),
    ],
)
def test_what_fails(race: Race, freezes: int, why: str | None) -> None:
    outcome = race.outcome({"freezes": freezes})
    assert outcome.late_beyond == pytest.approx(12.0)
    if why is None:
        judge(outcome, 1000, 1000)
    else:
        with pytest.raises(AssertionError, match=why):
            judge(outcome, 1000, 1000)
