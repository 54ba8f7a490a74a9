"""``freeze-proxy sidecar`` as a process, on ports of the test's own."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
from typing import Any, Self

from tests.support.ports import LOOPBACK, free_port
from tests.support.wait import until

NONCE = "a-nonce"


class Sidecar:
    """A process, to be used in a ``with``. ``log``: what it has said, parsed."""

    def __init__(self, target: int, **variables: str) -> None:
        self.port, self.admin = free_port(), free_port()
        self.log: list[dict[str, Any]] = []
        told = {
            "TARGET": f"{LOOPBACK}:{target}",
            "LISTEN": f"{LOOPBACK}:{self.port}",
            "ADMIN": f"{LOOPBACK}:{self.admin}",
            "DAEMON": f"{LOOPBACK}:{free_port()}",
            "TOKEN_FILE": "/nonexistent",
            "READINESS_PROBE": json.dumps({"httpGet": {"path": "/ready", "port": 0}, "periodSeconds": 0}),
            "NONCE": NONCE,
            "DRAIN_QUIET": "200ms",
            "GRACE": "20ms",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "freeze_proxy", "sidecar"],
            env={f"FREEZE_PROXY_{name}": value for name, value in (told | variables).items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def __enter__(self) -> Self:
        until(lambda: self.said("serving") or self.process.poll() is not None, "it serves")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        print(*self.log, sep="\n")  # shown where the test has failed

    def said(self, part: str) -> list[dict[str, Any]]:
        return [line for line in self.log if part in line["message"]]

    def get(self, path: str, port: int | None = None, timeout: float = 5) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOOPBACK, port or self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def ask(self, path: str) -> tuple[int, str]:
        return self.get(path, self.admin)

    def end(self, by: int = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(timeout=10)
