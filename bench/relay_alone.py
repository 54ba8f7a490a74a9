"""The relay alone, as a sidecar runs it: ``python3 -I -S relay_alone.py LISTEN_PORT TARGET_PORT MODE [HOST]``.

Modes: ``gate``, the real gate with a driver that has nothing to freeze and answers at once; ``off``, no freezing;
``soak``, a gate in a hurry whose driver answers late and now and then fails, so that freezes, thaws and their waiting
requests mix with everything else.

SIGUSR1 prints its counters as a line of JSON, SIGTERM does so and ends it. It imports no more than a sidecar would:
what is loaded here is what the benchmark's figures for memory and start-up stand for.
"""

import sys

_root = __file__.rpartition("/")[0] + "/.."
sys.path[:0] = [_root + "/src", _root]

from bench.alone import main  # noqa: E402 - the path must be set before

main()
