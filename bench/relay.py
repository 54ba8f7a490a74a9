"""What the relay costs, beside other proxies: CPU, throughput, latency, memory and start-up.

One round takes every candidate through every scenario, and the order of the candidates rotates from round to round,
so that whatever else happens on the machine falls on all of them. Figures are medians over the rounds.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import (
    LOAD_CORE,
    PROXY_CORE,
    ROOT,
    BenchError,
    busy_ns,
    cpu_ns,
    family,
    free_port,
    interpreter,
    listening,
    memory_kib,
    on_cores,
    running,
    spread,
    wait_until,
)
from bench.programs import Candidate, backend, candidates, own_folder, proxy

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    title: str
    connections: int
    path: str = "/"
    headers: tuple[str, ...] = ()
    script: str = "wrk.lua"


_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel") * 2
SIXTEEN_HEADERS = tuple(f"X-{word.title()}-{i}: {word}-{i * 7919:08x}-{word}" for i, word in enumerate(_WORDS))

SCENARIOS = (
    Scenario("small-1", "small responses, 1 connection", 1),
    Scenario("small-16", "small responses, 16 connections", 16),
    Scenario("small-64", "small responses, 64 connections", 64),
    Scenario("varied", "small responses, no two heads alike, 16 connections", 16, "/varied", script="wrk_varied.lua"),
    Scenario("headers", "small responses, 16 more request headers, 16 connections", 16, headers=SIXTEEN_HEADERS),
    Scenario("64k", "64 KiB responses, 16 connections", 16, "/64k"),
    Scenario("1m", "1 MiB responses, 16 connections", 16, "/1m"),
    Scenario("close", "a connection for each request, 16 at a time", 16, headers=("Connection: close",)),
)
QUICK = ("small-16", "64k", "close")


def compile_all() -> None:
    """Have the bytecode there, as an image would."""
    places = [str(ROOT / "src/freeze_proxy"), str(ROOT / "bench")]
    subprocess.run([interpreter(), "-I", "-m", "compileall", "-q", *places], check=True)


def load(scenario: Scenario, port: int, seconds: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """Have wrk load a port; returns what it measured."""
    command = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "-s", scenario.script]
    for header in scenario.headers:
        command += ["-H", header]
    command.append(f"http://{host}:{port}{scenario.path}")
    with on_cores(LOAD_CORE):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, cwd=ROOT / "bench")
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchError(f"wrk said nothing that can be used: {(ran.stderr or ran.stdout).strip()[-200:]}")
    measured: dict[str, Any] = json.loads(lines[-1])
    return measured


def _one(scenario: Scenario, port: int, seconds: int, pids: list[int]) -> dict[str, float]:
    """One load; with the CPU time that the proxy spent on it, and that others spent on the proxy's core."""
    before, (core_before, steal_before) = sum(map(cpu_ns, pids)), busy_ns(PROXY_CORE)
    measured = load(scenario, port, seconds)
    spent, (core_after, steal_after) = sum(map(cpu_ns, pids)) - before, busy_ns(PROXY_CORE)
    requests = measured["requests"]
    if not requests:
        raise BenchError(f"No request came through in {scenario.title}.")
    figures = {
        "requests": requests,
        "requests_s": requests / measured["duration"] * 1e6,
        "p50_us": measured["p50"],
        "p99_us": measured["p99"],
        "errors": sum(measured["errors"].values()),
    }
    if pids:
        figures["cpu_us"] = spent / requests / 1000
        figures["others_percent"] = max(0, core_after - core_before - spent) / (seconds * 1e9) * 100
        figures["steal_percent"] = (steal_after - steal_before) / (seconds * 1e9) * 100
    return figures


def starts(all_of_them: list[Candidate], folder: Path, target: int, times: int, tell: Tell) -> dict[str, Any]:
    """Milliseconds from the call that starts each candidate to the first connection that its port accepts."""
    took: dict[str, list[float]] = {one.name: [] for one in all_of_them}
    for turn in range(times):
        tell(f"start-up, {turn + 1} of {times}")
        for candidate in _rotated(all_of_them, turn):
            port = free_port()
            own = folder / candidate.name
            own.mkdir(exist_ok=True)
            command = candidate.command(own, port, target)
            env = os.environ | dict(candidate.env)
            begin = time.perf_counter_ns()
            with running(command, core=PROXY_CORE, env=env, stdout=subprocess.DEVNULL):
                wait_until(lambda port=port: listening(port), 10, f"{candidate.title} to listen", pause=0.0002)  # type: ignore[misc] # mypy takes the bound default for a parameter
                took[candidate.name].append((time.perf_counter_ns() - begin) / 1e6)
    return {name: spread(values) for name, values in took.items()}


def _rotated(items: list[Any], by: int) -> list[Any]:
    by %= len(items)
    return items[by:] + items[:by]


@contextlib.contextmanager
def _all_running(taking_part: list[Candidate], folder: Path, target: int) -> Iterator[dict[str, tuple[int, list[int]]]]:
    with contextlib.ExitStack() as stack:
        where = {}
        for candidate in taking_part:
            port = free_port()
            process = stack.enter_context(proxy(candidate, folder, port, target))
            where[candidate.name] = port, family(process.pid)
        yield where


def run(quick: bool, tell: Tell, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measure; ``only``: names of scenarios, or none for all."""
    if shutil.which("wrk") is None or shutil.which("nginx") is None:
        raise BenchError("wrk and nginx are needed for the load and the backend: apt install wrk nginx-light.")
    names = only or (QUICK if quick else tuple(scenario.name for scenario in SCENARIOS))
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise BenchError(f"There is no scenario {', '.join(sorted(unknown))}.")
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in names]
    rounds, seconds, start_times = (1, 1, 3) if quick else (9, 1, 21)
    compile_all()

    with own_folder() as folder, on_cores(LOAD_CORE):
        everyone = candidates(folder)
        taking_part = [one for one in everyone if one.missing is None]
        names_all = ["direct", *(one.name for one in taking_part)]
        target = free_port()
        samples: dict[str, dict[str, list[dict[str, float]]]] = {
            scenario.name: {name: [] for name in names_all if name == "direct" or _joins(taking_part, name, scenario)}
            for scenario in scenarios
        }
        with backend(folder, target):
            started = starts([one for one in taking_part if one.only is None], folder, target, start_times, tell)
            with _all_running(taking_part, folder, target) as where:
                where["direct"] = target, []
                fresh = {name: _memory(pids) for name, (_port, pids) in where.items() if pids}
                for turn in range(rounds):
                    for scenario in scenarios:
                        for name in _rotated(names_all, turn):
                            if name in samples[scenario.name]:
                                tell(f"round {turn + 1} of {rounds}: {scenario.title}: {name}")
                                port, pids = where[name]
                                samples[scenario.name][name].append(_one(scenario, port, seconds, pids))
                memory = {name: _memory(pids) for name, (_port, pids) in where.items() if pids}
    return {
        "rounds": rounds,
        "seconds": seconds,
        "starts": start_times,
        "interpreter": interpreter(),
        "proxy_core": PROXY_CORE,
        "load_core": LOAD_CORE,
        "titles": {"direct": "no proxy"} | {one.name: one.title for one in everyone},
        "missing": {one.name: one.missing for one in everyone if one.missing},
        "scenarios": {
            scenario.name: {
                "title": scenario.title,
                "candidates": {name: _summary(taken) for name, taken in samples[scenario.name].items()},
            }
            for scenario in scenarios
        },
        "memory_fresh_kib": fresh,
        "memory_kib": memory,
        "start_ms": started,
    }


def _joins(taking_part: list[Candidate], name: str, scenario: Scenario) -> bool:
    only = next(one for one in taking_part if one.name == name).only
    return only is None or scenario.name in only


def _summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"requests": sum(int(one["requests"]) for one in samples)}
    summary["errors"] = sum(int(one["errors"]) for one in samples)
    for figure in ("cpu_us", "requests_s", "p50_us", "p99_us", "others_percent", "steal_percent"):
        if figure in samples[0]:
            summary[figure] = spread([one[figure] for one in samples])
    return summary


def _memory(pids: list[int]) -> dict[str, int]:
    try:
        each = [memory_kib(pid) for pid in pids]
    except (ProcessLookupError, FileNotFoundError):
        raise BenchError("One of the proxies has ended; see what it said above.") from None
    return {"rss": sum(one["Rss"] for one in each), "pss": sum(one["Pss"] for one in each), "processes": len(pids)}
