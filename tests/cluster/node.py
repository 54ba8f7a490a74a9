"""What the node itself knows of a pod: whether a container is frozen, what it has printed, what it costs."""

import re
import time
from pathlib import Path
from typing import Any

from tests.cluster.api import Json
from tests.support.cluster.cgroups import hierarchies
from tests.support.wait import until

USER = "user-container"
SIDECAR = "freeze-proxy"
QUEUE = "queue-proxy"


def statuses(pod: Json) -> dict[str, Json]:
    """The statuses of its containers, native sidecars among them, by name."""
    status = pod["status"]
    listed = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return {each["name"]: each for each in listed}


class Container:
    """A container of a pod, as the kernel and the kubelet's files show it."""

    def __init__(self, cgroup: str, pod: Json, name: str = USER) -> None:
        self.pod: str = pod["metadata"]["name"]
        self.name = name
        self._uid: str = pod["metadata"]["uid"]
        identity = statuses(pod)[name]["containerID"].partition("://")[2]
        self._cgroup = cgroup
        self._below = f"**/pod{self._uid}/{identity}"
        self._state: Path | None = None

    def _file(self, below: str, **names: str) -> Path:
        """The first that is there of these files of its cgroup, by v1 controller or ``v2``."""
        for hierarchy, name in names.items():
            mounted = hierarchies().get("" if hierarchy == "v2" else hierarchy)
            found = list((mounted / self._cgroup / "kubepods").glob(f"{below}/{name}")) if mounted else []
            if found:
                return found[0]
        raise AssertionError(f"{self.pod} has none of {names} on this node: is {self.name} gone?")

    @property
    def frozen(self) -> bool:
        """Whether the kernel says so; a container that is gone is not."""
        if self._state is None:
            self._state = self._file(self._below, freezer="freezer.state", v2="cgroup.events")
        try:
            text = self._state.read_text()
        except FileNotFoundError:
            return False
        return text == "FROZEN\n" or "frozen 1" in text

    @property
    def in_cgroup2(self) -> bool:
        """Whether it is cgroup2 by which it is frozen, for once it was seen to be."""
        return self._state is not None and self._state.name == "cgroup.events"

    def await_frozen(self, within: float = 10) -> None:
        """Return when it is."""
        until(lambda: self.frozen, f"{self.pod} is frozen", within, every=0.02)

    def await_awake(self, within: float = 10) -> None:
        """Return when it is not frozen."""
        until(lambda: not self.frozen, f"{self.pod} is awake", within, every=0.005)

    def lines(self) -> list[str]:
        """What it printed, from the file in which the kubelet keeps it."""
        files = sorted(Path("/var/log/pods").glob(f"*_{self._uid}/{self.name}/*.log"))
        return [line.split(" ", 3)[3] for file in files for line in file.read_text().splitlines()]

    def ticks(self) -> list[float]:
        """The times at which it ticked, in seconds: the tests' server's since 1970, sleeptalker's by another clock."""
        found = (re.match(r"tick(?: \d+)? at ([\d.]+)", line) for line in self.lines())
        return [float(match[1]) / (1 if "." in match[1] else 1000) for match in found if match]

    def cpu(self) -> float:
        """Seconds of CPU that the whole pod has had."""
        file = self._file(f"**/pod{self._uid}", cpuacct="cpuacct.usage", v2="cpu.stat")
        text = file.read_text()
        return int(text.split()[1]) / 1e6 if file.name == "cpu.stat" else int(text) / 1e9

    def memory(self) -> int:
        """Bytes that this container has for itself: what its processes have written, without caches of files."""
        text = self._file(self._below, memory="memory.stat", v2="memory.stat").read_text()
        values: dict[str, Any] = dict(line.split() for line in text.splitlines())
        return int(values["rss"] if "rss" in values else values["anon"])


def silent(container: Container, seconds: float) -> bool:
    """Whether it ticks no more from now on: it watches for so long."""
    time.sleep(0.3)  # what it printed last may be on the way to its file
    before = len(container.ticks())
    time.sleep(seconds)
    return len(container.ticks()) == before
