"""What the node itself knows of a pod: whether a container is frozen, what it has printed, what it costs."""

import re
import time
from pathlib import Path
from typing import Any

from tests.cluster.api import Json
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

    def _file(self, hierarchy: str, name: str, below: str) -> Path:
        found = list(Path("/sys/fs/cgroup", hierarchy, self._cgroup, "kubepods").glob(f"{below}/{name}"))
        assert found, f"{self.pod} has no {name} on this node: is {self.name} gone?"
        return found[0]

    @property
    def frozen(self) -> bool:
        """Whether the kernel says so; a container that is gone is not."""
        if self._state is None:
            v1 = Path("/sys/fs/cgroup/freezer").exists()
            self._state = self._file(*(("freezer", "freezer.state") if v1 else ("", "cgroup.events")), self._below)
        try:
            text = self._state.read_text()
        except FileNotFoundError:
            return False
        return text == "FROZEN\n" or "frozen 1" in text

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
        """The times at which the tests' server ticked, in seconds since 1970."""
        found = (re.fullmatch(r"tick at (\d+)", line) for line in self.lines())
        return [int(match[1]) / 1000 for match in found if match]

    def cpu(self) -> float:
        """Seconds of CPU that the whole pod has had."""
        if Path("/sys/fs/cgroup/cpuacct").exists():
            return int(self._file("cpuacct", "cpuacct.usage", f"**/pod{self._uid}").read_text()) / 1e9
        text = self._file("", "cpu.stat", f"**/pod{self._uid}").read_text()
        return int(text.split()[1]) / 1e6

    def memory(self) -> int:
        """Bytes that this container has for itself: what its processes have written, without caches of files."""
        v1 = Path("/sys/fs/cgroup/memory").exists()
        text = self._file("memory" if v1 else "", "memory.stat", self._below).read_text()
        values: dict[str, Any] = dict(line.split() for line in text.splitlines())
        return int(values["rss" if v1 else "anon"])


def silent(container: Container, seconds: float) -> bool:
    """Whether it ticks no more from now on: it watches for so long."""
    time.sleep(0.3)  # what it printed last may be on the way to its file
    before = len(container.ticks())
    time.sleep(seconds)
    return len(container.ticks()) == before
