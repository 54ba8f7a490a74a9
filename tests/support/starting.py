"""A server behind freeze-proxy, whichever way: tests that ask for ``start`` are made with each."""

from collections.abc import Callable

from tests.support.pods import InPod
from tests.support.running import Running

Started = Running | InPod
Start = Callable[..., Started]
"""Called with a folder of the test's, the server's command, and options as ``freeze-proxy run`` has them."""
Many = Callable[[int], int]
"""How many tries are made where so many would be with ``run``."""
