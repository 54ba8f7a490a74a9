"""When a frozen server is let run for a moment."""

import pytest

from freeze_proxy.ambient.breaths import FIRST, LATER, Breaths


@pytest.mark.parametrize(("quiet", "after"), [(0.1, FIRST), (4.0, FIRST), (16.0, 16 * LATER), (80.0, 80 * LATER)])
def test_the_longer_nothing_has_come_the_more_seldom(quiet: float, after: float) -> None:
    assert Breaths().after(quiet) == after


def test_what_was_kept_open_for_so_long_is_kept_for_as_long_again() -> None:
    breaths = Breaths()
    breaths.kept(30.0)
    breaths.kept(5.0)
    assert breaths.after(2.0) == 28.0
    assert breaths.after(29.5) == 29.5 * LATER
    assert breaths.after(64.0) == 64 * LATER


@pytest.mark.parametrize("ends_after", [0.5, 2.0, 5.0, 20.0, 75.0])
def test_whatever_a_servers_time_it_runs_soon_after_it(ends_after: float) -> None:
    """Also where it has been learned that this time is not over before."""
    breaths = Breaths()
    for _ in range(3):
        quiet = 0.1
        while quiet < ends_after:
            breaths.kept(quiet)
            quiet += breaths.after(quiet)
        assert quiet <= ends_after + max(FIRST, ends_after * LATER) + 0.1
