"""A freezer made again, in another process, from what ``Freezer.way`` says of it."""

from collections.abc import Callable

from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.freezers.cgroup import Cgroup1Freezer, Cgroup2Freezer, ThrottleFreezer


def _containerd(*way: str) -> Freezer:
    from freeze_proxy.freezers.containerd import ContainerdFreezer

    return ContainerdFreezer(*way)


def _docker(*way: str) -> Freezer:
    from freeze_proxy.freezers.docker import DockerFreezer

    return DockerFreezer(*way)


def _crio(*way: str) -> Freezer:
    from freeze_proxy.freezers.crio import CrioFreezer

    return CrioFreezer(*way)


_KINDS: dict[str, Callable[..., Freezer]] = {
    "cgroup2": Cgroup2Freezer,
    "cgroup1": Cgroup1Freezer,
    "throttle": ThrottleFreezer,
    "containerd": _containerd,
    "docker": _docker,
    "crio": _crio,
}


def remade(way: list[str]) -> Freezer:
    """The freezer with this ``way``: its kind, and what its class is made from. Raises ``FreezeError``."""
    kind, *rest = way or [""]
    make = _KINDS.get(kind)
    if make is None or not all(isinstance(word, str) for word in way):
        raise FreezeError(f"There is no way to freeze called {kind!r}.")
    try:
        return make(*rest)
    except TypeError as error:
        raise FreezeError(f"{way} does not say what is to be thawed.") from error
