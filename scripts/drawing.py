"""Draws ``docs/images/how-it-works.svg``: who is in a pod and on its node, and who speaks to whom.

    python -m scripts.drawing        # or: make drawing

Plain SVG from the lists below, so that a change of the design is a change of a line here.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "images" / "how-it-works.svg"
WIDTH, HEIGHT = 1000, 560

# A card of its own: dark on light is read on GitHub's light pages and on its dark ones alike.
PAPER, EDGE, INK, FAINT = "#fdfcf8", "#c9c5b8", "#22272e", "#6b6f76"
OURS, THEIRS, ICE, POD, NODE = "#ffe9dc", "#eeece4", "#cfe3f5", "#f7f5ee", "#ffffff"
REQUEST, CONTROL = "#d9642c", "#2f6ea5"


class Box(NamedTuple):
    """``words``: the first line is the name."""

    x: int
    y: int
    width: int
    height: int
    fill: str
    words: tuple[str, ...]


class Arrow(NamedTuple):
    """A way with corners; ``words`` stand at ``at``, from the left."""

    points: tuple[tuple[int, int], ...]
    colour: str
    words: tuple[str, ...]
    at: tuple[int, int]


FRAMES = (
    Box(175, 20, 640, 520, NODE, ("node",)),
    Box(195, 60, 600, 285, POD, ("pod",)),
)
BOXES = (
    Box(215, 120, 130, 90, THEIRS, ("queue-proxy", "Knative's")),
    Box(415, 120, 150, 90, OURS, ("sidecar", "counts requests", "in flight")),
    Box(655, 120, 120, 90, ICE, ("server", "the user", "container")),
    Box(415, 420, 150, 90, OURS, ("daemon", "one on each node")),
    Box(215, 420, 130, 90, THEIRS, ("kubelet",)),
    Box(650, 420, 140, 90, THEIRS, ("runtime", "containerd, CRI-O")),
    Box(850, 120, 130, 90, OURS, ("webhook", "at a pod's", "creation")),
    Box(850, 420, 130, 90, THEIRS, ("API server",)),
)
ARROWS = (
    Arrow(((20, 165), (215, 165)), REQUEST, ("requests",), (60, 155)),
    Arrow(((345, 165), (415, 165)), REQUEST, (), (0, 0)),
    Arrow(((565, 165), (655, 165)), REQUEST, ("unchanged",), (578, 155)),
    Arrow(((490, 210), (490, 420)), CONTROL, ("freeze, thaw,", "with the pod's token"), (500, 265)),
    Arrow(((530, 420), (530, 385), (715, 385), (715, 210)), CONTROL, ("writes the container's cgroup",), (520, 376)),
    Arrow(((565, 465), (650, 465)), CONTROL, ("which?",), (583, 457)),
    Arrow(((490, 510), (490, 530), (915, 530), (915, 510)), CONTROL, ("which pod's token is it?",), (600, 524)),
    Arrow(((280, 420), (280, 210)), FAINT, ("readiness",), (208, 320)),
    Arrow(((320, 420), (320, 380), (450, 380), (450, 210)), FAINT, ("liveness",), (330, 372)),
    Arrow(((915, 420), (915, 210)), CONTROL, ("review", "of a pod"), (925, 310)),
)


def drawn() -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13">',
        "<title>How freeze-proxy works in a pod and on its node</title>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="{PAPER}" stroke="{EDGE}"/>',
    ]
    parts += [
        f'<marker id="{_name(colour)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
        for colour in (REQUEST, CONTROL, FAINT)
    ]
    for frame in FRAMES:
        parts.append(_rectangle(frame, 10))
        parts.append(_text((frame.x + 14, frame.y + 22), frame.words[0], FAINT, "start", "italic"))
    for arrow in ARROWS:
        way = " ".join(f"{x},{y}" for x, y in arrow.points)
        parts.append(
            f'<polyline points="{way}" fill="none" stroke="{arrow.colour}" stroke-width="2" '
            f'marker-end="url(#{_name(arrow.colour)})"/>'
        )
        for n, line in enumerate(arrow.words):
            parts.append(_text((arrow.at[0], arrow.at[1] + 17 * n), line, arrow.colour, "start"))
    for box in BOXES:
        parts.append(_rectangle(box, 8))
        first = box.y + box.height / 2 + 5 - 9 * (len(box.words) - 1)
        for n, line in enumerate(box.words):
            style = "bold" if n == 0 else ""
            parts.append(
                _text((box.x + box.width / 2, first + 18 * n), line, INK if n == 0 else FAINT, "middle", style)
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _name(colour: str) -> str:
    return f"head-{colour[1:]}"


def _rectangle(box: Box, radius: int) -> str:
    return (
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="{radius}" fill="{box.fill}" '
        f'stroke="{EDGE}"/>'
    )


def _text(at: tuple[float, float], words: str, colour: str, anchor: str, style: str = "") -> str:
    look = {"bold": ' font-weight="bold"', "italic": ' font-style="italic"', "": ""}[style]
    return f'<text x="{at[0]:g}" y="{at[1]:g}" fill="{colour}" text-anchor="{anchor}"{look}>{escape(words)}</text>'


if __name__ == "__main__":
    FILE.write_text(drawn())
