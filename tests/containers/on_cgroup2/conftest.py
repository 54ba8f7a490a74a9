"""What the tests in here share: a node on pure cgroup2 with systemd as its init. On no other are they run."""

from pathlib import Path

import pytest

from tests.support.cluster import cgroups

collect_ignore_glob: list[str] = []
if cgroups.driver() != "systemd":
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header(config: pytest.Config) -> str | None:
    """Said where they are not run."""
    if collect_ignore_glob:
        where = Path(__file__).parent.relative_to(config.rootpath)
        return f"not run: {where}, for nodes with cgroup2 alone and systemd (make vm-test)"
    return None
