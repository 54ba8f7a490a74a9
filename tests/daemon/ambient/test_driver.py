"""What a driver of the daemon's says of how its freeze can be undone within microseconds."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from freeze_proxy.daemon.ambient.driver import FreezingDriver
from freeze_proxy.freezers import Freezer

QUICK, SLOW = "quick", "slow"


class Freezing:
    async def freeze(self, *_order: Any) -> list[dict[str, str]]:
        return []

    async def thaw(self, *_order: Any) -> list[dict[str, str]]:
        return []


def _container(kind: str, name: str, called: list[str]) -> Any:
    freezer = Freezer()
    if kind == QUICK:
        freezer.haste = lambda: called.append(name)
    return SimpleNamespace(freezer=lambda _mode: freezer)


@pytest.mark.parametrize(
    ("kinds", "hastened"),
    [([QUICK], ["0"]), ([QUICK, QUICK], ["0", "1"]), ([SLOW], None), ([QUICK, SLOW], None), ([], None)],
)
@pytest.mark.parametrize("thawed_before", [False, True])
def test_all_of_a_pod_are_hastened_or_none(kinds: list[str], hastened: list[str] | None, thawed_before: bool) -> None:
    """Some of a pod do not make a server that runs; and a freeze that is overtaken leaves nothing to hasten."""
    called: list[str] = []
    answers: list[int] = []
    keeper: Any = SimpleNamespace(haste=None, done=answers.append)

    async def freeze() -> None:
        stub: Any = Freezing()
        driver = FreezingDriver(stub, "uid", "freeze")
        pod: Any = object()
        driver.keeper, driver.pod = keeper, pod
        driver.containers = [_container(kind, str(number), called) for number, kind in enumerate(kinds)]
        driver.freeze(1)
        if thawed_before:
            driver.thaw(2)
        while 1 not in answers:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(freeze(), 10))
    if hastened is None or thawed_before:
        assert keeper.haste is None
    else:
        keeper.haste()
        assert called == hastened
