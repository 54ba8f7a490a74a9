"""The node is what most users have."""

import subprocess
from pathlib import Path

from tests.support.cluster import cgroups


def test_it_has_cgroup2_and_nothing_else() -> None:
    assert list(cgroups.hierarchies()) == [""]
    controllers = (cgroups.hierarchies()[""] / "cgroup.controllers").read_text().split()
    assert {"cpu", "memory", "pids"} <= set(controllers)


def test_systemd_is_its_init() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    said = subprocess.run(["systemctl", "is-active", "dbus.service"], capture_output=True, text=True, timeout=20)
    assert said.stdout == "active\n"
