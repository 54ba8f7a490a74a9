"""The histogram of durations, against sorted lists."""

import math

from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.histogram import Histogram

DURATIONS = st.floats(min_value=0, max_value=1e5, allow_nan=False)


def test_nothing() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    assert histogram.raw() == []
    assert histogram.count == 0
    assert histogram.max == 0


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_at_most_an_eighth_of_a_doubling_high(durations: list[float], share: float) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    right = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    found = histogram.quantile(share)
    assert found is not None
    assert right * (1 - 1e-9) <= found <= max(right, 1e-6) * 2 ** (1 / 8) * (1 + 1e-9)
    assert found <= max(durations)
    assert histogram.max == max(durations)


@given(st.lists(DURATIONS, max_size=200))
def test_the_raw_numbers_hold_all(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    raw = histogram.raw()
    assert sum(count for _, count in raw) == len(durations) == histogram.count
    bounds = [bound for bound, _ in raw]
    assert bounds == sorted(set(bounds))
    below = 0
    for bound, count in raw:
        below += count
        assert sum(max(duration * 1e6, 1.0) <= bound * (1 + 1e-6) for duration in durations) >= below
