"""How the containers of a node are frozen, through their cgroups or by their runtime, and when to look anew."""

import contextlib
import os
from collections.abc import Callable

from freeze_proxy.freezers import FreezeError, Freezer, Gone
from freeze_proxy.freezers.places import CGROUP2, FREEZER, by_cgroup, directory, holds, mounts_in

__all__ = ["KINDS", "USUAL", "Neighbourhood", "Ways", "by_cgroup", "holds", "kind_of", "neighbourhood", "unwritable"]

KINDS = ("auto", "cgroup", "containerd", "docker", "crio")
"""How containers are frozen: ``auto`` writes the cgroup where it can, and asks the runtime where it cannot."""


class Neighbourhood:
    """The cgroups beside a container's own: those of its pod. Their number changes as containers come and go."""

    __slots__ = ("_count", "_parent")

    def __init__(self, parent: str) -> None:
        self._parent: str | int = parent
        with contextlib.suppress(OSError):  # kept open it is not searched for each time
            self._parent = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._count = self._counted()

    def changed(self) -> bool:
        """Whether there are more or fewer than there were. Takes a microsecond or two."""
        return self._counted() != self._count

    def close(self) -> None:
        """Give back what is held."""
        if isinstance(self._parent, int):
            os.close(self._parent)
            self._parent = ""

    def _counted(self) -> int:
        try:
            return os.stat(self._parent).st_nlink
        except OSError:
            return -1


def neighbourhood(id: str, pid: int) -> Neighbourhood | None:
    """Of a container; ``None`` where it cannot be seen."""
    for hierarchy in (FREEZER, CGROUP2):
        try:
            place = directory(hierarchy, pid, id)
        except FreezeError:
            continue
        if place is not None:
            return Neighbourhood(os.path.dirname(place))
    return None


def unwritable() -> str:
    """Why no container's cgroup can be written here, in a sentence; empty if nothing stands against it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounted = mounts_in(file.read())
    for hierarchy in (FREEZER, CGROUP2):
        points = [mount.point for mount in mounted if hierarchy in mount.holds]
        if any(os.access(os.path.join(point, "cgroup.procs"), os.W_OK) for point in points):
            return ""
        if points:
            return (
                f"The cgroups in {' and '.join(points)} cannot be written: run freeze-proxy as root and, in a "
                "container, mount the node's /sys/fs/cgroup writable."
            )
    return "No cgroup hierarchy is mounted here: mount the node's /sys/fs/cgroup, writable."


class Ways:
    """How the containers of this node are frozen.

    ``kind`` is one of ``KINDS``. ``runtime`` tells name and CRI socket of the runtime that is there, once it has
    answered; ``sockets`` gives the runtimes' own API sockets by kind where they are not that one.
    """

    def __init__(
        self, kind: str, runtime: Callable[[], tuple[str, str]], sockets: dict[str, str] | None = None
    ) -> None:
        self._kind = kind
        self._runtime = runtime
        self._sockets = sockets or {}

    def __call__(self, id: str, pid: int, mode: str) -> Freezer:
        """The freezer of a container. Raises ``Gone`` and ``FreezeError``."""
        if mode == "throttle" or self._kind == "cgroup":
            return by_cgroup(id, pid, mode)
        if self._kind != "auto":
            return self._by_runtime(self._kind, id, pid)
        try:
            return by_cgroup(id, pid, mode)
        except Gone:
            raise
        except FreezeError as reason:
            name, _ = self._runtime()
            kind = kind_of(name)
            if kind is None:
                raise FreezeError(f"{reason} The runtime {name or 'is unknown and'} cannot be asked instead.") from None
            try:
                return self._by_runtime(kind, id, pid)
            except FreezeError as other:
                raise type(other)(f"{reason} And through the runtime: {other}") from other

    def _by_runtime(self, kind: str, id: str, pid: int) -> Freezer:
        # Seen alive now, so that it can be seen when it is no more.
        if not holds(pid, id):
            raise Gone(f"The process {pid} is not, or no longer, of the container {id}.")
        name, socket = self._runtime()
        if kind_of(name) == kind and kind != "docker":
            socket = self._sockets.get(kind, socket)  # CRI and the runtime's own API are on one socket
        else:
            socket = self._sockets.get(kind, USUAL[kind])
        if kind == "containerd":
            from freeze_proxy.freezers.containerd import ContainerdFreezer

            return ContainerdFreezer(socket, "k8s.io", id)
        if kind == "docker":
            from freeze_proxy.freezers.docker import DockerFreezer

            return DockerFreezer(socket, id)
        from freeze_proxy.freezers.crio import CrioFreezer

        return CrioFreezer(socket, id)


USUAL = {
    "containerd": "/run/containerd/containerd.sock",
    "docker": "/run/docker.sock",
    "crio": "/run/crio/crio.sock",
}
"""The runtimes' own API sockets, by kind."""


def kind_of(runtime: str) -> str | None:
    """The kind of freezer that asks a runtime, by the name that CRI's Version gives it."""
    return {"containerd": "containerd", "cri-o": "crio", "docker": "docker"}.get(runtime)
