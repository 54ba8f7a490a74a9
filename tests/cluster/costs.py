"""The table of what freeze-proxy costs on a cluster: ``python -m tests.cluster.costs`` writes it into the page."""

import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TAKEN = ROOT / "build" / "cluster-costs.json"
"""Of the last run on this machine."""
KEPT = ROOT / "bench" / "results" / "cluster.json"
PAGE = ROOT / "docs" / "cluster-test.md"
PROBES = TAKEN.with_name("cluster-probes.json")
"""What probes cost ambient pods, likewise."""
PROBES_KEPT = KEPT.with_name("cluster-probes.json")
PROBES_PAGE = ROOT / "docs" / "ambient.md"
_MARKED = re.compile(r"(<!-- costs: [^>]*-->\n).*?(<!-- end of costs -->)", re.DOTALL)
_KINDS = {
    "none": "none, for which Knative connects to the port",
    "tcp": "TCP",
    "http": "HTTP",
    "grpc": "gRPC",
    "exec": "exec",
}
"""What a user calls the probes of a pod."""


def median(values: Sequence[float]) -> float:
    """That."""
    return statistics.median(values)


def _mib(number: float) -> str:
    return f"{number / 2**20:.1f} MiB"


def table(results: Any) -> str:
    """In Markdown."""
    sides = [results[name] for name in ("stock", "freeze-proxy", "ambient")]
    rows: list[tuple[str, Callable[[Any], str]]] = []
    for connections in (1, 16):
        key = f"warm-{connections}"
        of = f"{connections} connection{'s' if connections > 1 else ''}"

        def latency(side: Any, key: str = key) -> str:
            return f"{side[key]['p50'] * 1e3:.2f} ms, {side[key]['p99'] * 1e3:.2f} ms"

        def cpu(side: Any, key: str = key) -> str:
            return f"{side[key]['cpu'] * 1e6:.0f} µs"

        def daemon(side: Any, key: str = key) -> str:
            return f"{side[key]['daemon'] * 100:.1f} % of a core"

        rows += [
            (f"a warm request, {of}: p50, p99", latency),
            (f"the pod's CPU for a request, {of}", cpu),
            (f"the daemon's CPU meanwhile, for all pods of the node, {of}", daemon),
        ]
    rows += [
        (
            "the first request after idle: median, slowest",
            lambda side: f"{median(side['first']) * 1e3:.2f} ms, {max(side['first']) * 1e3:.2f} ms",
        ),
        ("from the pod's creation until it is Ready", lambda side: f"{median(side['start']):.1f} s"),
        ("memory of queue-proxy", lambda side: _mib(side["memory"]["queue-proxy"])),
        (
            "memory of the sidecar",
            lambda side: _mib(side["memory"]["freeze-proxy"]) if "freeze-proxy" in side["memory"] else "–",
        ),
    ]
    lines = ["| | stock Knative | with the sidecar | ambient |", "| --- | --: | --: | --: |"]
    lines += [f"| {name} | {' | '.join(map(show, sides))} |" for name, show in rows]
    return "\n".join(lines)


def probes(results: Any) -> str:
    """The table of what probes cost ambient pods, in Markdown."""
    lines = ["| readiness and liveness | awake | ticks a second, of ten |", "| --- | --: | --: |"]
    lines += [
        f"| {name} | {results['awake'][kind] * 100:.1f} % | {results['ticks'][kind]:.1f} |"
        for kind, name in _KINDS.items()
    ]
    return "\n".join(lines)


def page(text: str, results: Any, table: Callable[[Any], str]) -> str:
    """The page with the table of these results."""
    said = f"{results['versions']}, {results['cores']} cores, {results['taken']}:"
    return _MARKED.sub(lambda found: f"{found[1]}{said}\n\n{table(results)}\n{found[2]}", text)


def described() -> dict[str, Any]:
    """Of which machine, of what and when results are."""
    return {"versions": os.environ["CLUSTER_VERSIONS"], "taken": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}


def keep(results: Any, file: Path) -> None:
    """Write them down, for the command below."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results | described(), indent=1) + "\n")


if __name__ == "__main__":
    for taken, kept, where, made in ((TAKEN, KEPT, PAGE, table), (PROBES, PROBES_KEPT, PROBES_PAGE, probes)):
        shutil.copy(taken, kept)
        where.write_text(page(where.read_text(), json.loads(kept.read_text()), made))
