"""What a request pays for finding the server frozen, measured through ``freeze-proxy run``.

The kernel says when the server stands still; a little later, at a random moment, a request is sent, and the first byte
of its response is timed. At once the same request is sent again, to the server that is now awake: what the first took
longer is the price of the wake. Half of the requests come on a connection that is kept, half on a new one each.

A second freeze-proxy, with ``--mode off`` and a server of its own, gets a request after the same pause. It shows what
of the price is not the freeze but the pause: after a few milliseconds of rest, processors and caches answer later too.
"""

import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import ROOT, BenchError, free_port, interpreter, percentile, running, wait_until
from bench.programs import own_folder
from bench.relay import Tell, compile_all

GRACE = "5ms"
PATIENCE = 10.0
KINDS = ("kept", "new")
WHEN = ("frozen", "awake", "rested")
POINTS = [0, 1, 5, *range(10, 91, 5), 95, 97, 98, 99, 99.5, 99.9]
"""The percentiles that make up a curve."""
REQUEST = b"GET / HTTP/1.1\r\nHost: wake\r\n\r\n"

FREEZERS = {"cgroup2": ("cgroup.events", b"frozen 1"), "cgroup1": ("freezer.state", b"FROZEN")}
"""For each freezer: the file of the cgroup that tells its state, and what it says when it is frozen."""


_COULD_NOT = 125
"""freeze-proxy's exit code where it lacks what it needs, such as the right to make a cgroup."""


class UnavailableError(BenchError):
    """This freezer is not to be had here."""


class Client:
    """Sends requests to one port and times the first byte that comes back, in microseconds."""

    def __init__(self, port: int, host: str = "127.0.0.1", keep: bool = True) -> None:
        self._address = (host, port)
        self._kept = self._connect() if keep else socket.socket()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def kept(self) -> float:
        """On the connection that is kept."""
        begin = time.perf_counter_ns()
        self._kept.sendall(REQUEST)
        answer = self._kept.recv(4096)
        took = time.perf_counter_ns() - begin
        self._check(answer)
        return took / 1000

    def new(self) -> float:
        """On a new connection, which counts."""
        begin = time.perf_counter_ns()
        with self._connect() as connection:
            connection.sendall(REQUEST)
            answer = connection.recv(4096)
            took = time.perf_counter_ns() - begin
        self._check(answer)
        return took / 1000

    def close(self) -> None:
        """Closes the kept connection."""
        self._kept.close()

    @staticmethod
    def _check(answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200 OK"):
            raise BenchError(f"The wake benchmark got a wrong answer: {answer[:60]!r}.")


@contextlib.contextmanager
def _proxied(
    folder: Path, mode: str, freezer: str, ambient: bool = False
) -> Iterator[tuple[int, dict[str, Any], Path]]:
    """A server behind ``freeze-proxy run``: the port to ask, what the start line says, and where the report will be."""
    port, log, report = free_port(), folder / f"{mode}.log", folder / f"{mode}.json"
    door = ["--ambient", "--port", str(port)] if ambient else ["--listen", f"127.0.0.1:{port}"]
    command = [
        sys.executable, "-m", "freeze_proxy", "run", *door, "--grace", GRACE, "--mode", mode,
        "--freezer", freezer, "--log-format", "json", "--report", str(report),
        "--", interpreter(), "-I", "-S", str(ROOT / "bench/wake_server.py"),
    ]  # fmt: skip

    def started() -> dict[str, Any] | None:
        for line in log.read_text().splitlines():
            if line.startswith("{"):
                event: dict[str, Any] = json.loads(line)
                if event["event"] == "start":
                    return event
        if process.poll() is not None:
            kind = UnavailableError if process.returncode == _COULD_NOT else BenchError
            raise kind(f"freeze-proxy run ended at once: {log.read_text().strip()[-300:]}")
        return None

    with log.open("wb") as stderr, running(command, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        wait_until(lambda: started() is not None, 20, "freeze-proxy run to start")
        start = started()
        assert start is not None
        yield port, start, report


class Stillness:
    """Waits until the kernel says that the cgroup is frozen."""

    def __init__(self, where: str, file: str, says: bytes) -> None:
        self._says = says
        self._fd = os.open(os.path.join(where, file), os.O_RDONLY)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._notified = file == "cgroup.events"

    def wait(self) -> None:
        """Returns when it is."""
        end = time.monotonic() + PATIENCE
        while self._says not in os.pread(self._fd, 256, 0):
            if time.monotonic() > end:
                raise BenchError(f"The server was not frozen within {PATIENCE:g} s of its last request.")
            if self._notified:
                self._poll.poll(100)
            else:
                time.sleep(0.0005)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def measure(freezer: str, wakes: int, tell: Tell, ambient: bool = False) -> dict[str, Any]:
    """The wake with one freezer, behind the relay or with nothing in between."""
    with own_folder() as folder, contextlib.ExitStack() as stack:
        port, start, report = stack.enter_context(_proxied(folder, "freeze", freezer, ambient))
        rested_port, _start, _report = stack.enter_context(_proxied(folder, "off", freezer, ambient))
        stillness = Stillness(start["where"], *FREEZERS[freezer])
        stack.callback(stillness.close)
        client, rested = Client(port), Client(rested_port)
        stack.callback(client.close)
        stack.callback(rested.close)
        samples = turns(client, rested, stillness, wakes, lambda turn: tell(f"wake: {freezer}, {turn:,} of {wakes:,}"))
        stack.close()  # its end makes freeze-proxy write its report
        said = json.loads(report.read_text()) if report.exists() else {}
    return {
        "wakes": wakes,
        "where": start["freezer"],
        **figures(samples),
        "own_report": {key: said.get(key) for key in ("freezes", "thaw", "share_frozen")},
    }


Samples = dict[str, dict[str, list[float]]]
"""Microseconds by kind of connection and by how the server was."""


def turns(client: Client, rested: Client, stillness: Stillness, wakes: int, tell: Callable[[int], object]) -> Samples:
    """Ask a server that is frozen again and again, the same one awake, and one that only had the same rest."""
    rng = random.Random(7)
    samples: Samples = {kind: {when: [] for when in WHEN} for kind in KINDS}
    ways: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "kept": (client.kept, rested.kept),
        "new": (client.new, rested.new),
    }
    for turn in range(wakes):
        if turn % 50 == 0:
            tell(turn)
        kind = KINDS[turn % 2]
        ask, ask_rested = ways[kind]
        taken = samples[kind]
        stillness.wait()
        time.sleep(rng.uniform(0.0005, 0.003))
        # Whichever comes first finds the client's own processor less rested: take turns.
        if turn // 2 % 2:
            taken["rested"].append(ask_rested())
        taken["frozen"].append(ask())
        taken["awake"].append(ask())
        if not turn // 2 % 2:
            time.sleep(0.002)
            taken["rested"].append(ask_rested())
    return samples


def figures(samples: Samples) -> dict[str, Any]:
    """What the report is made from."""
    return {
        "kinds": {kind: _summary(taken) for kind, taken in samples.items()},
        "above_awake": _above(samples, "awake"),
        "above_rested": _above(samples, "rested"),
        "points": POINTS,
        "curve": _curves(samples),
    }


def _summary(taken: dict[str, list[float]]) -> dict[str, Any]:
    return {
        when: {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": max(values), "count": len(values)}
        for when, values in taken.items()
    }


def _above(samples: dict[str, dict[str, list[float]]], base: str) -> dict[str, float]:
    """How far the first byte from a frozen server is above the median of the base of the same kind."""
    above: list[float] = []
    for taken in samples.values():
        usual = percentile(taken[base], 50)
        above += [value - usual for value in taken["frozen"]]
    return {"p50": percentile(above, 50), "p99": percentile(above, 99), "max": max(above), "count": len(above)}


def _curves(samples: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """The distributions as percentiles, for the plot."""
    return {
        kind: {when: [round(percentile(values, point), 1) for point in POINTS] for when, values in taken.items()}
        for kind, taken in samples.items()
    }


def run(quick: bool, tell: Tell) -> dict[str, Any]:
    """Measure the wake with every freezer of a cgroup that this machine has."""
    compile_all()
    results: dict[str, Any] = {"grace": GRACE, "freezers": {}, "missing": {}}
    for freezer in FREEZERS:
        wakes = 60 if quick else 4000 if freezer == "cgroup2" else 1000
        try:
            results["freezers"][freezer] = measure(freezer, wakes, tell)
        except UnavailableError as error:
            results["missing"][freezer] = str(error)
    return results
