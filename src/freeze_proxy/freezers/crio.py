"""Freezing a container through CRI-O's own HTTP endpoints, on the socket at which it also serves CRI.

``GET /pause/ID`` and ``GET /unpause/ID`` answer 200, 404 for a container that is not there, and 409, with the state
that it is in, for one in no state for it. ``GET /containers/ID`` gives the PID and no state (server/inspect.go of
CRI-O). So what this freezer has done itself is remembered, and the kernel is believed where the cgroup can be seen.
"""

from urllib.parse import quote

from freeze_proxy.freezers import FreezeError, Gone, places, processes
from freeze_proxy.freezers.runtime import Refused, RuntimeFreezer, Seen
from freeze_proxy.freezers.unix_http import UnixHttp

SOCKET = "/run/crio/crio.sock"
"""Where CRI-O listens by default."""


class CrioFreezer(RuntimeFreezer):
    """Pauses a container of the CRI-O that listens at ``socket``."""

    kind = "crio"
    runtime = "CRI-O"

    def __init__(self, socket: str, container_id: str) -> None:
        super().__init__(container_id)
        self.where = f"the container {container_id}"
        self.way = (self.kind, socket, container_id)
        self._paused = False
        self._http = UnixHttp(self.runtime, socket)

    def close(self) -> None:
        """Gives the connection back."""
        self._http.close()

    def _pause(self) -> None:
        self._order("pause", "paused")
        self._paused = True

    def _resume(self) -> None:
        self._order("unpause", "running")
        self._paused = False

    def _look(self) -> Seen:
        answer = self._http.ask("GET", f"/containers/{quote(self._id, safe='')}")
        if answer.status_code == 404:
            raise Gone(f"CRI-O knows of no container {self._id}.")
        try:
            pid = int(answer.json()["pid"]) if answer.status_code == 200 else -1
        except (ValueError, KeyError, TypeError):
            pid = -1
        if pid < 0:
            raise FreezeError(f"CRI-O does not say how {self.where} is: {answer.text.strip()[:500]}.")
        if not pid or not places.holds(pid, self._id) or processes.state(pid) == "Z":
            # CRI-O goes on to give the PID of one that has ended.
            raise Gone(f"The container {self._id} does not run.")
        return Seen(pid, self._paused)

    def _order(self, what: str, wanted: str) -> None:
        answer = self._http.ask("GET", f"/{what}/{quote(self._id, safe='')}")
        said = answer.text.strip()[:500].rstrip(".")
        if answer.status_code == 404:
            raise Gone(f"CRI-O knows of no container {self._id}.")
        if answer.status_code == 409:
            state = said.rpartition(" ")[2]
            self._paused = state == "paused"
            if state == "stopped":
                raise Gone(f"The container {self._id} does not run.")
        if answer.status_code != 200:
            raise Refused(f"{said or answer.status_code}.")
