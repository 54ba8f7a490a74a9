"""The pictures of ``docs/benchmarks.md``."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Results = dict[str, Any]

COLOURS = {
    "relay": "#0b7285", "relay-off": "#66bfd0", "nginx": "#5c940d", "nginx-buffers": "#a9d46c", "haproxy": "#4263eb",
    "go": "#e8590c", "go-pool": "#ffa94d",
}  # fmt: skip
WAYS = {"cgroup2": "#0b7285", "cgroup1": "#5c940d", "sigstop": "#e8590c", "process": "#ffa94d"}

mpl.rcParams.update({
    "svg.hashsalt": "freeze-proxy",  # the same numbers give the same file
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dee2e6",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
})  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    # Trailing blanks are matplotlib's, and trip those who look for them.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _cpu(relay: Results, path: Path) -> None:
    scenarios = relay["scenarios"]
    columns = 4
    rows = -(-len(scenarios) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(scenarios) :]:
        axis.axis("off")
    for axis, scenario in zip(axes.flat, scenarios.values(), strict=False):
        shown = {name: figures["cpu_us"] for name, figures in scenario["candidates"].items() if "cpu_us" in figures}
        _bars(axis, shown, relay["titles"], "CPU, µs a request")
        axis.set_title(scenario["title"].replace(", ", ",\n"), fontsize=9)
    _save(figure, path)


def _bars(axis: Axes, shown: dict[str, dict[str, float]], titles: dict[str, str], unit: str) -> None:
    names = list(shown)[::-1]
    medians = [shown[name]["median"] for name in names]
    below = [shown[name]["median"] - shown[name]["min"] for name in names]
    above = [shown[name]["max"] - shown[name]["median"] for name in names]
    places = range(len(names))
    axis.barh(places, medians, color=[COLOURS.get(name, "#868e96") for name in names], height=0.7)
    axis.errorbar(medians, places, xerr=(below, above), fmt="none", ecolor="#212529", elinewidth=0.8, capsize=2)
    axis.set_yticks(places, [titles[name].replace("freeze-proxy, ", "freeze-proxy,\n") for name in names], fontsize=7)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(unit, fontsize=8)
    axis.set_xlim(0, max(shown[name]["max"] for name in names) * 1.05)


def _footprint(relay: Results, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
    memory = {
        name: dict.fromkeys(("median", "min", "max"), kib["rss"] / 1024)
        for name, kib in relay["memory_kib"].items()
        if name in relay["start_ms"]
    }
    _bars(left, memory, relay["titles"], "RSS after all loads, MiB")
    _bars(right, relay["start_ms"], relay["titles"], "start until listening, ms")
    left.axvline(10, color="#c92a2a", linewidth=1, linestyle=":")
    right.axvline(30, color="#c92a2a", linewidth=1, linestyle=":")
    right.set_xlim(0, max(32.0, right.get_xlim()[1]))
    _save(figure, path)


def _freezers(freezers: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    panels = (("frozen_us", "freeze: to standing still"), ("running_us", "thaw: to an answer"))
    for axis, (figure_name, title) in zip(axes, panels, strict=True):
        for way, measured in freezers["ways"].items():
            quiet = [one for one in measured if not one["busy"]]
            threads = [one["threads"] for one in quiet]
            values = [one[figure_name] for one in quiet]
            axis.plot(threads, [v["p50"] for v in values], color=WAYS[way], marker="o", markersize=3, label=_short(way))
            axis.fill_between(
                threads,
                [v["min"] for v in values],
                [v["p99"] for v in values],
                color=WAYS[way],
                alpha=0.12,
                linewidth=0,
            )
        axis.set(xscale="log", yscale="log", xlabel="threads", title=title)
    axes[0].set_ylabel("µs (median; shaded: least to p99)")
    axes[0].legend(fontsize=7)
    _save(figure, path)


def _short(way: str) -> str:
    return {
        "cgroup2": "cgroup v2", "cgroup1": "cgroup v1", "sigstop": "SIGSTOP", "process": "SIGSTOP, process tree",
    }[way]  # fmt: skip


def _wake(wake: Results, path: Path) -> None:
    freezers = wake["freezers"]
    figure, axes = plt.subplots(len(freezers), 2, figsize=(9, 2.8 * len(freezers)), squeeze=False, sharex=True)
    colours = {"frozen": "#0b7285", "awake": "#e8590c", "rested": "#868e96"}
    for row, (freezer, measured) in zip(axes, freezers.items(), strict=True):
        for axis, (kind, curves) in zip(row, measured["curve"].items(), strict=True):
            for when, values in curves.items():
                axis.plot(values, measured["points"], color=colours[when], label=when)
            connection = {"kept": "kept connection", "new": "new connections"}[kind]
            axis.set(xscale="log", title=f"{_short(freezer)}, {connection}", ylabel="% of requests")
            axis.axhline(99, color="#ced4da", linewidth=0.8, linestyle=":")
        row[0].legend(fontsize=7, loc="lower right")
    for axis in axes[-1]:
        axis.set_xlabel("first byte after, µs")
    _save(figure, path)


def _pausing(daemon: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, sharey=True)
    names = list(daemon["titles"])[::-1]
    titles = [daemon["titles"][name].replace("`", "").replace("daemon, ", "daemon,\n") for name in names]
    for axis, (order, title) in zip(axes, (("freeze", "pause"), ("thaw", "resume")), strict=True):
        for place, name in enumerate(names):
            colour = WAYS["cgroup2"] if name.startswith("daemon") else "#868e96"
            middle, tail = (daemon["ways"]["among"][name][order][point] / 1000 for point in ("p50", "p99"))
            axis.plot((middle, tail), (place, place), color=colour, linewidth=1.5, solid_capstyle="butt")
            axis.plot(middle, place, color=colour, marker="o", markersize=6)
            axis.annotate(f"{middle:.2g}", (middle, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axis.set(xscale="log", xlabel="ms: a dot for the median, a line to p99", title=title)
        axis.set_yticks(range(len(names)), titles, fontsize=7)
        axis.set_ylim(-0.5, len(names) - 0.3)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _save(figure, path)


def write(results: Results, images: Path) -> None:
    """Write a picture for every part that there are results of."""
    if "relay" in results:
        _cpu(results["relay"], images / "bench-cpu.svg")
        _footprint(results["relay"], images / "bench-footprint.svg")
    if results.get("freezers", {}).get("ways"):
        _freezers(results["freezers"], images / "bench-freezers.svg")
    if results.get("wake", {}).get("freezers"):
        _wake(results["wake"], images / "bench-wake.svg")
    if "ways" in results.get("daemon", {}):
        _pausing(results["daemon"], images / "bench-pausing.svg")
