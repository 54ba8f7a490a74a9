"""What the benchmark asks of the machine: cores, clocks, memory, processes, and what it is all running on."""

import contextlib
import datetime
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE = CORES[0]
LOAD_CORE = CORES[1 % len(CORES)]


class BenchError(Exception):
    """The benchmark cannot go on; its message is one sentence for the user."""


@contextlib.contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Run this thread, and start programs, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_ns(pid: int) -> int:
    """CPU time of a process, all its threads, in nanoseconds: what utime + stime count in ticks of 10 ms."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) gives


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(entry.path, "stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def memory_kib(pid: int) -> dict[str, int]:
    """RSS and PSS of a process in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(value) for name, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.M)}


def busy_ns(core: int) -> tuple[int, int]:
    """Time that a core has worked for anybody, and time that the hypervisor took from it, in nanoseconds."""
    line = next(one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(f"cpu{core} "))
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in line.split()[1:9])
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) * tick, steal * tick


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.005) -> None:
    """Look until it is so; raises ``BenchError`` naming ``what`` after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"Waited {seconds:g} s in vain for {what}.")
        time.sleep(pause)


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextlib.contextmanager
def running(command: Sequence[str], core: int | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Have a program run, on one core if given; it is ended on leaving, by force if it takes more than 5 s."""
    with on_cores(core) if core is not None else contextlib.nullcontext():
        process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def end_on_sigterm() -> None:
    """Make SIGTERM unwind as Ctrl-C does, so that everything that was started is ended."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)


def interpreter() -> str:
    """The interpreter to measure the relay with: the system's, as an image would have it, if it is new enough."""
    system = "/usr/bin/python3"
    if os.access(system, os.X_OK):
        probe = subprocess.run([system, "-c", "import sys; print(sys.version_info >= (3, 11))"], stdout=subprocess.PIPE)
        if probe.stdout.strip() == b"True":
            return system
    return sys.executable


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _says(command: Sequence[str], pattern: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    found = re.search(pattern, said)
    return found.group(1) if found else None


def facts() -> dict[str, Any]:
    """What the results were measured on and with."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    release = Path("/etc/os-release")
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', release.read_text(), re.M) if release.exists() else None
    version = re.compile(r"(\d+\.\d+[\w.+-]*)")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(CORES),
        "cpu": model.group(1) if model else platform.machine(),
        "virtual": " hypervisor " in cpuinfo,
        "memory_gib": round(int(memory.group(1)) / 1048576, 1) if memory else None,
        "kernel": platform.release(),
        "system": system.group(1) if system else platform.system(),
        "load_before": os.getloadavg()[0],
        "versions": {
            "Python of the relay": _says([interpreter(), "--version"], version.pattern),
            "Python of the benchmark": platform.python_version(),
            "nginx": _says(["nginx", "-v"], version.pattern),
            "HAProxy": _says(["haproxy", "-v"], version.pattern),
            "Go": _says(["go", "version"], version.pattern),
            "wrk": _says(["wrk", "-v"], version.pattern),
        },
    }
