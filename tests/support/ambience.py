"""A cgroup of cgroup2 with a process in it, and a watcher beside it."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from freeze_proxy.ambient import Watcher
from freeze_proxy.ambient.bpf import BpfError
from freeze_proxy.freezers import cgroup
from freeze_proxy.freezers.cgroup import Cgroup2Freezer
from tests.support.needs import need, need_root
from tests.support.wait import until


def need_ambient() -> None:
    """What ambient needs of the machine."""
    need_root()
    need(cgroup.place("cgroup2") is not None, "There is no cgroup v2 hierarchy here.")
    try:
        Watcher().close()
    except BpfError as error:
        need(False, str(error))


@contextlib.contextmanager
def made_cgroup() -> Iterator[str]:
    """A new one, which is removed with all in it."""
    path = cgroup.create("cgroup2", f"freeze-proxy-test-{uuid.uuid4().hex[:12]}")
    try:
        yield path
    finally:
        cgroup.kill(path)
        until(lambda: cgroup.remove(path), f"{path} can be removed")


@contextlib.contextmanager
def running_in(path: str, work: Callable[[], object]) -> Iterator[int]:
    """A child process in this cgroup that does this, and is killed at the end."""
    child = os.fork()
    if not child:
        try:
            Path(path, "cgroup.procs").write_text("0")
            work()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        cgroup.kill(path)
        os.waitpid(child, 0)


@contextlib.contextmanager
def frozen(path: str) -> Iterator[Cgroup2Freezer]:
    """It stands still inside of this, unless it is thawed."""
    freezer = Cgroup2Freezer(path)
    try:
        freezer.freeze()
        until(freezer.still, f"{path} stands still")
        yield freezer
    finally:
        freezer.thaw()
        freezer.close()
