"""What each sample becomes is what was read and found right; ``python -m tests.webhook.golden`` writes it anew."""

from pathlib import Path

import pytest

from tests.webhook.golden import HERE, PODS, golden


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_as_it_was(path: Path) -> None:
    assert golden(path) == (HERE / "golden" / path.name).read_text()


def test_none_is_left_out() -> None:
    assert len(PODS) == 6
