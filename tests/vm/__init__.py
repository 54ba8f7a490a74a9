"""Tests of the node in a virtual machine: pure cgroup2, with systemd as init and as the runtimes' cgroup driver.

Most users' nodes are like that, and a machine on which freeze-proxy is worked on need not be. ``python -m tests.vm``
boots one in QEMU's software emulation and runs in there what ``selection`` names; docs/vm-test.md tells how.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Before a command: it does not outlive who has started it."""
