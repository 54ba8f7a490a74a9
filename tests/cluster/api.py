"""The cluster's API, by JSON and paths, as its administrator; and kubectl, as its users know it."""

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

Json = Any


class Api:
    """Speaks to the API server at this URL. Errors are ``httpx.HTTPStatusError``."""

    def __init__(self, server: str, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        known = json.loads(kubeconfig.read_text())
        user = known["users"][0]["user"]
        trusted = ssl.create_default_context(cafile=known["clusters"][0]["cluster"]["certificate-authority"])
        trusted.load_cert_chain(user["client-certificate"], user["client-key"])
        self._server = server
        self._trusted = trusted
        self._of_thread = threading.local()

    @property
    def _client(self) -> httpx.Client:
        """Each thread has its own: connections that one closes are not another's to read from."""
        if not hasattr(self._of_thread, "client"):
            client = httpx.Client(base_url=self._server, verify=self._trusted, timeout=30, trust_env=False)
            self._of_thread.client = client
        made: httpx.Client = self._of_thread.client
        return made

    def call(self, method: str, path: str, body: Json = None, kind: str = "application/json") -> Json:
        """One call; what is answered."""
        content = None if body is None else json.dumps(body)
        response = self._client.request(method, path, content=content, headers={"Content-Type": kind})
        if response.is_error:
            raise httpx.HTTPStatusError(
                f"{method} {path}: {response.status_code} {response.text}", request=response.request, response=response
            )
        return (
            response.json()
            if response.headers.get("Content-Type", "").startswith("application/json")
            else response.text
        )

    def get(self, path: str) -> Json:
        """An object or a list."""
        return self.call("GET", path)

    def find(self, path: str) -> Json:
        """An object, or None if there is none."""
        try:
            return self.get(path)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise

    def post(self, path: str, body: Json) -> Json:
        """Create an object."""
        return self.call("POST", path, body)

    def patch(self, path: str, body: Json) -> Json:
        """Merge into an object."""
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def apply(self, path: str, body: Json) -> Json:
        """Make an object be as this says, whether it is there or not (server-side apply)."""
        return self.call("PATCH", f"{path}?fieldManager=test&force=true", body, "application/apply-patch+yaml")

    def delete(self, path: str) -> Json:
        """Have an object deleted."""
        return self.call("DELETE", path)

    def is_ready(self) -> bool:
        """Whether the API server is up, with all that it starts with."""
        try:
            return self._client.get("/readyz").is_success
        except httpx.HTTPError:
            return False

    def watch(self, path: str, seconds: int = 300) -> Iterator[tuple[str, Json]]:
        """What becomes of the objects of a path, from those that are there on: ``ADDED``, ``MODIFIED``, ``DELETED``.

        It may end earlier, when the API server has lost the thread.
        """
        path += f"{'&' if '?' in path else '?'}watch=true&timeoutSeconds={seconds}"
        with self._client.stream("GET", path, timeout=seconds + 10) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]

    def kubectl(self, *arguments: str | Path, given: str | None = None, within: float = 60) -> str:
        """kubectl; what it prints. ``AssertionError`` with what it complained of if it fails."""
        done = self.try_kubectl(*arguments, given=given, within=within)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr or done.stdout}"
        return done.stdout

    def try_kubectl(
        self, *arguments: str | Path, given: str | None = None, within: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """kubectl, whatever comes of it."""
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *map(str, arguments)]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=within)


def condition(thing: Json, kind: str) -> str:
    """``True``, ``False``, ``Unknown``, or empty when the object has no such condition yet."""
    found = [each["status"] for each in thing.get("status", {}).get("conditions") or () if each["type"] == kind]
    return found[0] if found else ""


def ready(thing: Json) -> bool:
    """Whether it says so, of what it is now."""
    seen = thing.get("status", {}).get("observedGeneration", thing["metadata"].get("generation"))
    return condition(thing, "Ready") == "True" and seen == thing["metadata"].get("generation", seen)


def await_all(what: str, look: Callable[[], dict[str, bool]], within: float) -> None:
    """Return when all of these are true; the error names those that are not."""
    deadline = time.monotonic() + within
    while not all((seen := look()).values()):
        assert time.monotonic() < deadline, (
            f"{what}: not within {within:.0f} s: {[name for name in seen if not seen[name]]}"
        )
        time.sleep(0.1)
