"""The demo: sleeptalker behind freeze-proxy, requests with pauses between them, and what can be seen of it.

Run by ``make demo``. Shows it while it happens, then freeze-proxy's own table, and leaves with 1 if a tick appeared
while the server was frozen, a request failed, or the server was not frozen in the pauses. ``--save FILE.json`` keeps
the data of the run.
"""

import argparse
import contextlib
import ctypes
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scripts.demo_record import LINES, Frozen, Request, Run, Tick, frozen_within, verdict

ROOT = Path(__file__).resolve().parent.parent
SLEEPTALKER = ROOT / "examples" / "sleeptalker" / "sleeptalker.py"
START_PATIENCE = 60.0
END_PATIENCE = 15.0
REQUEST_PATIENCE = 20.0
PR_SET_PDEATHSIG = 1

PLAN = ((2.0, "request 1"), (5.0, "request 2"), (1.0, "request 3"), (5.0, "request 4"))
"""Seconds from one request's beginning to the next one's: 2 and 3 overlap, and before the others it is quiet."""
PLANNED = sum(pause for pause, _ in PLAN) + 2 + 2
"""Seconds from the start to the end: the last request takes two, and two of silence follow."""


class DemoError(Exception):
    """The demo cannot go on; says why."""


class Recorder:
    """Takes note of what happens, from whatever thread, and tells ``watch`` of it."""

    def __init__(self, watch: "Callable[[float, str, str], None]") -> None:
        self._lock = threading.Lock()
        self._watch = watch
        self._change = threading.Condition(self._lock)
        self.began: float | None = None
        self.start: dict[str, Any] = {}
        self.ticks: list[Tick] = []
        self.requests: dict[str, Request] = {}
        self.frozen: list[Frozen] = []
        self.other: list[str] = []  # what freeze-proxy says that is no event: its table, or what went wrong
        self.closed = False

    def line(self, line: str) -> None:
        """A line of sleeptalker's."""
        words = line.split()
        with self._lock:
            if len(words) == 4 and words[0] == "tick":
                tick = Tick(int(words[1]), float(words[3]))
                self.ticks.append(tick)
                self._watch(tick.at, "tick", f"tick {tick.number}")
            else:
                self.other.append(line)

    def log(self, line: str) -> None:
        """A line of freeze-proxy's."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        with self._lock:
            if isinstance(event, dict) and "event" in event:
                self._event(event)
            else:
                self.other.append(line)
            self._change.notify_all()

    def _event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "start":
                self.began, self.start = time.monotonic(), event
            case "frozen":
                at = event["monotonic"]
                self.frozen.append(Frozen(at, None, took_us=event["took_us"]))
                self._watch(at, "frozen", f"frozen, within {event['took_us']} µs")
            case "thawed":
                at, waited = event["monotonic"], event["waited_us"]
                if self.frozen and self.frozen[-1].ended is None:
                    span = self.frozen[-1]
                    self.frozen[-1] = Frozen(span.began, at, span.took_us, waited)
                self._watch(at, "awake", "awake" + ("" if waited is None else f"; the request waited {waited} µs"))
            case "failed" | "refused":
                self._watch(time.monotonic(), "fault", json.dumps(event))

    def request(self, request: Request) -> None:
        """How far a request has come."""
        with self._lock:
            self.requests[request.name] = request
            if request.error is not None:
                self._watch(time.monotonic(), "fault", f"{request.name} failed: {request.error}")
            elif request.first is None:
                self._watch(request.began, "request", f"{request.name} is sent")
            elif request.ended is None:
                after = (request.first - request.began) * 1000
                self._watch(request.first, "request", f"{request.name}: first line after {after:.1f} ms")
            else:
                took = request.ended - request.began
                self._watch(request.ended, "request", f"{request.name} is answered, in {took:.3f} s")

    def close(self) -> None:
        """freeze-proxy says no more."""
        with self._lock:
            self.closed = True
            self._change.notify_all()

    def wait_for_start(self) -> None:
        """Returns when freeze-proxy serves."""
        with self._lock:
            self._change.wait_for(lambda: self.closed or self.began is not None, START_PATIENCE)
            if self.began is None:
                raise DemoError("\n".join(["freeze-proxy did not start.", *self.other]))

    def snapshot(self) -> tuple[list[Tick], list[Request], list[Frozen]]:
        """What is known now."""
        with self._lock:
            return list(self.ticks), list(self.requests.values()), list(self.frozen)


class Client(threading.Thread):
    """Sends one request on a connection of its own and reads the answer line by line as it comes."""

    def __init__(self, recorder: Recorder, address: str, name: str) -> None:
        super().__init__()
        self._recorder = recorder
        self._address = address
        self._request_name = name

    def run(self) -> None:
        """Send, read, record."""
        name, record = self._request_name, self._recorder.request
        began, first, status, lines = time.monotonic(), None, None, []
        record(Request(name, began))
        try:
            with contextlib.closing(http.client.HTTPConnection(self._address, timeout=REQUEST_PATIENCE)) as connection:
                connection.request("GET", "/")
                response = connection.getresponse()
                status = response.status
                for line in iter(response.readline, b""):
                    lines.append(line.decode(errors="replace").rstrip("\n"))
                    if first is None:
                        first = time.monotonic()
                        record(Request(name, began, first, None, status, tuple(lines)))
                record(Request(name, began, first, time.monotonic(), status, tuple(lines)))
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
            record(Request(name, began, first, time.monotonic(), status, tuple(lines), reason))


class Lanes:
    """The run as lanes of characters, one for each request, one for the ticks, one for the server's state."""

    LABEL = 11

    def __init__(self, recorder: Recorder, console: Console) -> None:
        self._recorder = recorder
        self._cells = max(30, min(console.width, 120) - self.LABEL - 1)
        plain = not (console.encoding or "").lower().startswith("utf")
        self._bar, self._dot, self._frozen, self._awake = "=o#-" if plain else "━●▒─"
        self.now: float | None = None  # None: the present

    def __rich__(self) -> Group:
        ticks, requests, frozen = self._recorder.snapshot()
        began = self._recorder.began
        now = time.monotonic() if self.now is None else self.now
        if began is None:
            return Group(Text("starting …", style="dim"))
        second = self._cells / max(PLANNED, now - began)

        def cell(at: float) -> int:
            return max(0, min(self._cells - 1, int((at - began) * second)))

        reached = cell(now) + 1
        lanes = []
        for _, name in PLAN:
            lane = [" "] * self._cells
            for request in requests:
                if request.name == name:
                    for at in range(cell(request.began), cell(request.ended or now) + 1):
                        lane[at] = self._bar
            lanes.append(self._label(name) + Text("".join(lane).rstrip(), style="bold cyan"))
        states = [self._awake] * reached
        for span in frozen:
            for at in range(cell(span.began), cell(span.ended or now) + 1):
                states[at] = self._frozen
        for tick in ticks:
            at = cell(tick.at)
            if at < reached:
                states[at] = self._dot
        server = self._label("server")
        for char in states:
            server.append(char, style={self._dot: "bold green", self._frozen: "blue"}.get(char, "green"))
        lanes += [server, self._scale(second), self._legend(ticks, frozen, began, now)]
        return Group(*lanes)

    def _label(self, name: str) -> Text:
        return Text(f"{name:<{self.LABEL}}", style="dim")

    def _scale(self, second: float) -> Text:
        line = [" "] * (self._cells + 4)
        step = 5 if second * 5 < self._cells else 10
        for at in range(0, int(self._cells / second) + 1, step):
            for offset, char in enumerate(f"{at} s"):
                line[min(int(at * second), self._cells - 4) + offset] = char
        return Text(" " * self.LABEL + "".join(line).rstrip(), style="dim")

    def _legend(self, ticks: list[Tick], frozen: list[Frozen], began: float, now: float) -> Text:
        legend = Text(" " * self.LABEL)
        legend.append(self._dot, style="bold green")
        legend.append(f" tick ({len(ticks)} so far)   " if self.now is None else f" tick ({len(ticks)})   ")
        legend.append(self._awake * 3, style="green")
        legend.append(" awake   ")
        legend.append(self._frozen * 3, style="blue")
        seconds = sum((span.ended or now) - span.began for span in frozen)
        legend.append(f" frozen ({seconds:.1f} of {now - began:.1f} s)")
        return legend


@contextlib.contextmanager
def display(recorder: Recorder, console: Console) -> Iterator[Lanes]:
    """Lanes that grow, on a terminal."""
    lanes = Lanes(recorder, console)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lanes
        return
    with Live(get_renderable=lambda: lanes.__rich__(), console=console, refresh_per_second=10, transient=True):
        yield lanes


@contextlib.contextmanager
def freeze_proxy(recorder: Recorder, report: Path, options: list[str]) -> Iterator[subprocess.Popen[str]]:
    """sleeptalker behind freeze-proxy, its two outputs read by the recorder; ended whatever happens."""
    command = [sys.executable, "-m", "freeze_proxy", "run", "--listen", "127.0.0.1:0", "--ready-path", "/healthz"]
    command += ["--log-format", "auto", "--report", str(report), *options, "--", sys.executable, str(SLEEPTALKER)]
    # A session of its own: Ctrl-C comes to the demo alone, which then ends freeze-proxy in good order.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_the_demo,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=read, args=(process.stdout, recorder.line)),
        threading.Thread(target=read, args=(process.stderr, recorder.log, recorder.close)),
    ]
    for reader in readers:
        reader.start()
    try:
        yield process
    finally:
        end(process)
        for reader in readers:
            reader.join()


def die_with_the_demo() -> None:
    """In the child that becomes freeze-proxy: SIGTERM when the demo is gone, even by SIGKILL (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end(process: subprocess.Popen[str]) -> int:
    """SIGTERM, and SIGKILL to what does not heed it; returns the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(END_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def read(stream: IO[str], line: "Callable[[str], None]", at_end: "Callable[[], None] | None" = None) -> None:
    """Hand on a stream's lines until it closes."""
    with stream:
        for text in stream:
            line(text.rstrip("\n"))
    if at_end is not None:
        at_end()


def send_requests(recorder: Recorder) -> None:
    """Carry out the plan."""
    clients = []
    for pause, name in PLAN:
        time.sleep(pause)
        client = Client(recorder, recorder.start["listen"], name)
        client.start()
        clients.append(client)
    for client in clients:
        client.join()
    time.sleep(2.0)


def perform(console: Console, options: list[str]) -> tuple[Run, list[str]]:
    """The whole run, shown while it happens, and what freeze-proxy said at its end."""
    live = console.is_terminal and not console.is_dumb_terminal
    styles = {"tick": "green", "frozen": "blue", "awake": "green", "request": "bold cyan", "fault": "bold red"}
    recorder: Recorder
    trouble: list[str] = []

    def watch(at: float, kind: str, text: str) -> None:
        # On a terminal the lanes show it. Elsewhere a line for each thing that happens.
        if kind == "fault":
            trouble.append(text)
        if recorder.began is not None and not live:
            indent = "    " if kind == "tick" else ""
            console.print(Text(f"{at - recorder.began:6.2f} s  {indent}{text}", style=styles[kind]), soft_wrap=True)

    recorder = Recorder(watch)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        with freeze_proxy(recorder, report, options) as process:
            recorder.wait_for_start()
            assert recorder.began is not None
            console.print(Text(recorder.start["message"], style="dim"), soft_wrap=True)
            with display(recorder, console) as lanes:
                send_requests(recorder)
                ended = time.monotonic()
            # The picture of the run ends here. The ticks that come while it winds up are judged with the others.
            lanes.now = ended
            exit_code = end(process)
        console.print(lanes)
        if live and trouble:
            console.print(Text("\n".join(trouble), style="bold red"))
        ticks, requests, frozen = recorder.snapshot()
        run = Run(
            began=recorder.began,
            ended=ended,
            ticks=tuple(ticks),
            requests=tuple(requests),
            frozen=tuple(frozen),
            exit_code=exit_code,
            report=json.loads(report.read_text()) if report.exists() else {},
        )
        return run, recorder.other


def main() -> int:
    """Run the demo and judge it."""
    parser = argparse.ArgumentParser(prog="make demo", description="sleeptalker behind freeze-proxy, watched.")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the data of the run")
    parser.add_argument(
        "options", nargs="*", metavar="OPTION", help="passed on to freeze-proxy run, after --: -- --freezer process"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    console = Console(highlight=False)
    console.print(f"A server that prints a tick every 500 ms, and {len(PLAN)} requests of two seconds each:\n")
    try:
        run, table = perform(console, arguments.options)
    except DemoError as error:
        console.print(Text(str(error), style="bold red"))
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.save is not None:
        run.save(arguments.save)
    console.print()
    console.print(Text("\n".join(table)))
    console.print()
    faults = verdict(run)
    for fault in faults:
        console.print(Text(fault, style="bold red"))
    if not faults:
        frozen = frozen_within(run, run.began, run.ended)
        console.print(
            Text(
                f"All {len(run.requests)} requests were answered “{' … '.join(LINES)}”. "
                f"Not one of {len(run.ticks)} ticks came in the {frozen:.1f} s in which the server was frozen.",
                style="bold green",
            )
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
