"""Processes of the benchmark's own that take a file, and speak lines of JSON."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.machine import ROOT, BenchError, running

Json = dict[str, Any]


class Helper:
    """One such process. ``name`` is what it is called in an error."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name
        self._unread = b""

    def hear(self, seconds: float) -> Json:
        """What it says next; raises ``BenchError`` if it says nothing for so long, or has ended."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BenchError(f"The benchmark's {self._name} has said nothing for {seconds:g} s.")
            more = os.read(fd, 1 << 20)
            if not more:
                raise BenchError(f"The benchmark's {self._name} has ended; see what it said above.")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        said: Json = json.loads(line)
        return said

    def until(self, key: str, seconds: float) -> Iterator[Json]:
        """What it says, up to and with the first that has this key."""
        while True:
            said = self.hear(seconds)
            yield said
            if key in said:
                return

    def go(self) -> None:
        """A line on its standard input, which it waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def leave(self, seconds: float) -> None:
        """End its standard input, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(seconds)


@contextlib.contextmanager
def helper(module: str, folder: Path, spec: Json, core: int | None = None) -> Iterator[Helper]:
    """``python -m MODULE SPEC.json``, on one core if given; it is ended on leaving."""
    name = module.rpartition(".")[2]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(spec))
    command, pipe = [sys.executable, "-m", module, str(file)], subprocess.PIPE
    with running(command, core=core, stdin=pipe, stdout=pipe, bufsize=0, cwd=ROOT) as process:
        yield Helper(process, name)
