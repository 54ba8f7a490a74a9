"""Freezing by asking a container runtime: what those have in common.

Runtimes refuse to pause what is paused already, and to resume what runs. So an order that is refused is looked into: if
things are as they were ordered to be, all is well. A runtime believes what it remembers, not what the kernel does. A
container that was paused in one way and thawed in another is therefore compared with its cgroup, where that can be
seen, and is reported with what to do about it.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from freeze_proxy.freezers import FreezeError, Freezer, Gone, cgroup, places, processes

PATIENCE = 5.0
"""Seconds after which a call to a runtime is given up."""
EXTRA = "pip install 'freeze-proxy[cluster]'"
"""What installs the libraries that speak to runtimes."""


class Refused(FreezeError):
    """The runtime has understood, and does not do it; the text is its own."""


class Seen(NamedTuple):
    """What a runtime says of a running container: its main process as this machine numbers it, whether it is paused."""

    pid: int
    paused: bool


class RuntimeFreezer(Freezer):
    """Pauses and resumes one container through ``runtime``, as which it is spoken of."""

    quick = False
    runtime = ""

    def __init__(self, id: str) -> None:
        """``id`` is the container's, by which its cgroup is known."""
        self._id = id
        self._pid: int | None = None

    def knows(self, pid: int) -> None:
        """Its main process, for a freezer that may have to do without the runtime's word."""
        self._pid = pid

    # What each runtime is asked. All raise ``FreezeError``: ``Refused`` where it answers no, ``Gone`` where the
    # container is not there or does not run.

    def _pause(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _look(self) -> Seen:
        raise NotImplementedError

    # What is made of it.

    def freeze(self) -> bool:
        """It is done when the runtime has answered."""
        try:
            self._pause()
        except Refused as no:
            seen = self._seen()
            where, frozen = self._cgroup(seen.pid)
            if seen.paused and frozen is False:
                raise FreezeError(
                    f"{self.runtime} holds {self.where} for paused, but somebody has thawed its cgroup {where}: freeze "
                    "that again, and resume it where it was paused."
                ) from no
            if not seen.paused:
                raise self._mixed(where, frozen) or FreezeError(
                    f"{self.runtime} does not pause {self.where}: {no}"
                ) from no
        return True

    def thaw(self) -> None:
        """Likewise; whoever paused it."""
        try:
            self._resume_or_see()
        except Gone:
            self._thaw_what_is_left()
            raise

    def _resume_or_see(self) -> None:
        try:
            self._resume()
        except Refused as no:
            seen = self._seen()
            where, frozen = self._cgroup(seen.pid)
            if seen.paused and frozen is not False:
                raise FreezeError(f"{self.runtime} does not resume {self.where}: {no}") from no
            mixed = self._mixed(where, frozen)
            if mixed is not None:
                raise mixed from no

    def still(self) -> bool:
        """Whether the runtime says so, or the kernel, where the cgroup can be seen."""
        seen = self._seen()
        frozen = self._cgroup(seen.pid)[1]
        return seen.paused if frozen is None else frozen

    def frozen(self) -> bool:
        """Whether the runtime says so."""
        return self._seen().paused

    def alive(self) -> bool:
        """Whether the runtime says that it runs, or is paused."""
        try:
            self._seen()
        except Gone:
            return False
        return True

    def cpu_seconds(self) -> float:
        """Summed over the processes in its cgroup, or, where that is out of sight, over its process tree."""
        pid = self._pid or self._seen().pid
        where, _ = self._cgroup(pid)
        members = cgroup.members(where) if where else [pid, *processes.descendants(pid)]
        return sum(processes.cpu_seconds(member) for member in members)

    def _thaw_what_is_left(self) -> None:
        """A runtime that has lost sight of a container, because its shim was killed, say, leaves it frozen for ever."""
        if self._pid is not None and places.holds(self._pid, self._id):
            left = places.by_cgroup(self._id, self._pid, "freeze")
            try:
                left.thaw()
            finally:
                left.close()

    def _seen(self) -> Seen:
        seen = self._look()
        self._pid = seen.pid
        return seen

    def _mixed(self, where: str, frozen: bool | None) -> FreezeError | None:
        if not frozen:
            return None
        return FreezeError(
            f"Somebody has frozen {self.where} through its cgroup {where}, of which {self.runtime} knows nothing: it "
            "must be thawed there first."
        )

    def _cgroup(self, pid: int) -> tuple[str, bool | None]:
        """The cgroup by which its runtime pauses it, and whether the kernel says that it is frozen.

        ``("", None)`` where it cannot be seen, ``None`` also where a v1 freezer stays on its way to a freeze: crun does
        not wait for its end.
        """
        try:
            for hierarchy, file, word in _SAYS:
                where = places.frozen_by_runtime(hierarchy, pid, self._id)
                if where is not None:
                    for _ in range(_MOST_LOOKS):
                        with open(os.path.join(where, file), encoding="ascii") as state:
                            words = state.read().splitlines()
                        if "FREEZING" not in words:
                            return where, word in words
                        time.sleep(_BETWEEN_LOOKS)
                    return where, None
        except (FreezeError, OSError):
            pass
        return "", None


_MOST_LOOKS, _BETWEEN_LOOKS = 50, 0.001
"""Looks at a v1 freezer that is on its way, and seconds between two."""
_SAYS = (
    (places.FREEZER, "freezer.state", "FROZEN"),
    (places.CGROUP2, "cgroup.events", "frozen 1"),
)


class Closable(Protocol):
    """What can be shared."""

    def close(self) -> None:
        """Called when nobody uses it any more."""


T = TypeVar("T", bound=Closable)


class Shared(Generic[T]):
    """One connection for all freezers that ask the same socket; made for the first, closed after the last.

    A forked process makes its own: neither threads nor connections go with it.
    """

    def __init__(self, make: Callable[[str], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users: dict[tuple[int, str], tuple[T, int]] = {}

    def take(self, socket: str) -> T:
        """The one for this socket, to be given back."""
        key = os.getpid(), socket
        with self._lock:
            shared, users = self._users.get(key) or (self._make(socket), 0)
            self._users[key] = shared, users + 1
        return shared

    def give_back(self, socket: str) -> None:
        """One fewer uses it."""
        key = os.getpid(), socket
        with self._lock:
            if key not in self._users:
                return  # it was taken before a fork
            shared, users = self._users.pop(key)
            if users > 1:
                self._users[key] = shared, users - 1
                return
        shared.close()


def unreachable(runtime: str, socket: str, error: BaseException) -> FreezeError:
    """The sentence for a socket at which nobody answers."""
    why: BaseException | None = error
    while why is not None and not (isinstance(why, OSError) and why.errno is not None):
        why = why.__cause__ or why.__context__
    cannot = f"{runtime} cannot be asked"
    if isinstance(why, FileNotFoundError):
        return FreezeError(f"{cannot}: there is no socket {socket}; start it, or say where its socket is.")
    if isinstance(why, ConnectionRefusedError):
        return FreezeError(f"{cannot}: nobody listens at {socket}; start it.")
    if isinstance(why, PermissionError):
        return FreezeError(f"{cannot}: {socket} is not open to this user; run freeze-proxy as one who may use it.")
    if isinstance(error, TimeoutError):
        return FreezeError(f"{cannot}: it has not answered at {socket} within {PATIENCE:g} s.")
    return FreezeError(f"{cannot} at {socket}: {str(why or error) or type(error).__name__}.")
