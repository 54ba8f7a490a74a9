"""Draws the picture of the README from the data of a demo run, and writes the table of that run into the README.

Run by ``make picture``, after the demo has saved a new run. Nothing in either is made up: both come from that file.
"""

import argparse
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MultipleLocator

from scripts.demo_record import Run, frozen_within, ticks_while_frozen

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "docs" / "images" / "demo.json"
PICTURE = ROOT / "docs" / "images" / "demo.svg"
README = ROOT / "README.md"
MARKS = "<!-- the demo's run: written by make picture -->\n", "<!-- end of the demo's run -->\n"

# A card of its own: dark on light is read on GitHub's light pages and on its dark ones alike.
PAPER, EDGE, INK, FAINT = "#fdfcf8", "#c9c5b8", "#22272e", "#6b6f76"
REQUEST, TICK, ICE, ICE_INK = "#d9642c", "#1a7f4b", "#cfe3f5", "#2f6ea5"


def draw(run: Run) -> Figure:
    """A timeline: requests as bars, ticks as dots, the spans in which the server stood still shaded."""
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11, "svg.hashsalt": "freeze-proxy"})
    length, lanes = run.ended - run.began, len(run.requests)
    figure = Figure(figsize=(10, 1.5 + 0.34 * lanes))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    figure.add_artist(
        FancyBboxPatch(
            (0.006, 0.012), 0.988, 0.976, boxstyle="round,pad=0,rounding_size=0.015", fc=PAPER, ec=EDGE, lw=1, zorder=-2
        )
    )
    axes = figure.add_axes((0.105, 0.17, 0.87, 0.78))
    axes.patch.set_alpha(0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)
    axes.set_xlim(0, length)
    axes.set_ylim(-0.75, lanes + 0.1)

    for span in run.frozen:
        began, ended = span.began - run.began, min(run.ended, span.ended or run.ended) - run.began
        axes.axvspan(began, ended, color=ICE, lw=0)
        if ended - began > 1:
            axes.text((began + ended) / 2, lanes - 0.15, "frozen", color=ICE_INK, ha="center", va="top", style="italic")
    for lane, request in enumerate(run.requests):
        if request.ended is None:
            continue
        began, took = request.began - run.began, request.ended - request.began
        height = lanes - lane - 0.75 if lanes > 1 else 0.5
        axes.barh(height, took, left=began, height=0.62, color=REQUEST, lw=0)
        label = f"{took:.2f} s"
        axes.text(
            began + took / 2, height - 0.03, label, color="white", ha="center", va="center", weight="bold", size=10
        )
    ticks = [tick.at - run.began for tick in run.ticks if 0 <= tick.at - run.began <= length]
    axes.plot(ticks, [-0.4] * len(ticks), "o", color=TICK, ms=6.5, clip_on=False)

    axes.set_yticks([-0.4, (lanes - 0.5) / 2], ["ticks", "requests"], color=INK, weight="bold")
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="x", colors=FAINT)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.xaxis.set_major_formatter(lambda second, _: f"{second:.0f} s")
    return figure


def table(run: Run) -> str:
    """What the run showed, as a Markdown table."""
    report, length = run.report, run.ended - run.began
    frozen = frozen_within(run, run.began, run.ended)
    inside = len(ticks_while_frozen(run))
    waits = sorted(span.waited_us for span in run.frozen if span.waited_us is not None)
    took = sorted(request.ended - request.began for request in run.requests if request.ended is not None)
    rows = [
        (
            "requests",
            f"{len(run.requests)}, each answered in {took[0]:.3f} to {took[-1]:.3f} s, of which the server takes 2",
        ),
        ("time frozen", f"{frozen:.1f} of {length:.1f} s, in {len(run.frozen)} freezes"),
        ("ticks", f"{len(run.ticks)}, {inside or 'none'} of them while frozen"),
        (
            "a request waits for the thaw",
            f"{waits[0] / 1000:.2f} to {waits[-1] / 1000:.2f} ms" if waits else "never did",
        ),
        ("CPU time of the server", f"{_cpu(report, 'serving')} while serving, {_cpu(report, 'idle')} while idle"),
        ("frozen by", str(report.get("freezer", "?"))),
    ]
    return "".join(
        f"| {name} | {value} |\n"
        for name, value in [("", "`make demo`, the run in the picture"), ("---", "---"), *rows]
    )


def _cpu(report: dict[str, object], what: str) -> str:
    seconds = report.get("cpu_seconds")
    value = seconds.get(what) if isinstance(seconds, dict) else None
    return "unknown" if value is None else f"{value * 1000:.0f} ms"


def with_table(readme: str, run: Run) -> str:
    """The README with this run's table between the marks."""
    begin, end = MARKS
    new, count = re.subn(
        re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + table(run) + end, readme, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"README.md must have the marks once: {begin.strip()} … {end.strip()}")
    return new


def main() -> None:
    """Draw, and write."""
    parser = argparse.ArgumentParser(prog="make picture")
    parser.add_argument("run", nargs="?", type=Path, default=RUN, help="what make demo --save has written")
    run = Run.load(parser.parse_args().run)
    draw(run).savefig(PICTURE, metadata={"Date": None, "Title": "sleeptalker behind freeze-proxy: one run of the demo"})
    README.write_text(with_table(README.read_text(), run))


if __name__ == "__main__":
    main()
