"""What a user sees while a server is kept: log lines, a status line on a terminal, and the table at the end."""

import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from freeze_proxy.keeper import Witness

FORMATS = ("auto", "json", "text", "none")
LAST_PATIENCE = 1.0
"""Seconds to wait at the end until somebody takes what is said last."""


class Output:
    """Where to talk to the user: written to without ever waiting for a reader, for a thaw may come next.

    A pipe and a terminal are opened anew, for only an open file of our own can be made non-blocking: the server shares
    the one that was handed down. What nobody takes is dropped, in whole lines.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._rest = b""  # of a line of which a part has been taken
        self._write: Callable[[bytes], int] = lambda data: os.write(self._fd, data)
        encoding = getattr(sys.stderr, "encoding", None)
        self._encoding = encoding if isinstance(encoding, str) else "utf-8"
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            self._write = len  # It is closed; nobody wants to hear.
            return
        if stat.S_ISSOCK(mode):
            stderr = socket.socket(fileno=os.dup(fd))
            self._write = lambda data: stderr.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        elif stat.S_ISFIFO(mode) or os.isatty(fd):
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:
                self._write = self._if_ready

    @property
    def terminal(self) -> bool:
        """Whether it is one."""
        return os.isatty(self._fd)

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal."""
        try:
            return os.get_terminal_size(self._fd)
        except OSError:
            return 0, 0

    def write(self, text: str, patience: float = 0.0) -> bool:
        """Write whole lines, waiting ``patience`` seconds at most; returns whether they were taken, or will be."""
        deadline = time.monotonic() + patience
        self._rest = self._push(self._rest, deadline)
        if self._rest:
            return False
        data = text.encode(self._encoding, "backslashreplace")
        left = self._push(data, deadline)
        if len(left) == len(data):
            return False
        self._rest = left
        return True

    def _push(self, data: bytes, deadline: float) -> bytes:
        """Write this; returns what was not taken until the deadline."""
        while data:
            try:
                taken = self._write(data)
            except BlockingIOError:
                taken = 0
            except OSError:
                return b""  # Nobody reads any more: no reason to let the server down.
            data = data[taken:]
            if data and not taken:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll(left * 1e3)
        return data

    def _if_ready(self, data: bytes) -> int:
        """Where it could not be opened anew: a pipe that is ready takes so much without waiting."""
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        if not ready.poll(0):
            return 0
        return os.write(self._fd, data[: select.PIPE_BUF])


class Reporter(Witness):
    """Tells a user what happens. This one says nothing."""

    wants_status = False
    """Whether to call ``status`` again and again."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The server is ready: ``sentence`` says what is frozen and how, ``facts`` says it for programs."""

    def note(self, event: str, sentence: str) -> None:
        """Something else that a user should know."""

    def status(self, awake: bool, in_flight: int, requests: int, share_frozen: float) -> None:
        """How things stand; called often."""

    def suspend(self) -> None:
        """The proxy is about to be stopped for a while, and the terminal is somebody else's."""

    def end(self, facts: Mapping[str, object]) -> None:
        """It is over."""


class JsonReporter(Reporter):
    """One JSON object a line."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._dropped = 0

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The event ``start``."""
        self._event("start", message=sentence, **facts)

    def note(self, event: str, sentence: str) -> None:
        """An event with a ``message``."""
        self._event(event, message=sentence)

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
        self._tell({"event": "end", **facts}, LAST_PATIENCE)

    def _event(self, event: str, **facts: object) -> None:
        self._tell({"event": event, **facts})

    def _tell(self, facts: Mapping[str, object], patience: float = 0.0) -> None:
        """Lines that nobody takes are dropped, and the next that is taken tells how many (``dropped``)."""
        line = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), **facts}
        if self._dropped:
            line["dropped"] = self._dropped
        self._dropped = 0 if self.output.write(json.dumps(line) + "\n", patience) else self._dropped + 1


class TextReporter(Reporter):
    """A sentence a line."""

    def start(self, sentence: str, facts: Mapping[str, object]) -> None:
        """The sentence."""
        self._say(sentence)

    def note(self, event: str, sentence: str) -> None:
        """The sentence."""
        self._say(sentence)

    def frozen(self, at: float, took: float) -> None:
        """Says so."""
        self._say(f"frozen (in {took * 1e3:.2f} ms)")

    def thawed(self, at: float, waited: float | None) -> None:
        """Says so."""
        self._say("thawed" if waited is None else f"thawed, a client waited {waited * 1e3:.2f} ms")

    def failed(self, what: str, reason: str) -> None:
        """Says why."""
        self._say(f"{what} failed: {reason}")

    def refused(self, exchanges: int) -> None:
        """Says how many."""
        self._say(f"{exchanges} request{'s' if exchanges > 1 else ''} answered 503: the thaw took too long")

    def _say(self, sentence: str) -> None:
        self.output.write(f"freeze-proxy: {sentence}\n")


class StatusLine(TextReporter):
    """Keeps the last row of a terminal to itself, and leaves the rows above to the server's output.

    It sets the scrolling region (DECSTBM) to all rows but the last, as long as the terminal has a few.
    """

    wants_status = True

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._rows = 0
        self._shown = ""

    def frozen(self, at: float, took: float) -> None:
        """The row shows it."""

    def thawed(self, at: float, waited: float | None) -> None:
        """The row shows it."""

    def status(self, awake: bool, in_flight: int, requests: int, share_frozen: float) -> None:
        """Write the row anew, where it has changed."""
        state = "awake " if awake else "frozen"
        rest = f"  in flight {in_flight}  requests {requests}  frozen {share_frozen:.1%} of the time"
        columns, rows = self.output.size()
        if rows < _LEAST_ROWS or columns < len(state):
            self._give_back(0.0)
            return
        if len(state + rest) > columns:
            rest = ""
        shown = f"\x1b[1;{32 if awake else 36}m{state}\x1b[0m{rest}"
        write = ""
        if rows != self._rows:
            if self._rows:
                # Where the terminal has grown, the row is now somewhere in the middle.
                write = f"\x1b7\x1b[r\x1b[{min(self._rows, rows)};1H\x1b[2K\x1b8"
            # One row down and up again (IND, CUU): what stands in the last row moves up, in its column.
            write += f"\x1bD\x1b[1A\x1b7\x1b[1;{rows - 1}r\x1b8"
        elif shown == self._shown:
            return
        taken = self.output.write(f"{write}\x1b7\x1b[{rows};1H\x1b[2K{shown}\x1b8")
        self._rows, self._shown = (rows, shown) if taken else (0, "")

    def suspend(self) -> None:
        """Give the row back, until the next status."""
        self._give_back(LAST_PATIENCE)

    def end(self, facts: Mapping[str, object]) -> None:
        """Give the row back."""
        self._give_back(LAST_PATIENCE)

    def _give_back(self, patience: float) -> None:
        if self._rows:
            self.output.write(f"\x1b7\x1b[r\x1b[{self._rows};1H\x1b[2K\x1b8", patience)
            self._rows, self._shown = 0, ""


_LEAST_ROWS = 4


def reporter(log_format: str) -> Reporter:
    """The reporter for a log format; ``auto`` is the status line on a terminal, JSON elsewhere."""
    output = Output()
    if log_format == "auto":
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        return StatusLine(output) if output.terminal and not dumb else JsonReporter(output)
    return {"json": JsonReporter, "text": TextReporter, "none": Reporter}[log_format](output)


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
