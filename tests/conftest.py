"""Settings for all tests.

Hypothesis: a profile that is quick, and one that searches for long. ``HYPOTHESIS_FACTOR=20`` multiplies every test's
number of examples by twenty.
"""

import os

from hypothesis import HealthCheck, settings

# Tests fork, and gRPC's own handlers for that end the child where another thread of gRPC's is at work.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_FACTOR = float(os.environ.get("HYPOTHESIS_FACTOR", "1"))

settings.register_profile(
    "freeze-proxy",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=max(1, round(200 * _FACTOR)),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("freeze-proxy")
