"""What each sample becomes is what was read and found right; ``python -m tests.webhook.golden`` writes it anew."""

from typing import Any

import pytest

from freeze_proxy.webhook.inject import Options
from tests.webhook.golden import GOLDEN, PODS, golden, samples


@pytest.mark.parametrize(("name", "pod", "options"), [pytest.param(*each, id=each[0]) for each in samples()])
def test_as_it_was(name: str, pod: dict[str, Any], options: Options) -> None:
    assert golden(pod, options) == (GOLDEN / f"{name}.json").read_text()


def test_none_is_left_out() -> None:
    assert len(PODS) == 6
    assert {path.stem for path in GOLDEN.iterdir()} == {name for name, _, _ in samples()}
