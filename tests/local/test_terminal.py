"""The status line on a terminal: it has the last row to itself, and the server's output the rows above."""

import fcntl
import http.client
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Callable, Iterator

import pyte
import pytest

from tests.support.proxies import SERVER, Proxies, Proxy
from tests.support.wait import until

COLUMNS, ROWS = 80, 12


class Terminal:
    """A terminal of so many rows and columns, and what is on its screen."""

    def __init__(self, columns: int, rows: int) -> None:
        self._ours, self.replica = pty.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.replica, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def rows(self) -> list[str]:
        """The screen now."""
        while select.select([self._ours], [], [], 0)[0]:
            data = os.read(self._ours, 65536)
            self.raw += data
            self._stream.feed(data)
        return [row.rstrip() for row in self._screen.display]

    def cursor(self) -> tuple[int, int]:
        return self._screen.cursor.x, self._screen.cursor.y

    def margins(self) -> bool:
        """Whether a part of the screen scrolls alone."""
        self.rows()
        margins = self._screen.margins
        return margins is not None and (margins.top, margins.bottom) != (0, self._screen.lines - 1)

    def see(self, what: Callable[[list[str]], bool], name: str) -> list[str]:
        try:
            until(lambda: what(self.rows()), name)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.rows())) from None
        return self.rows()

    def close(self) -> None:
        os.close(self.replica)
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(COLUMNS, ROWS)
    yield made
    made.close()


def start(proxies: Proxies, terminal: Terminal, *options: str, script: str = "") -> Proxy:
    """freeze-proxy with all three descriptors on the terminal; ``script`` runs before the server."""
    command = ["sh", "-c", f'{script} exec "$@"', "sh", *SERVER]
    ours = terminal.replica
    environment = {"TERM": "xterm"}
    return proxies.run(options=options, command=command, environment=environment, stdin=ours, stdout=ours, stderr=ours)


def frozen(rows: list[str]) -> bool:
    return rows[-1].startswith("frozen  in flight 0  requests ")


def test_it_shows_how_things_stand(proxies: Proxies, terminal: Terminal) -> None:
    proxy = start(proxies, terminal, "--grace", "300ms")
    rows = terminal.see(frozen, "the last row says that it is frozen")
    assert rows[-1].endswith("% of the time")
    assert any(row.startswith("freeze-proxy: http://127.0.0.1:") for row in rows)
    port = next(row for row in rows if row.startswith("freeze-proxy")).split(" ")[1].rpartition(":")[2]
    client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
    client.request("GET", "/slow")
    terminal.see(lambda rows: rows[-1].startswith("awake   in flight 1  requests 1"), "it is awake")
    client.getresponse().read()
    terminal.see(frozen, "it is frozen again")
    client.close()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143


def test_the_servers_output_stays_whole_above_it(proxies: Proxies, terminal: Terminal) -> None:
    """More lines than there are rows, before the status line comes and after."""
    lines = "for i in $(seq 30); do echo before $i; done; (for i in $(seq 60); do echo after $i; sleep 0.01; done) &"
    proxy = start(proxies, terminal, "--grace", "2s", script=lines)
    rows = terminal.see(lambda rows: "after 60" in rows, "the last line is there")
    shown = terminal.raw.replace(b"\r\n", b"\n").decode()
    for word, count in (("before", 30), ("after", 60)):
        for number in range(1, count + 1):
            assert f"{word} {number}\n" in shown
    last = rows.index("after 60")
    assert rows[last - 7 : last + 1] == [f"after {number}" for number in range(53, 61)]
    assert rows[-1].startswith("awake ")
    proxy.signal(signal.SIGTERM)
    proxy.wait()


def test_a_line_that_the_server_has_not_ended_goes_on(proxies: Proxies, terminal: Terminal) -> None:
    script = "printf 'half a '; (sleep 1.5; echo line) &"
    proxy = start(proxies, terminal, "--grace", "5s", script=script)
    terminal.see(lambda rows: rows[-1].startswith("awake "), "the status line is there")
    terminal.see(lambda rows: any(row.startswith("line") or row.endswith("line") for row in rows), "the line has ended")
    proxy.signal(signal.SIGTERM)
    proxy.wait()


@pytest.mark.parametrize("filled", [0, 3, 30])
def test_at_the_end_the_row_is_given_back(proxies: Proxies, terminal: Terminal, filled: int) -> None:
    proxy = start(proxies, terminal, script=f"for i in $(seq {filled}); do echo line $i; done;")
    terminal.see(frozen, "it is frozen")
    assert terminal.margins()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    rows = terminal.rows()
    assert not terminal.margins()
    assert not any("in flight" in row for row in rows)
    # The table is whole, and the next line comes after it.
    bottom = max(number for number, row in enumerate(rows) if row)
    assert rows[bottom].startswith("└")
    assert sum("share of time frozen" in row for row in rows) == 1
    assert terminal.cursor()[0] == 0
    assert terminal.cursor()[1] > bottom or bottom == ROWS - 1


def test_the_terminal_changes_its_size(proxies: Proxies, terminal: Terminal) -> None:
    proxy = start(proxies, terminal, script="for i in $(seq 5); do echo line $i; done;")
    terminal.see(frozen, "it is frozen")
    terminal.resize(COLUMNS, ROWS + 6)
    rows = terminal.see(frozen, "it is in the new last row")
    assert len(rows) == ROWS + 6
    assert sum("in flight" in row for row in rows) == 1
    terminal.resize(COLUMNS, ROWS - 4)
    rows = terminal.see(frozen, "it is in the new last row again")
    assert sum("in flight" in row for row in rows) == 1
    terminal.resize(20, ROWS - 4)
    terminal.see(lambda rows: rows[-1] == "frozen", "only what fits is shown")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    assert not terminal.margins()


@pytest.mark.parametrize("size", [(80, 3), (80, 1), (4, 12), (0, 0)])
def test_a_tiny_terminal_is_left_alone(proxies: Proxies, size: tuple[int, int]) -> None:
    terminal = Terminal(80, 12)
    try:
        columns, rows = size
        fcntl.ioctl(terminal.replica, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        proxy = start(proxies, terminal)
        terminal.see(lambda rows: any("freeze-proxy: http" in row for row in rows), "it has started")
        until(lambda: proxy.cgroups() and _frozen(proxy.cgroups()[0]), "it is frozen")
        assert b"\x1b" not in terminal.raw
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 143
        terminal.rows()
        assert b"\x1b" not in terminal.raw
    finally:
        terminal.close()


def _frozen(path: str) -> bool:
    with open(f"{path}/cgroup.events", encoding="ascii") as file:
        return "frozen 1" in file.read()


def test_a_dumb_terminal_gets_json(proxies: Proxies, terminal: Terminal) -> None:
    command = ["sh", "-c", 'exec "$@"', "sh", *SERVER]
    ours = terminal.replica
    proxy = proxies.run(command=command, environment={"TERM": "dumb"}, stdout=ours, stderr=ours)
    terminal.see(lambda rows: any('"event": "frozen"' in "".join(rows) for _ in rows), "it speaks JSON")
    assert b"\x1b" not in terminal.raw
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143


def test_a_terminal_whose_output_is_stopped(proxies: Proxies, terminal: Terminal) -> None:
    """Ctrl-S: the requests go on."""
    proxy = start(proxies, terminal, "--log-format", "text")
    rows = terminal.see(lambda rows: any("freeze-proxy: http" in row for row in rows), "it has started")
    port = next(row for row in rows if row.startswith("freeze-proxy: http")).split(" ")[1].rpartition(":")[2]
    os.write(terminal._ours, b"\x13")
    for _ in range(20):
        until(lambda: _frozen(proxy.cgroups()[0]), "it is frozen")
        client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=2)
        client.request("GET", "/there")
        assert client.getresponse().read() == b"/there"
        client.close()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    os.write(terminal._ours, b"\x11")
