"""What a user sees while a server is kept: log lines, a status line on a terminal, and the table at the end."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO

from freeze_proxy.keeper import Witness

FORMATS = ("auto", "json", "text", "none")


class Reporter(Witness):
    """Tells a user what happens. This one says nothing."""

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The server is ready: ``sentence`` says what is frozen and how, ``facts`` says it for programs."""

    def status(self, awake: bool, in_flight: int, requests: int, share_frozen: float) -> None:
        """How things stand; called often."""

    def end(self, facts: Mapping[str, object]) -> None:
        """It is over."""


class JsonReporter(Reporter):
    """One JSON object a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The event ``start``."""
        self._event("start", message=sentence, **facts)

    def frozen(self, at: float, took: float) -> None:
        """The event ``frozen``."""
        self._event("frozen", took_us=round(took * 1e6), monotonic=round(at, 6))

    def thawed(self, at: float, waited: float | None) -> None:
        """The event ``thawed``."""
        self._event("thawed", waited_us=None if waited is None else round(waited * 1e6), monotonic=round(at, 6))

    def failed(self, what: str, reason: str) -> None:
        """The event ``failed``."""
        self._event("failed", what=what, reason=reason)

    def refused(self, exchanges: int) -> None:
        """The event ``refused``."""
        self._event("refused", exchanges=exchanges)

    def end(self, facts: Mapping[str, object]) -> None:
        """The event ``end``."""
        self._event("end", **facts)

    def _event(self, event: str, **facts: object) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), "event": event, **facts}
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more: no reason to let the server down
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()


class TextReporter(Reporter):
    """A sentence a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The sentence."""
        self._say(sentence)

    def frozen(self, at: float, took: float) -> None:
        """Says so."""
        self._say(f"frozen (in {took * 1e3:.2f} ms)")

    def thawed(self, at: float, waited: float | None) -> None:
        """Says so."""
        self._say("thawed" if waited is None else f"thawed, a request waited {waited * 1e3:.2f} ms")

    def failed(self, what: str, reason: str) -> None:
        """Says why."""
        self._say(f"{what} failed: {reason}")

    def refused(self, exchanges: int) -> None:
        """Says how many."""
        self._say(f"{exchanges} request{'s' if exchanges > 1 else ''} answered 503: the thaw took too long")

    def _say(self, sentence: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"freeze-proxy: {sentence}\n")
            self._stream.flush()


class StatusLine(TextReporter):
    """Keeps the last row of a terminal to itself, and leaves the rows above to the server's output.

    It sets the scrolling region (DECSTBM) to all rows but the last, as long as the terminal has a few.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._rows = 0
        self._shown = ""

    def frozen(self, at: float, took: float) -> None:
        """The row shows it."""

    def thawed(self, at: float, waited: float | None) -> None:
        """The row shows it."""

    def status(self, awake: bool, in_flight: int, requests: int, share_frozen: float) -> None:
        """Write the row anew, where it has changed."""
        state = "\x1b[1;32mawake \x1b[0m" if awake else "\x1b[1;36mfrozen\x1b[0m"
        shown = f"{state}  in flight {in_flight}  requests {requests}  frozen {share_frozen:.1%} of the time"
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return
        if rows < 4:
            return
        write = ""
        if rows != self._rows:
            # A new line first, so that what stands in the last row moves up.
            write = f"\n\x1b7\x1b[1;{rows - 1}r\x1b8\x1b[1A"
            self._rows = rows
        elif shown == self._shown:
            return
        self._shown = shown
        cut = shown if len(shown) - 11 <= columns else state
        self._write(f"{write}\x1b7\x1b[{rows};1H\x1b[2K{cut}\x1b8")

    def end(self, facts: Mapping[str, object]) -> None:
        """Give the row back."""
        if self._rows:
            self._write(f"\x1b7\x1b[{self._rows};1H\x1b[2K\x1b[r\x1b8")
            self._rows = 0

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def reporter(log_format: str) -> Reporter:
    """The reporter for a log format; ``auto`` is the status line on a terminal, JSON elsewhere."""
    stream = sys.stderr
    if log_format == "auto":
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        return StatusLine(stream) if stream.isatty() and not dumb else JsonReporter(stream)
    return {"json": JsonReporter, "text": TextReporter}[log_format](stream) if log_format != "none" else Reporter()


def table(report: Mapping[str, object]) -> str:
    """The numbers of a report as a table."""
    from rich.console import Console
    from rich.table import Table

    cpu, thaw = report["cpu_seconds"], report["thaw"]
    assert isinstance(cpu, Mapping)
    assert isinstance(thaw, Mapping)
    rows = Table(title="freeze-proxy", show_header=False, title_justify="left")
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row("requests", f"{report['requests']}")
    if report["refused"]:
        rows.add_row("answered 503", f"{report['refused']}")
    rows.add_row("freezes", f"{report['freezes']}")
    if report["failures"]:
        rows.add_row("failed freezes and thaws", f"{report['failures']}")
    rows.add_row("frozen", f"{report['frozen_seconds']:.1f} s of {report['wall_seconds']:.1f} s")
    rows.add_row("share of time frozen", f"{report['share_frozen']:.1%}")
    rows.add_row("CPU while serving", f"{cpu['serving']:.3f} s")
    rows.add_row("CPU while idle", f"{cpu['idle']:.3f} s")
    for name, key in (("p50", "p50_us"), ("p99", "p99_us"), ("max", "max_us")):
        rows.add_row(f"thaw, {name}", "–" if thaw[key] is None else f"{thaw[key] / 1e3:.2f} ms")
    console = Console(file=open(os.devnull, "w", encoding="utf-8"), width=72, record=True)  # noqa: SIM115
    console.print(rows)
    return console.export_text()
