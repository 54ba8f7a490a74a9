"""Freezing a container through Docker's Engine API: ``docker pause`` and ``docker unpause``."""

from typing import Any
from urllib.parse import quote

from freeze_proxy.freezers import FreezeError, Gone
from freeze_proxy.freezers.runtime import Refused, RuntimeFreezer, Seen
from freeze_proxy.freezers.unix_http import UnixHttp

SOCKET = "/run/docker.sock"
"""Where Docker listens by default."""


class DockerFreezer(RuntimeFreezer):
    """Pauses a container of the Docker that listens at ``socket``; ``container`` is its id or name."""

    kind = "docker"
    runtime = "Docker"

    def __init__(self, socket: str, container: str) -> None:
        super().__init__(container)  # until Docker has told the id that goes with a name
        self._container = container
        self.where = f"the container {container}"
        self.way = (self.kind, socket, container)
        self._path = f"/containers/{quote(container, safe='')}"
        self._http = UnixHttp(self.runtime, socket)

    def running(self) -> tuple[str, int]:
        """Its id, and the PID of its main process."""
        seen = self._seen()
        return self._id, seen.pid

    def _about(self) -> dict[str, Any]:
        answer = self._http.ask("GET", f"{self._path}/json")
        if answer.status_code == 404:
            raise Gone(f"Docker knows of no container {self._container}.")
        try:
            if answer.status_code == 200 and isinstance(about := answer.json(), dict):
                return about
        except ValueError:
            pass
        raise FreezeError(f"Docker does not say how {self.where} is: {_message(answer)}")

    def close(self) -> None:
        """Gives the connection back."""
        self._http.close()

    def _pause(self) -> None:
        self._order("pause")

    def _resume(self) -> None:
        self._order("unpause")

    def _look(self) -> Seen:
        about = self._about()
        self._id, state = about.get("Id", self._id), about.get("State") or {}
        if not state.get("Running") or not state.get("Pid"):
            raise Gone(f"{self.where[0].upper()}{self.where[1:]} does not run: Docker has it as {state.get('Status')}.")
        return Seen(int(state["Pid"]), bool(state.get("Paused")))

    def _order(self, what: str) -> None:
        answer = self._http.ask("POST", f"{self._path}/{what}")
        if answer.status_code == 404:
            raise Gone(f"Docker knows of no container {self._container}.")
        if answer.status_code != 204:
            raise Refused(_message(answer))


def _message(answer: Any) -> str:
    """The text of an error; Docker gives it as JSON."""
    try:
        text = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        text = answer.text or f"status {answer.status_code}"
    return f"{text.strip().rstrip('.')[:500]}."
