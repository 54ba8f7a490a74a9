"""``freeze-proxy run`` as a user runs it: a process with a server behind it, whose words are read as they come."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support.ports import LOOPBACK, free_port
from tests.support.wait import PATIENCE, until

ROOT = Path(__file__).parents[2]
START_PATIENCE = 30.0

Event = dict[str, Any]


def _environment() -> dict[str, str]:
    """So that servers written here can import each other, whatever directory they run in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def processes_below(pid: int) -> list[int]:
    """Its descendants, as /proc has them now."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue  # ended meanwhile
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        here = children.get(todo.pop(), [])
        found += here
        todo += here
    return found


def process_state(pid: int) -> str:
    """The letter in /proc/PID/stat, or nothing where there is no such process."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Running:
    """freeze-proxy with ``command`` behind it, to be used in a ``with``: from its start event to its end.

    Behind it, or beside it: ``way`` says whether the server is reached through the relay, or is ambient.
    ``end`` gives the report. Leaving the ``with`` ends it too, and fails if it would not end or if it has died before.
    """

    host = LOOPBACK
    way = "relay"

    def __init__(
        self, tmp_path: Path, command: Sequence[str | Path], *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        door = ["--listen", f"{LOOPBACK}:0"] if self.way == "relay" else ["--ambient", "--port", str(free_port())]
        self._report = tmp_path / f"report-{time.monotonic_ns()}.json"
        self._out: IO[bytes] = open(tmp_path / f"out-{time.monotonic_ns()}.txt", "w+b")  # noqa: SIM115 - closed in __exit__
        self.events: list[Event] = []
        self.other_lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "freeze_proxy", "run"),
                *(*door, "--log-format", "json", "--report", str(self._report)),
                *options,
                "--",
                *map(str, command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.PIPE,
            env={**_environment(), **(environment or {})},
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="events", daemon=True)
        self._ended = False

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            event = None
            if line.startswith("{"):
                try:
                    event = json.loads(line)
                except ValueError:
                    pass  # a line of the server's that looks like ours
            with self._news:
                if isinstance(event, dict) and "event" in event:
                    self.events.append(event)
                else:
                    self.other_lines.append(line)
                self._news.notify_all()

    def __enter__(self) -> Self:
        self._reader.start()
        try:
            start = self.await_event("start", within=START_PATIENCE)
        except BaseException:
            self._kill()
            raise
        self.port = int(start["listen"].rpartition(":")[2])
        self.target = int(start["target"].rpartition(":")[2])
        self.pid: int = start["pid"]
        self.freezer: str = start["freezer"]
        self.where: str = start["where"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._ended:
                died = self._process.poll() is not None
                self.end()
                assert kind is not None or not died, f"It ended by itself: {self.events[-1:]} {self.other_lines[-20:]}"
        finally:
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        self._out.close()

    @property
    def address(self) -> str:
        """Where clients come in."""
        return f"{self.host}:{self.port}"

    # Words.

    def mark(self) -> int:
        """How many events there have been."""
        with self._news:
            return len(self.events)

    def await_event(self, name: str, since: int = 0, within: float = PATIENCE) -> Event:
        """The first event of this name after the first ``since`` events."""
        deadline = time.monotonic() + within
        with self._news:
            while True:
                for event in self.events[since:]:
                    if event["event"] == name:
                        return event
                left = deadline - time.monotonic()
                assert left > 0, f"No event {name!r} within {within} s; {self.events[-3:]} {self.other_lines[-20:]}"
                if self._process.poll() is not None and not self._reader.is_alive():
                    raise AssertionError(f"It has ended: {self.events[-3:]} {self.other_lines[-20:]}")
                self._news.wait(min(left, 0.2))

    def count(self, name: str) -> int:
        with self._news:
            return sum(event["event"] == name for event in self.events)

    def stdout(self) -> bytes:
        """What the server has written to its standard output."""
        return Path(self._out.name).read_bytes()

    # The kernel's word.

    def processes(self) -> list[int]:
        """The server's processes."""
        return [self.pid, *processes_below(self.pid)]

    def is_frozen(self) -> bool:
        """Whether the kernel says that the server stands still."""
        if self.freezer == "cgroup2":
            return "frozen 1" in Path(self.where, "cgroup.events").read_text().splitlines()
        if self.freezer == "cgroup1":
            return Path(self.where, "freezer.state").read_text().strip() == "FROZEN"
        if self.freezer == "throttle":
            for quota in ("cpu.max", "cpu.cfs_quota_us"):
                if (path := Path(self.where, quota)).exists():
                    return path.read_text().split()[0] not in ("max", "-1")
        assert self.freezer == "process", self.freezer
        return all(process_state(pid) == "T" for pid in self.processes())

    def await_frozen(self, within: float = PATIENCE) -> None:
        until(self.is_frozen, f"the kernel says that {self.where} is frozen", within, every=0.002)

    def await_awake(self, within: float = PATIENCE) -> None:
        until(lambda: not self.is_frozen(), f"the kernel says that {self.where} runs", within, every=0.002)

    def cpu_seconds(self) -> float:
        """What the server's processes have used so far."""
        ticks = 0
        for pid in self.processes():
            try:
                fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def relay_memory(self) -> int:
        """The most bytes that freeze-proxy's own process has had in memory so far."""
        for line in Path("/proc", str(self._process.pid), "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("There is no VmHWM.")

    # The end.

    def terminate(self) -> None:
        self._process.terminate()

    def end(self) -> Event:
        """SIGTERM; returns the report."""
        self._ended = True
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"It does not end after SIGTERM: {self.events[-3:]} {self.other_lines[-20:]}"
            ) from None
        self._reader.join(PATIENCE)
        if self.freezer in ("cgroup1", "cgroup2", "throttle"):
            assert not os.path.exists(self.where), f"{self.where} is left behind"
        report: Event = json.loads(self._report.read_text())
        return report


class Beside(Running):
    """With nothing before the server."""

    way = "ambient"


class Direct:
    """A server without anything before it, to be used in a ``with``."""

    host = LOOPBACK

    def __init__(self, command: Sequence[str | Path], port: int, ready: Callable[[int], None]) -> None:
        self.port = port
        self._ready = ready
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**_environment(), "PORT": str(port)},
        )

    def __enter__(self) -> Self:
        try:
            self._ready(self.port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        below = processes_below(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in below:
            until(lambda pid=pid: process_state(pid) in ("", "Z"), f"process {pid} has ended")  # type: ignore[misc]
