"""freeze-proxy as a process of its own, for tests in which anything may go wrong: it may not start, be killed, or leave
something behind. ``Proxies`` makes them, and sees to it that nothing outlives the test."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from freeze_proxy.freezers import cgroup
from tests.support.needs import need, need_root
from tests.support.ports import LOOPBACK
from tests.support.running import process_state
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
SERVER = [sys.executable, "-I", "-S", str(ROOT / "tests" / "local" / "server.py")]
FREEZERS = ("cgroup2", "cgroup1", "process")
HIERARCHIES = {"cgroup2": "cgroup2", "cgroup1": "freezer"}
START = 20.0

Event = dict[str, Any]


def need_freezer(kind: str) -> None:
    """What a freezer needs of the machine."""
    if kind in HIERARCHIES:
        need_root()
        place = cgroup.place(HIERARCHIES[kind])
        need(place is not None and os.access(place, os.W_OK), f"There is no writable {kind} hierarchy here.")


def marked(mark: str) -> list[int]:
    """The processes with this mark in their environment, which every child inherits."""
    wanted = f"FREEZE_PROXY_TEST={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue  # gone, or another user's
            if wanted in environment.split(b"\0") and process_state(int(entry)) not in ("", "Z"):
                found.append(int(entry))
    return found


class Proxy:
    """One of them. ``arguments`` are what follows ``freeze-proxy``."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        wrap: Sequence[str] = (),
        python: str = sys.executable,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        **other: Any,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._out, self._err = directory / f"{self.mark}.out", directory / f"{self.mark}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*wrap, python, "-m", "freeze_proxy", *arguments],
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "FREEZE_PROXY_TEST": self.mark, **environment},
                **other,
            )
        self.pid = self.process.pid

    # What it says.

    def out(self) -> str:
        """What COMMAND has written."""
        return self._out.read_text()

    def err(self) -> str:
        """What is on standard error so far."""
        return self._err.read_text()

    def sentence(self) -> str:
        """What it said when it could not go on: one line, and no traceback."""
        said = self.err()
        lines = [line for line in said.splitlines() if line]
        assert len(lines) == 1, said
        assert lines[0].startswith("freeze-proxy: "), said
        assert lines[0].endswith("."), said
        return lines[0].removeprefix("freeze-proxy: ")

    def events(self, name: str | None = None) -> list[Event]:
        """Its JSON lines."""
        lines = [line for line in self.err().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        events: list[Event] = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["event"])]

    def event(self, name: str, number: int = 0, within: float = START) -> Event:
        """The event of this name that comes ``number`` after the first, awaited."""

        def there() -> bool:
            assert self.process.poll() is None or len(self.events(name)) > number, f"It has ended: {self.err()}"
            return len(self.events(name)) > number

        try:
            until(there, f"event {name} number {number}", within)
        except AssertionError as error:
            raise AssertionError(f"{error} {self.err()}") from None
        return self.events(name)[number]

    def say(self, text: str, within: float = START) -> None:
        """Wait until COMMAND has said this."""
        until(lambda: text in self.out(), f"{text!r} in {self.out()!r}", within)

    # The one that was started well.

    @property
    def start(self) -> Event:
        return self.event("start")

    @property
    def port(self) -> int:
        return int(self.start["listen"].rpartition(":")[2])

    @property
    def server(self) -> int:
        """COMMAND's PID."""
        return int(self.start["pid"])

    @property
    def guard(self) -> int:
        return int(self.start["guard"])

    @property
    def where(self) -> str:
        return str(self.start["where"])

    def get(self, path: str = "/", timeout: float = 10.0) -> bytes:
        """The body of the answer to a GET on a connection of its own."""
        client = http.client.HTTPConnection(LOOPBACK, self.port, timeout=timeout)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            assert answer.status == 200, answer.status
            return answer.read()
        finally:
            client.close()

    def servers(self) -> list[int]:
        """All processes of COMMAND."""
        return [pid for pid in marked(self.mark) if pid not in (self.pid, self.guard)]

    def frozen(self) -> bool:
        """Whether the kernel says so."""
        try:
            if self.start["freezer"] == "cgroup2":
                return "frozen 1" in Path(self.where, "cgroup.events").read_text()
            if self.start["freezer"] == "cgroup1":
                return Path(self.where, "freezer.state").read_text() == "FROZEN\n"
        except OSError:
            return False  # removed
        states = [process_state(pid) for pid in self.servers()]
        return bool(states) and all(state in ("T", "") for state in states)

    def await_frozen(self) -> None:
        """Until the kernel says so, and the proxy, which looks a moment later."""

        def said() -> bool:
            moves = [event["event"] for event in self.events() if event["event"] in ("frozen", "thawed")]
            return moves[-1:] == ["frozen"]  # a freeze that is undone half-way is followed by a thaw, too

        until(lambda: self.frozen() and said(), "it is frozen")

    def await_thawed(self, within: float = 1.0) -> None:
        until(lambda: not self.frozen(), "it is thawed", within, every=0.001)

    # Its end.

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, within: float = 10.0) -> int:
        """Its exit code, negative for a signal that ended it."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It does not end: {self.err()}") from None

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        self.assert_nothing_left()
        return code

    def cgroups(self) -> list[str]:
        """Those made for it that are there."""
        parents = [cgroup.place(hierarchy) for hierarchy in ("cgroup2", "freezer", "cpu")]
        paths = [os.path.join(parent, f"freeze-proxy-{self.pid}") for parent in parents if parent is not None]
        return [path for path in paths if os.path.exists(path)]

    def assert_nothing_left(self, within: float = 1.0) -> float:
        """No process and no cgroup is left, or not for longer than this; returns the seconds it took."""
        began = time.monotonic()
        until(lambda: not self.cgroups() and not marked(self.mark), "nothing of it is left", within)
        return time.monotonic() - began

    def clear(self) -> None:
        """End whatever is left, by force."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(AssertionError):
            self.assert_nothing_left(2.0)
            return
        for path in self.cgroups():
            cgroup.kill(path)
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self.cgroups():
            cgroup.remove(path)


class Proxies:
    """Makes them in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Proxy] = []

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None, **how: Any) -> Proxy:
        """freeze-proxy with these arguments."""
        proxy = Proxy(self._directory, arguments, environment or {}, **how)
        self._made.append(proxy)
        return proxy

    def run(self, *words: str, options: Sequence[str] = (), command: Sequence[str] | None = None, **how: Any) -> Proxy:
        """``freeze-proxy run`` before the test server, told these words, or before another command."""
        listen = [] if "--listen" in options else ["--listen", f"{LOOPBACK}:0"]
        grace = [] if "--grace" in options else ["--grace", "20ms"]
        return self.start("run", *listen, *grace, *options, "--", *(command or [*SERVER, *words]), **how)

    def attach(self, *options: str, **how: Any) -> Proxy:
        """``freeze-proxy attach``."""
        listen = [] if "--listen" in options else ["--listen", f"{LOOPBACK}:0"]
        return self.start("attach", *listen, "--grace", "20ms", *options, **how)

    def close(self) -> None:
        for proxy in self._made:
            proxy.clear()
