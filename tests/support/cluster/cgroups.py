"""The cgroups of one test, in all hierarchies that the machine has, and what the kernel says about them."""

import os
import signal
import subprocess
from pathlib import Path

from tests.support.needs import need, need_root
from tests.support.wait import until


def hierarchies() -> dict[str, Path]:
    """Where the hierarchies are mounted: by v1 controller (``freezer``, ``name=systemd``), cgroup2 by ``""``."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, place = before.split()[3:5]
        kind, _, options = after.split()
        if root != "/" or kind not in ("cgroup", "cgroup2"):
            continue  # "/../.." and the like: a private cgroup namespace shows no more than a part
        for name in [""] if kind == "cgroup2" else options.split(","):
            if name not in ("rw", "ro", "xattr", "clone_children"):
                found.setdefault(name, Path(place))
    return found


def driver() -> str:
    """Which cgroup driver the node of a cluster has on a machine like this: ``systemd`` or ``cgroupfs``.

    systemd's where it is the init (sd_booted(3)) and has cgroup2 alone.
    """
    return "systemd" if Path("/run/systemd/system").is_dir() and list(hierarchies()) == [""] else "cgroupfs"


def places(pid: int) -> dict[str, Path]:
    """The cgroups that a process is in, named as in ``hierarchies``."""
    mounted = hierarchies()
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounted:
                found[name] = mounted[name] / path.lstrip("/")
    return found


def place(pid: int) -> Path:
    """The cgroup by which a process is to be frozen: in the v1 freezer if there is one, otherwise in cgroup2."""
    its = places(pid)
    return its["freezer"] if "freezer" in its else its[""]


def frozen(pid: int) -> bool:
    """Whether the kernel says that the cgroup of a process is frozen, in one hierarchy or the other, by whomever."""
    its = places(pid)
    v1, v2 = its.get("freezer", Path("/")) / "freezer.state", its.get("", Path("/")) / "cgroup.events"
    return (v1.exists() and v1.read_text() == "FROZEN\n") or (v2.exists() and "frozen 1\n" in v2.read_text())


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def processes_in(paths: list[Path]) -> list[int]:
    """The processes in these cgroups and all below them."""
    found: set[int] = set()
    for path in paths:
        for folder, _, _ in os.walk(path):
            try:
                found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
            except OSError:
                continue  # removed meanwhile
    return sorted(found - {0})


class Cgroups:
    """A cgroup of this name right below the root of each hierarchy; runtimes make theirs below it.

    With systemd's driver it is a slice, which systemd makes, and those of pods are slices and scopes in it.
    """

    def __init__(self, name: str, driver: str = "cgroupfs") -> None:
        """With systemd's driver the name must have no dashes: they stand for slices in slices (systemd.slice(5))."""
        need_root()
        need(bool(hierarchies()), "There is no cgroup hierarchy here.")
        self.driver = driver
        self._slice = name
        self.name = f"{name}.slice" if driver == "systemd" else name

    def of_pod(self, uid: str) -> str:
        """The path of a burstable pod's cgroup, as a kubelet has it whose ``--cgroup-root`` this is."""
        if self.driver != "systemd":
            return f"/{self.name}/kubepods/burstable/{self.pod_name(uid)}"
        path, unit = f"/{self.name}", self._slice
        for part in ("kubepods", "burstable", self.pod_name(uid)):
            unit += f"-{part}"
            path += f"/{unit}.slice"
        return path

    def of_container(self, uid: str, identity: str) -> str:
        """The path of a container's cgroup in a pod, as containerd names it."""
        name = f"cri-containerd-{identity}.scope" if self.driver == "systemd" else identity
        return f"{self.of_pod(uid)}/{name}"

    def pod_name(self, uid: str) -> str:
        """What is in the names of a pod's cgroups and of no other's."""
        return f"pod{uid.replace('-', '_')}" if self.driver == "systemd" else f"pod{uid}"

    def paths(self) -> list[Path]:
        """Those that exist."""
        return [path for path in {place / self.name for place in hierarchies().values()} if path.is_dir()]

    def below(self, name: str = "") -> list[Path]:
        """All cgroups below, the deepest first, whose path has this word in it."""
        found = {Path(folder) for path in self.paths() for folder, _, _ in os.walk(path) if name in folder}
        return sorted(found, key=lambda path: -len(path.parts))

    def processes(self, name: str = "") -> list[int]:
        """Those in the cgroups below that have this word in their path."""
        return processes_in(self.below(name))

    def thaw(self, name: str = "") -> None:
        """Thaw the cgroups below that have this word in their path."""
        for path in reversed(self.below(name)):
            for control, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (file := path / control).exists():
                    try:
                        file.write_text(word)
                    except OSError:
                        continue  # removed meanwhile

    def end(self, name: str = "") -> None:
        """End the processes in the cgroups below that have this word in their path."""

        def gone() -> bool:
            self.thaw(name)
            pids = self.processes(name)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return not pids

        until(gone, f"no process is left in {self.name}", every=0.02)

    def remove(self, name: str = "") -> None:
        """Remove the cgroups that have this word in their path; by now they should be empty."""

        def gone() -> bool:
            for path in self.below(name):
                try:
                    path.rmdir()
                except OSError:
                    continue  # a process that has ended may need a moment to leave
            return not self.below(name)

        until(gone, f"the cgroups of {self.name} are removed, but {self.below(name)} are there still")

    def close(self) -> None:
        """End every process below, and remove all of it."""
        self.end()
        if self.driver == "systemd":
            subprocess.run(["systemctl", "stop", self.name], check=True, capture_output=True, timeout=60)
        self.remove()
