"""A hostile pod: ``python -m tests.containers.attacker KIND PORT ADDRESS SECONDS``, with tokens on standard input.

It prints a line when it has begun, attacks the daemon from ADDRESS as hard as one process can, and prints what it heard
in the end: how often each status, as JSON. ``ended``: connections that were closed without an answer.
"""

import json
import re
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

CONNECTIONS = 200
BLOCK = 128 * 1024

NUMBERS = count()
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")

Stream = Iterator[bytes]


def request(path: str, token: str = "", method: str = "POST", fields: str = "") -> bytes:
    """A request without a body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\n" + (f"Token: {token}\r\n" if token else "") + fields
    return f"{head}Content-Length: 0\r\n\r\n".encode()


def repeated(data: bytes) -> Stream:
    """The same for ever, in large blocks."""
    block = data * max(1, BLOCK // len(data))
    while True:
        yield block


def nothing_here(_tokens: list[str]) -> Stream:
    """The cheapest requests that there are, pipelined."""
    return repeated(b"GET /x HTTP/1.1\r\n\r\n")


def forged(tokens: list[str]) -> Stream:
    """Every request with another token, which nobody has signed."""
    head = tokens[0].rpartition(".")[0]
    while True:
        yield b"".join(request("/thaw", f"{head}.x{next(NUMBERS)}") for _ in range(40))


def stolen_name(tokens: list[str]) -> Stream:
    """The same forged token over and over."""
    return repeated(request("/thaw", tokens[0].rpartition(".")[0] + ".AAAA"))


def own(tokens: list[str]) -> Stream:
    """Its own good token: its own container is frozen and thawed without end."""
    # With a lease: what it has frozen when it is over would stay so otherwise, as it has asked for.
    return repeated(request("/freeze", tokens[0], fields="Lease: connection\r\n") + request("/thaw", tokens[0]))


def metrics(_tokens: list[str]) -> Stream:
    """What costs most on the port for health and metrics."""
    return repeated(request("/metrics", method="GET"))


def garbage(_tokens: list[str]) -> Stream:
    """No HTTP."""
    return repeated(bytes(range(256)) * 64)


def endless(_tokens: list[str]) -> Stream:
    """A head without an end."""
    yield b"POST /thaw HTTP/1.1\r\n"
    yield from repeated(b"x: y\r\n" * 1000)


def connects(_tokens: list[str]) -> Stream:
    """One request a connection, and the next connection."""
    while True:
        yield request("/thaw", fields="Connection: close\r\n")


KINDS: dict[str, Callable[[list[str]], Stream]] = {
    each.__name__: each for each in (nothing_here, forged, stolen_name, own, metrics, garbage, endless, connects)
}


class Line:
    """One connection of many; another takes its place when it ends."""

    def __init__(self, kind: str, tokens: list[str], where: tuple[str, int], here: str) -> None:
        self.where = where
        self.here = here
        self.attack = KINDS[kind]
        self.tokens = tokens
        self.heard: Counter[str] = Counter()
        self.again = kind == "connects"

    def open(self) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((self.here, 0))
        self.socket.setblocking(False)
        self.socket.connect_ex(self.where)
        self.stream = self.attack(self.tokens)
        self.rest = b""
        self.sent = False

    def push(self) -> None:
        """Send as much as goes."""
        try:
            for _ in range(4):
                if not self.rest:
                    if self.again and self.sent:
                        return
                    self.rest = next(self.stream)
                    self.sent = True
                self.rest = self.rest[self.socket.send(self.rest) :]
        except OSError:
            pass  # full, or about to be seen as ended

    def pull(self) -> bool:
        """Read what there is; whether it goes on."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self.heard["ended"] += 1
            return False
        self.heard.update(status.decode() for status in ANSWER.findall(data))
        return True


def main() -> None:
    """Attack."""
    kind, port, here, seconds = sys.argv[1:5]
    tokens = sys.stdin.read().split()
    poll = selectors.DefaultSelector()
    lines = [Line(kind, tokens, ("127.0.0.1", int(port)), here) for _ in range(CONNECTIONS)]

    def begin(line: Line) -> None:
        line.open()
        poll.register(line.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, line)

    for line in lines:
        begin(line)
    print("begun", flush=True)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        for key, events in poll.select(0.1):
            line = key.data
            if events & selectors.EVENT_WRITE:
                line.push()
            if events & selectors.EVENT_READ and not line.pull():
                poll.unregister(line.socket)
                line.socket.close()
                begin(line)
        time.sleep(0.001)  # what it does costs itself a processor as well
    heard: Counter[str] = Counter()
    for line in lines:
        line.socket.close()
        heard += line.heard
    print(json.dumps(heard))


if __name__ == "__main__":
    main()
