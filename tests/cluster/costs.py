"""The table of what freeze-proxy costs on a cluster: ``python -m tests.cluster.costs`` writes it into the page."""

import json
import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TAKEN = ROOT / "build" / "cluster-costs.json"
"""Of the last run on this machine."""
KEPT = ROOT / "bench" / "results" / "cluster.json"
PAGE = ROOT / "docs" / "cluster-test.md"
_MARKED = re.compile(r"(<!-- costs: [^>]*-->\n).*?(<!-- end of costs -->)", re.DOTALL)


def median(values: Sequence[float]) -> float:
    """That."""
    return statistics.median(values)


def _mib(number: float) -> str:
    return f"{number / 2**20:.1f} MiB"


def table(results: Any) -> str:
    """In Markdown."""
    sides = [results[name] for name in ("stock", "freeze-proxy")]
    rows: list[tuple[str, Callable[[Any], str]]] = []
    for connections in (1, 16):
        key = f"warm-{connections}"
        of = f"{connections} connection{'s' if connections > 1 else ''}"

        def latency(side: Any, key: str = key) -> str:
            return f"{side[key]['p50'] * 1e3:.2f} ms, {side[key]['p99'] * 1e3:.2f} ms"

        def cpu(side: Any, key: str = key) -> str:
            return f"{side[key]['cpu'] * 1e6:.0f} µs"

        rows += [(f"a warm request, {of}: p50, p99", latency), (f"the pod's CPU for a request, {of}", cpu)]
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
    lines = ["| | stock Knative | with freeze-proxy |", "| --- | --: | --: |"]
    lines += [f"| {name} | {' | '.join(map(show, sides))} |" for name, show in rows]
    return "\n".join(lines)


def page(text: str, results: Any) -> str:
    """The page with the table of these results."""
    said = f"{results['versions']}, {results['cores']} cores, {results['taken']}:"
    return _MARKED.sub(lambda found: f"{found[1]}{said}\n\n{table(results)}\n{found[2]}", text)


if __name__ == "__main__":
    shutil.copy(TAKEN, KEPT)
    PAGE.write_text(page(PAGE.read_text(), json.loads(KEPT.read_text())))
