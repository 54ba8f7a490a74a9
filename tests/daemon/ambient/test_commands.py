"""How long a look for commands in a container may take; ``tests/containers/test_rig.py`` has it find them."""

import time

import pytest

from freeze_proxy.daemon.ambient import commands


def test_a_container_whose_processes_take_long_to_look_at_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def slowly(pid: int) -> tuple[int, int]:
        looked.append(pid)
        time.sleep(2 * commands.LONGEST)  # as the kernel with one that is in very many groups
        return 1, 2

    monkeypatch.setattr(commands, "members", lambda _place: list(range(2, 500)))
    monkeypatch.setattr(commands, "_parent_and_depth", slowly)
    assert not commands.run_in("/nowhere", main=499)
    assert len(looked) == 1
