"""How many examples a property is tried on; see ``tests/conftest.py``."""

import os

from hypothesis import settings


def examples(number: int, steps: int = 50) -> settings:
    """Settings for a property that costs about as much as ``number`` says."""
    factor = float(os.environ.get("HYPOTHESIS_FACTOR", "1"))
    return settings(max_examples=max(1, round(number * factor)), stateful_step_count=steps)
