"""``freeze-proxy daemon`` as a node runs it: a supervised process, on ports and in a state folder of the test's own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.support.ports import LOOPBACK
from tests.support.wait import FACTOR, until

ROOT = Path(__file__).parents[2]


class Answered(NamedTuple):
    """What the daemon answered."""

    status: int
    facts: dict[str, Any]

    @property
    def error(self) -> str:
        return str(self.facts["error"])

    @property
    def states(self) -> dict[str, str]:
        """State by container name."""
        return {container["name"]: container["state"] for container in self.facts["containers"]}


class Control:
    """One control connection, as a sidecar keeps it. ``send`` and ``hear`` apart pipeline."""

    def __init__(self, port: int, within: float = 20.0, host: str = LOOPBACK) -> None:
        self._socket = socket.create_connection((host, port), within)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = self._socket.makefile("rb")

    def send(self, path: str, token: str | None, lease: bool = True, body: Any = None, method: str = "POST") -> None:
        """A request; ``body`` is sent as JSON, bytes as they are."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Length: {len(data)}\r\n"
        head += f"Token: {token}\r\n" if token is not None else ""
        head += "Lease: connection\r\n" if lease else ""
        self._socket.sendall(head.encode() + b"\r\n" + data)

    def hear(self) -> Answered:
        """The next answer."""
        line = self._heard.readline()
        if not line:
            raise ConnectionError("The daemon has closed the connection.")
        fields = http.client.parse_headers(self._heard)
        return Answered(int(line.split()[1]), json.loads(self._heard.read(int(fields["Content-Length"]))))

    def call(self, path: str, token: str | None, lease: bool = True, body: Any = None) -> Answered:
        """A request and its answer."""
        self.send(path, token, lease, body)
        return self.hear()

    def close(self) -> None:
        """Closes it."""
        self._heard.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Daemon:
    """A daemon process below its supervisor, to be used in a ``with``: listening when that is entered."""

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path | str,
        runtime_socket: Path | str,
        *options: str,
        port: int = 0,
        prefix: Iterable[str] = (),
        host: str = LOOPBACK,
    ) -> None:
        self.folder = folder
        self.host = host
        self.state = folder / "state"
        self._log = folder / "daemon.log"
        self._options = [
            *("--kubeconfig", str(kubeconfig), "--runtime-socket", str(runtime_socket)),
            *("--state-dir", str(self.state), "--health-listen", f"{LOOPBACK}:0", "--log-level", "debug"),
            *([] if FACTOR == 1 else ["--freeze-timeout", f"{2 * FACTOR:g}s"]),
            *options,
        ]
        self._wanted = port
        self._prefix = list(prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.health_port = 0

    def start(self) -> Self:
        """Start it, for the first time or again, and wait until it listens. Again, it is at the same port."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        before = len(self.events("the daemon has started"))
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self._prefix, sys.executable, "-m", "freeze_proxy", "daemon"),
                    *("--listen", f"{self.host}:{self.port or self._wanted}", *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        process = self.process

        def started() -> bool:
            assert process.poll() is None, self.log()
            return len(self.events("the daemon has started")) > before

        until(started, "the daemon has started", within=30.0)
        facts = self.events("the daemon has started")[-1]
        self.port = int(facts["listen"].rpartition(":")[2])
        self.health_port = int(facts["health"].rpartition(":")[2])
        return self

    @property
    def supervisor(self) -> int:
        """The supervisor's PID."""
        assert self.process is not None
        return self.process.pid

    @property
    def pid(self) -> int:
        """The PID of the daemon proper."""
        return int(Path(f"/proc/{self.supervisor}/task/{self.supervisor}/children").read_text().split()[0])

    def log(self) -> str:
        """All that it has said so far, of all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its log lines about an event."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("{"):
                facts = json.loads(line)
                if facts["event"] == event:
                    found.append(facts)
        return found

    def control(self) -> Control:
        """A connection to it."""
        return Control(self.port, host=self.host)

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Something of its health port."""
        connection = http.client.HTTPConnection(LOOPBACK, self.health_port, timeout=20)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """The value of a line of its metrics, 0 where there is none."""
        for found in self.ask("/metrics")[1].splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def end(self, by: int = signal.SIGTERM, within: float = 20.0) -> int:
        """Send the supervisor a signal; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(by)
        return self.process.wait(within)

    def kill_both(self) -> None:
        """SIGKILL to daemon and supervisor, with nothing in between."""
        assert self.process is not None
        child = self.pid
        os.kill(self.supervisor, signal.SIGSTOP)  # so that it cannot act on its child's death
        os.kill(child, signal.SIGKILL)
        os.kill(self.supervisor, signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            try:
                self.end()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise
        if kind is not None:
            print(self.log()[-8000:], file=sys.stderr)
