"""What happened in a run of the demo, and whether it is as it should be.

Pure: the demo fills a ``Run``, the picture draws it, and ``verdict`` judges it. All times are seconds of
CLOCK_MONOTONIC, which is one clock for all processes of a machine: sleeptalker stamps its ticks with it, freeze-proxy
its freezes and thaws, and the demo its requests.
"""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 2.0
LINES = ("Hm? One moment.", "Here you are.")

AFTER_FREEZE = 0.001
"""Tolerance at the beginning of a frozen span, in seconds.

A tick bears the time at which it was made, whenever it is read, and freeze-proxy says `frozen` only after the kernel
has. So a later tick is proof of a server that ran. What remains is the rounding of the two numbers.
"""
BEFORE_THAW = 0.05
"""Tolerance at the end of a frozen span, in seconds.

The server runs from the moment of the write that thaws it, and its overdue tick is its first act. freeze-proxy takes
the time of `thawed` just after that write, and may have to wait for a processor in between: on a busy machine for some
tens of milliseconds. The frozen spans of the demo last seconds and would hold several ticks each, 500 ms apart, so one
that does not stand still is found out all the same.
"""
LEAST_FROZEN = 0.5
"""The share of each pause that the server must have been frozen for. By design it is all but the grace of 100 ms."""
LEAST_TICKS = 2
"""Ticks that each request of two seconds must have seen: one every 500 ms makes four, or three when it is late."""


@dataclass(frozen=True)
class Tick:
    """A line that sleeptalker printed."""

    number: int
    at: float


@dataclass(frozen=True)
class Request:
    """A request and what came back; ``error`` says why nothing did."""

    name: str
    began: float
    first: float | None = None
    ended: float | None = None
    status: int | None = None
    lines: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Frozen:
    """A span in which the server stood still. ``ended``: ``None`` if it was never thawed."""

    began: float
    ended: float | None
    took_us: float | None = None
    waited_us: float | None = None


@dataclass(frozen=True)
class Run:
    """All of it. ``began`` is when freeze-proxy began to serve, ``ended`` when it was told to end."""

    began: float
    ended: float
    ticks: tuple[Tick, ...]
    requests: tuple[Request, ...]
    frozen: tuple[Frozen, ...]
    exit_code: int
    report: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Run":
        """Read what ``save`` wrote."""
        data = json.loads(path.read_text())
        return Run(
            began=data["began"],
            ended=data["ended"],
            ticks=tuple(Tick(**tick) for tick in data["ticks"]),
            requests=tuple(Request(**{**request, "lines": tuple(request["lines"])}) for request in data["requests"]),
            frozen=tuple(Frozen(**span) for span in data["frozen"]),
            exit_code=data["exit_code"],
            report=data["report"],
        )


def verdict(run: Run) -> list[str]:
    """What is wrong with it, one sentence each; nothing if all is well."""
    return [
        *(fault for request in run.requests for fault in _request_faults(run, request)),
        *_tick_faults(run),
        *_pause_faults(run),
        *_end_faults(run),
    ]


def pauses(run: Run) -> list[tuple[float, float]]:
    """The spans without a request, of a second or more: from the start to the first, between them, and to the end."""
    spans, free_from = [], run.began
    for request in sorted(run.requests, key=lambda request: request.began):
        spans.append((free_from, request.began))
        free_from = max(free_from, run.ended if request.ended is None else request.ended)
    spans.append((free_from, run.ended))
    return [(began, ended) for began, ended in spans if ended - began >= 1]


def frozen_within(run: Run, began: float, ended: float) -> float:
    """Seconds between the two moments in which the server stood still."""
    return sum(
        max(0.0, min(ended, run.ended if span.ended is None else span.ended) - max(began, span.began))
        for span in run.frozen
    )


def ticks_while_frozen(run: Run) -> list[tuple[Tick, Frozen]]:
    """The ticks that should not be there, each with the span in which it came; see the tolerances above."""
    return [
        (tick, span)
        for tick in run.ticks
        for span in run.frozen
        if span.began + AFTER_FREEZE < tick.at < (run.ended if span.ended is None else span.ended - BEFORE_THAW)
    ]


def _request_faults(run: Run, request: Request) -> list[str]:
    name = request.name
    if request.error is not None or request.ended is None:
        return [f"{name} failed: {request.error or 'it never ended'}."]
    faults = []
    if request.status != 200:
        faults.append(f"{name} was answered with status {request.status}, not 200.")
    if request.lines != LINES:
        faults.append(f"{name} was answered {' / '.join(request.lines) or 'nothing'}, not {' / '.join(LINES)}.")
    took = request.ended - request.began
    if took < REQUEST_SECONDS:
        faults.append(f"{name} took {took:.3f} s; sleeptalker takes {REQUEST_SECONDS:.0f} s for one.")
    ticks = sum(request.began <= tick.at <= request.ended for tick in run.ticks)
    if ticks < LEAST_TICKS:
        faults.append(f"{name} saw {ticks} ticks: the server hardly ran while it was answered.")
    return faults


def _tick_faults(run: Run) -> list[str]:
    faults = [
        f"Tick {tick.number} appeared while frozen, {tick.at - span.began:.3f} s into a frozen span."
        for tick, span in ticks_while_frozen(run)
    ]
    for before, after in itertools.pairwise(run.ticks):
        if after.number != before.number + 1:
            faults.append(f"Between tick {before.number} and tick {after.number} something was lost.")
    return faults


def _pause_faults(run: Run) -> list[str]:
    faults = []
    for began, ended in pauses(run):
        frozen, long = frozen_within(run, began, ended), ended - began
        if frozen < LEAST_FROZEN * long:
            at = began - run.began
            faults.append(f"In the pause at {at:.1f} s it was frozen for {frozen:.1f} of {long:.1f} s only.")
    return faults


def _end_faults(run: Run) -> list[str]:
    faults = []
    if run.exit_code != 0:
        faults.append(f"freeze-proxy ended with exit code {run.exit_code}, sleeptalker's would have been 0.")
    if run.report.get("requests") != len(run.requests):
        faults.append(f"freeze-proxy reports {run.report.get('requests')} requests; {len(run.requests)} were sent.")
    return faults
