"""Daemons that tests start: their beginning, their end, and what they leave in the machine."""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.wait import until

_LAZY = 2  # MNT_DETACH


class Daemon:
    """A program that serves on a unix socket, with its log in a file."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, ready: Callable[[], bool]) -> None:
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} has not been started"
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it serves."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(self._is_ready, f"{self.name} serves", within=30, every=0.02)
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def _is_ready(self) -> bool:
        last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        assert self.running, f"{self.name} has ended instead of serving:\n{last}"
        return self._ready()

    def end(self, by: int = signal.SIGTERM) -> None:
        """End it by this signal, and wait until it has ended."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(by)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait(5)


def processes_with(word: str) -> list[int]:
    """The processes in whose command line this stands."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                line = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if word.encode() in line:
                found.append(int(entry))
    return found


def mounts_below(folder: Path) -> list[str]:
    """What is mounted below a folder, the last first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [where for where in (line.split()[4] for line in reversed(lines)) if where.startswith(f"{folder}/")]


def end_processes_with(word: str) -> None:
    """SIGKILL to the processes in whose command line this stands, until there is none."""

    def gone() -> bool:
        pids = processes_with(word)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids

    until(gone, f"no process with {word} in its command line is left", every=0.02)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is mounted below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for where in mounts_below(folder):
        libc.umount2(where.encode(), _LAZY)
    assert not mounts_below(folder), f"still mounted: {mounts_below(folder)}"

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(gone, f"{folder} is removed")  # what has just been ended may have begun to clean up itself
