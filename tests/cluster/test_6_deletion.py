"""Pods that come and go: scaled up and down, and deleted, frozen or not."""

from collections.abc import Callable

import pytest

from tests.cluster.background import Background
from tests.cluster.comings import Scaling


@pytest.mark.parametrize("name", ["scaling", "ambient-by-activator"])
def test_it_is_scaled_up_and_down_again(
    scaling: dict[str, tuple[Scaling, Background[None]]], deletions: dict[str, Background[float]], name: str
) -> None:
    service, work = scaling[name]
    work.result(150)
    assert service.errors == []
    assert len(service.answers) > 20
    assert set(service.answers) == {200}


def test_a_frozen_pod_is_deleted_as_fast_as_one_that_knows_nothing_of_freezing(
    deletions: dict[str, Background[float]], say: Callable[[str], None]
) -> None:
    took = {name: work.result(90) for name, work in deletions.items()}
    say(
        f"Deleted: the frozen pod in {took['frozen']:.1f} s, an ambient one in {took['ambient']:.1f} s, "
        f"one without freeze-proxy in {took['stock']:.1f} s."
    )
    assert took["frozen"] < took["stock"] + 3, took
    assert took["ambient"] < took["stock"] + 3, took
