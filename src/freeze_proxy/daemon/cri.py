"""What the container runtime knows of pods, by CRI v1 over its unix socket."""

from dataclasses import dataclass
from typing import Protocol


class RuntimeAway(Exception):
    """The runtime cannot be asked; the text is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running container: its id, its name in the pod, the PID of its main process."""

    id: str
    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod on this node with its running containers; ``settled`` unless one has been created and not begun to run."""

    uid: str
    namespace: str
    name: str
    containers: tuple[Running, ...]
    settled: bool = True


class Lister(Protocol):
    """Knows pods."""

    async def containers_of(self, uid: str) -> Sandbox | None:
        """The pod with this UID; ``None`` if there is none that runs. Raises ``RuntimeAway``."""
