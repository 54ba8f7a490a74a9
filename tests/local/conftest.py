"""What the tests of ``run`` and ``attach`` share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxies import FREEZERS, Proxies, need_freezer


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[Proxies]:
    """Starts freeze-proxy; ends what the test has left."""
    made = Proxies(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=FREEZERS)
def freezer(request: pytest.FixtureRequest) -> str:
    """Each kind of freezer."""
    need_freezer(request.param)
    return str(request.param)
