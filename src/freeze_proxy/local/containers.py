"""A container to attach to: finding it through its runtime, and how it is going to be frozen."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freeze_proxy.freezers import FreezeError, Freezer, Gone, places
from freeze_proxy.freezers.process import ProcessFreezer
from freeze_proxy.local.guard import Plan
from freeze_proxy.local.options import Failure
from freeze_proxy.local.plans import FoundPlan

if TYPE_CHECKING:
    from freeze_proxy.freezers.runtime import RuntimeFreezer


@dataclass(frozen=True)
class Container:
    """One that runs: its id, what to call it, its main process, and its runtime's name and way to freeze it."""

    id: str
    called: str
    pid: int
    runtime: str
    by_runtime: Callable[[], Freezer]


@dataclass(frozen=True)
class DockerName:
    """A container by its name or id, with the Docker that listens at ``socket``."""

    name: str
    socket: str

    def find(self) -> Container:
        """Raises ``FreezeError`` where there is none that runs."""
        from freeze_proxy.freezers.docker import DockerFreezer

        freezer = DockerFreezer(self.socket, self.name)
        try:
            id, pid = freezer.running()
        finally:
            freezer.close()
        # Not by its name: that may be another's tomorrow.
        return Container(
            id,
            f"the container {self.name}",
            pid,
            "docker",
            lambda: _known(DockerFreezer(self.socket, id), self.name, pid),
        )


@dataclass(frozen=True)
class ContainerdId:
    """A container by its id or the beginning of it, in a namespace or in any, with the containerd at ``socket``."""

    id: str
    namespace: str | None
    socket: str

    def find(self) -> Container:
        """Raises ``FreezeError`` where there is none that runs, or more than one."""
        from freeze_proxy.freezers.containerd import ContainerdFreezer, running

        everywhere = running(self.socket, self.namespace)
        found = [each for each in everywhere if each[1] == self.id] or [
            each for each in everywhere if each[1].startswith(self.id)
        ]
        if not found:
            where = f"its namespace {self.namespace}" if self.namespace else "any of its namespaces"
            raise FreezeError(f"containerd runs no container {self.id} in {where}.")
        if len(found) > 1:
            which = " and ".join(f"{namespace}/{id}" for namespace, id, _ in found[:3])
            raise FreezeError(
                f"More than one container is meant by {self.id}: {which}; say which with the whole id and "
                "--containerd-namespace."
            )
        namespace, id, pid = found[0]
        return Container(
            id,
            f"the container {self.id}",
            pid,
            "containerd",
            lambda: _known(ContainerdFreezer(self.socket, namespace, id), self.id, pid),
        )


Wanted = DockerName | ContainerdId


def _known(freezer: "RuntimeFreezer", name: str, pid: int) -> Freezer:
    freezer.where = f"the container {name}"
    freezer.knows(pid)
    return freezer


def plan_for_container(container: Container, wanted: str, throttle: bool) -> tuple[Plan, str]:
    """How a container is frozen, and why not in a better way (or nothing). Raises ``FreezeError``.

    By its own cgroup, in the hierarchy that its runtime reads too, where that can be written; else by its runtime.
    """
    id, pid = container.id, container.pid
    if places.holds(os.getpid(), id):
        raise FreezeError(f"freeze-proxy itself runs in {container.called} and would freeze with it.")
    if wanted == container.runtime and not throttle:
        return FoundPlan(container.by_runtime), ""
    if wanted == "process" and not throttle:
        return FoundPlan(lambda: ProcessFreezer(pid, also=_members(id, pid))), ""
    if wanted not in ("auto", "cgroup1", "cgroup2"):
        why = "cannot throttle it" if throttle else "does not run it"
        raise FreezeError(f"{container.called} cannot be frozen so: --freezer {wanted} {why}.")

    def by_cgroup() -> Freezer:
        return places.by_cgroup(id, pid, "throttle" if throttle else "freeze", wanted)

    try:
        by_cgroup().close()
    except Gone:
        raise
    except FreezeError as error:
        if throttle or wanted != "auto":
            raise
        return FoundPlan(container.by_runtime), f"Not by its cgroup: {error}"
    return FoundPlan(by_cgroup), ""


def seat_of_container(id: str, pid: int) -> str:
    """The container's own cgroup of cgroup v2, in which its packets are seen. Raises ``Failure``."""
    path = places.directory(places.CGROUP2, pid, id)
    if path is None:
        raise Failure(
            f"The container {id[:12]} has no cgroup of its own in cgroup v2, in which its packets could be seen; nodes "
            "with cgroup v1 and v2 give it none. Leave --ambient out."
        )
    return path


def _members(id: str, pid: int) -> str | None:
    """Where the processes are listed that were not started by the main one: by ``exec``, say."""
    for hierarchy in (places.FREEZER, places.CGROUP2):
        try:
            path = places.frozen_by_runtime(hierarchy, pid, id)
        except FreezeError:
            continue
        if path is not None:
            return f"{path}/cgroup.procs"
    return None
