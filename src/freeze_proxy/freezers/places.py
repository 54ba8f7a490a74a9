"""Where a container's own cgroup is, and which freezer is for it.

The truth is /proc/PID/cgroup (cgroups(7), proc(5)); no path is ever built from what a runtime's configuration may be.
What is frozen is the uppermost cgroup on that path whose name is the container's id as runtimes write it. So it can be
neither the root nor the pod's cgroup, and whatever cgroups the container makes inside its own are frozen with it.
The one exception is crun's with systemd's driver (see ``INNER``).

Paths in /proc/PID/cgroup and in /proc/self/mountinfo begin at the root of the reader's own cgroup namespace. Where a
daemon has a private one, and the host's hierarchy is mounted besides, both begin with ``/..`` and leave out the names
of the cgroups above the daemon (cgroup_namespaces(7)). Those are found by looking for the daemon itself in what is
mounted.
"""

import os
from dataclasses import dataclass

from freeze_proxy.freezers import FreezeError, Freezer, Gone, cgroup

FREEZER, CPU, CGROUP2 = "freezer", "cpu", "cgroup2"
"""Hierarchies: two of cgroup v1 by their controller, and the one of cgroup v2."""

_CONTROL = {FREEZER: "freezer.state", CGROUP2: "cgroup.freeze"}
_QUOTA = {CPU: "cpu.cfs_quota_us", CGROUP2: "cpu.max"}


INNER = "container"
"""On cgroup2, crun with systemd's driver has the container in a cgroup of this name inside of the scope that bears the
id (``run.oci.systemd.subgroup`` in crun(1)). It freezes that one, and sees of no other that it is frozen: an exec into
a container whose scope is frozen hangs."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy: what it holds, the directory, and which of its cgroups is at that directory."""

    holds: frozenset[str]
    point: str
    root: str


# Reading what the kernel says. Pure.


def mounts_in(mountinfo: str) -> list[Mount]:
    """The cgroup mounts in a text like /proc/self/mountinfo that are not hidden by a later mount at the same place."""
    found: dict[str, Mount] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _source, options) = left.split(), right.split(None, 2)
        root, point = (_unescaped(field) for field in fields[3:5])
        if point != "/":
            for hidden in [other for other in found if (other + "/").startswith(point + "/")]:
                del found[hidden]
        if kind == "cgroup2":
            found[point] = Mount(frozenset({CGROUP2}), point, root)
        elif kind == "cgroup":
            found[point] = Mount(frozenset(options.strip().split(",")), point, root)
    return list(found.values())


def _unescaped(field: str) -> str:
    """Spaces and the like stand as ``\\040`` in mountinfo."""
    if "\\" not in field:
        return field
    return os.fsdecode(os.fsencode(field).decode("unicode_escape").encode("latin-1"))


def paths_in(text: str) -> dict[str, str]:
    """The paths in a text like /proc/PID/cgroup, by v1 controller and ``CGROUP2``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else [CGROUP2]:
            paths[controller] = path
    return paths


def own(path: str, id: str) -> str | None:
    """The part of a process's cgroup path that ends with the container's own cgroup; ``None`` if it is not on it."""
    parts = path.split("/")
    for count, part in enumerate(parts, 1):
        name = part.removesuffix(".scope")
        if name == id or name.endswith(("-" + id, ":" + id)):
            return "/".join(parts[:count])
    return None


def below(path: str, root: str) -> str | None:
    """``path`` as it reads from ``root``, both from the same origin; ``None`` if that cannot be told from the names."""
    if root == "/":
        rest = path
    elif path == root or path.startswith(root + "/"):
        rest = path[len(root) :] or "/"
    else:
        return None
    return None if rest == "/.." or rest.startswith("/../") else rest


def across(path: str, self_path: str, self_found: str) -> str | None:
    """``path`` as it reads from a mount in which this process was found at ``self_found``.

    ``path`` and ``self_path`` are as /proc shows both to this process, ``self_found`` reads from the mount's root.
    ``None`` if the names that are left out of ``path`` cannot be known.
    """
    up, names = _climbed(path)
    self_up, self_names = _climbed(self_path)
    standing = [part for part in self_found.split("/") if part]
    if up < self_up or (self_names and standing[-len(self_names) :] != self_names):
        return None
    kept = len(standing) - len(self_names) - (up - self_up)
    if kept < 0:
        return None
    return "/" + "/".join(standing[:kept] + names)


def _climbed(path: str) -> tuple[int, list[str]]:
    """How many steps up it begins with, and the names after them."""
    parts = [part for part in path.split("/") if part]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up, parts[up:]


# Asking the kernel.


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _paths_of(pid: int, id: str) -> dict[str, str]:
    try:
        return paths_in(_read(f"/proc/{pid}/cgroup"))
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(
            f"There is no process {pid} of the container {id}: it has ended, or freeze-proxy does not see the node's "
            "processes (its pod needs hostPID: true)."
        ) from None
    except OSError as error:
        raise FreezeError(f"/proc/{pid}/cgroup cannot be read: {error.strerror}.") from error


def holds(pid: int, id: str) -> bool:
    """Whether the process is there, and in the cgroup of this container still: PIDs are used again.

    Takes a few microseconds.
    """
    try:
        fd = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        text = os.read(fd, 1 << 16)
    except OSError:
        return False
    finally:
        os.close(fd)
    return any(own(os.fsdecode(line).split(":", 2)[2], id) for line in text.splitlines() if os.fsencode(id) in line)


def directory(hierarchy: str, pid: int, id: str) -> str | None:
    """The directory of the container's own cgroup in a hierarchy.

    ``None`` if it has none there. Raises ``Gone`` if the process is no longer the container's, ``FreezeError`` if the
    cgroup is out of sight or holds this process itself.
    """
    paths = _paths_of(pid, id)
    path = own(paths.get(hierarchy, "/"), id)
    if path is None:
        if any(own(other, id) for other in paths.values()):
            return None
        raise Gone(f"The process {pid} is no longer, or never was, in a cgroup of the container {id}.")
    if (_self_path(hierarchy) + "/").startswith(path + "/"):
        raise FreezeError(f"freeze-proxy itself runs in the container {id} and would freeze with it.")
    found = _in_sight(hierarchy, path)
    if found is not None:
        return found
    if not holds(pid, id):
        raise Gone(f"The container {id} has just ended.")
    where = "; ".join(mount.point for mount in _mounts_of(hierarchy)) or "nowhere"
    raise FreezeError(
        f"The cgroup {path} of the container {id} is out of sight (its hierarchy is mounted at: {where}); where "
        "freeze-proxy runs in a container, mount the node's /sys/fs/cgroup into it."
    )


def frozen_by_runtime(hierarchy: str, pid: int, id: str) -> str | None:
    """The directory of the cgroup by which the container's runtime freezes it, and sees that it is frozen.

    That is its own, or crun's inside of that (``INNER``) if nothing else is in there. Otherwise as ``directory``.
    """
    place = directory(hierarchy, pid, id)
    if place is None or hierarchy != CGROUP2:
        return place
    inner = os.path.join(place, INNER)
    path = _paths_of(pid, id).get(hierarchy, "/")
    if not place.endswith(".scope") or not (path + "/").startswith(f"{own(path, id)}/{INNER}/"):
        return place
    try:
        # What is made beside it later is not frozen, but only who may write the node's cgroups can do that.
        others = any(entry.is_dir() and entry.name != INNER for entry in os.scandir(place))
        return place if others or _read(os.path.join(place, "cgroup.procs")) else inner
    except OSError:
        return place


def standing(hierarchy: str) -> str | None:
    """The directory of the cgroup that this process is in; ``None`` if it is out of sight."""
    return _in_sight(hierarchy, _self_path(hierarchy))


def _self_path(hierarchy: str) -> str:
    return paths_in(_read("/proc/self/cgroup")).get(hierarchy, "/")


def _mounts_of(hierarchy: str) -> list[Mount]:
    return [mount for mount in mounts_in(_read("/proc/self/mountinfo")) if hierarchy in mount.holds]


def _in_sight(hierarchy: str, path: str) -> str | None:
    """The directory of a cgroup, by its path as /proc shows it to this process."""
    for mount in reversed(_mounts_of(hierarchy)):
        inside = below(path, mount.root)
        if inside is None and "/../" in path + mount.root + "/":
            found = _found(mount, hierarchy)
            inside = None if found is None else across(path, _self_path(hierarchy), found)
        if inside is not None and os.path.isdir(mount.point + inside):
            return os.path.normpath(mount.point + inside)
    return None


_whereabouts: dict[tuple[str, str, str], str | None] = {}


def _found(mount: Mount, hierarchy: str) -> str | None:
    """Where in a mount this process is: the one cgroup that lists it. Looked for once, as long as it does not move."""
    key = (mount.point, mount.root, _self_path(hierarchy))
    if key not in _whereabouts:
        _whereabouts[key] = _find(mount.point, str(os.getpid()))
    return _whereabouts[key]


def _find(point: str, pid: str) -> str | None:
    for directory, _, files in os.walk(point):
        if "cgroup.procs" in files:
            try:
                if pid in _read(os.path.join(directory, "cgroup.procs")).split():
                    return directory[len(point) :] or "/"
            except OSError:
                continue  # gone meanwhile, or threaded
    return None


# Which freezer.


def hierarchy_of(pid: int, id: str, names: dict[str, str]) -> tuple[str, str, str]:
    """Hierarchy, directory and control file: v1 where the container has a cgroup of its own there, else v2.

    The first is the one that runtimes read on nodes that have both. ``names`` are the control files by hierarchy.
    Raises ``FreezeError``.
    """
    for hierarchy, name in names.items():
        place = (frozen_by_runtime if name in _CONTROL.values() else directory)(hierarchy, pid, id)
        if place is None:
            continue
        file = os.path.join(place, name)
        if not os.path.exists(file):
            raise FreezeError(f"{file} is not there: the controller is not enabled for this container.")
        if not os.access(file, os.W_OK):
            raise FreezeError(
                f"{file} cannot be written: run freeze-proxy as root and, in a container, mount the node's "
                "/sys/fs/cgroup writable."
            )
        return hierarchy, place, file
    raise FreezeError(f"The container {id} has no cgroup of its own in the hierarchies {' and '.join(names)}.")


def by_cgroup(id: str, pid: int, mode: str, kind: str = "auto") -> Freezer:
    """The freezer that writes the container's own cgroup, for ``freeze`` or ``throttle``; or ``FreezeError``.

    ``kind``: by ``cgroup1`` or ``cgroup2`` only.
    """
    files = _QUOTA if mode == "throttle" else _CONTROL
    if kind != "auto":
        files = {hierarchy: name for hierarchy, name in files.items() if (hierarchy == CGROUP2) == (kind == "cgroup2")}
    hierarchy, place, _ = hierarchy_of(pid, id, files)
    if mode == "throttle":
        return cgroup.ThrottleFreezer(place)
    return cgroup.Cgroup1Freezer(place) if hierarchy == FREEZER else cgroup.Cgroup2Freezer(place)
