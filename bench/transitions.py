"""Asks a daemon for so many freezes and thaws a second: ``python -I -m bench.transitions SPEC.json``.

Each pod has a connection with a lease. The load is an open loop: what is asked for, and when, does not depend on the
answers, and the time of an answer counts from the moment at which its request was due. Standard library only, one
thread. It says ``{"known": n}`` while it makes the pods known, ``{"ready": true}``, after a line on its standard
input ``{"second": n}`` and at last the results; it holds its connections, and with them what is frozen, until its
standard input ends.
"""

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from bench.pausing import order

AT_ONCE = 16
"""Pods that are made known at a time."""
PATIENCE = 20.0
FIXED = 9
"""Where the status stands in an answer."""


class Pod:
    """One pod's connection. ``due``: for each request that is not answered, when it was due and whether it freezes."""

    def __init__(self, port: int, token: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = {True: order("/freeze", token), False: order("/thaw", token)}
        self.frozen = False
        self.due: deque[tuple[float, bool]] = deque()
        self.unread = b""

    def ask(self, due: float) -> None:
        """For the opposite of what it was asked for last."""
        self.frozen = not self.frozen
        self.due.append((due, self.frozen))
        self.socket.send(self.requests[self.frozen])

    def answers(self) -> list[bytes]:
        """The whole answers that have come."""
        self.unread += self.socket.recv(65536)
        whole: list[bytes] = []
        while True:
            head, end, rest = self.unread.partition(b"\r\n\r\n")
            if not end:
                return whole
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(rest) < length:
                return whole
            whole.append(head + end + rest[:length])
            self.unread = rest[length:]

    def settle(self) -> None:
        """Wait for one answer, which must be a good one."""
        answers: list[bytes] = []
        while not answers:
            answers = self.answers()
        self.due.popleft()
        if answers[0][FIXED : FIXED + 3] != b"200":
            raise RuntimeError(answers[0].decode(errors="replace"))


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _known(port: int, tokens: list[str]) -> list[Pod]:
    """Connections to all, each pod frozen and thawed once, and every other one left frozen."""
    pods: list[Pod] = []
    for begin in range(0, len(tokens), AT_ONCE):
        some = [Pod(port, token) for token in tokens[begin : begin + AT_ONCE]]
        for _ in range(2):
            for pod in some:
                pod.ask(0.0)
            for pod in some:
                pod.settle()
        for pod in some[::2]:
            pod.ask(0.0)
        for pod in some[::2]:
            pod.settle()
        pods += some
        _say(known=len(pods))
    return pods


class Load:
    """So many requests a second to these pods, in turns."""

    def __init__(self, pods: list[Pod], rate: float, seconds: float) -> None:
        self._pods = pods
        self._every = 1.0 / rate
        self._count = round(rate * seconds)
        self._seconds = seconds
        self._epoll = select.epoll()
        self._by_fd = {pod.socket.fileno(): pod for pod in pods}
        for pod in pods:
            pod.socket.setblocking(False)
            self._epoll.register(pod.socket, select.EPOLLIN)
        self.took: dict[bool, list[float]] = {True: [], False: []}
        self.behind: list[float] = []
        self.wrong: list[str] = []

    def run(self) -> dict[str, Any]:
        """The load, and what became of it; times in microseconds."""
        now = time.perf_counter
        pods, every, behind = self._pods, self._every, self.behind
        begin = now() + 0.05
        sent, told, last = 0, 0.0, len(pods)
        while sent < self._count:
            at = now()
            while sent < self._count and (due := begin + sent * every) <= at:
                pods[sent % last].ask(due)
                sent += 1
                behind.append(now() - due)
            if at - begin >= told + 1:
                told += 1
                _say(second=round(told))
            self._read(max(0.0, begin + sent * every - now()))
        end = now()
        while any(pod.due for pod in pods) and now() < end + PATIENCE:
            self._read(0.1)
        return {
            "sent": sent,
            "seconds": end - begin,
            "answered": len(self.took[True]) + len(self.took[False]),
            "lost": sum(len(pod.due) for pod in pods),
            "wrong": self.wrong[:10],
            "freeze_us": [round(took * 1e6, 1) for took in self.took[True]],
            "thaw_us": [round(took * 1e6, 1) for took in self.took[False]],
            "behind_us": [round(took * 1e6, 1) for took in behind],
            "frozen": [pod.frozen for pod in pods],
        }

    def _read(self, seconds: float) -> None:
        # select(2) counts in microseconds, epoll_wait(2) in milliseconds.
        if not select.select([self._epoll], [], [], seconds)[0]:
            return
        for fd, _ in self._epoll.poll(0):
            pod = self._by_fd[fd]
            try:
                answers = pod.answers()
            except BlockingIOError:
                continue
            if not answers and not pod.unread:
                self._epoll.unregister(fd)
                self.wrong.append("The daemon has closed a connection.")
                continue
            at = time.perf_counter()
            for answer in answers:
                due, freezes = pod.due.popleft()
                self.took[freezes].append(at - due)
                state = b'{"state": "frozen"' if freezes else b'{"state": "awake"'
                if answer[FIXED : FIXED + 3] != b"200" or state not in answer:
                    self.wrong.append(answer.decode(errors="replace"))


def main() -> None:
    """As the file says: ``port``, ``tokens``, ``rate`` of requests, ``seconds``."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    pods = _known(spec["port"], spec["tokens"])
    load = Load(pods, spec["rate"], spec["seconds"])
    _say(ready=True)
    sys.stdin.readline()
    gc.collect()
    gc.freeze()
    gc.disable()
    _say(**load.run())
    sys.stdin.read()


if __name__ == "__main__":
    main()
