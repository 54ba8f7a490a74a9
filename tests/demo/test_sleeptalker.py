"""The example by itself: what it says, how long it takes, and how it ends."""

import http.client
import itertools
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

SLEEPTALKER = Path(__file__).resolve().parents[2] / "examples" / "sleeptalker" / "sleeptalker.py"
PATIENCE = 15.0


class Server:
    """A running sleeptalker and the lines it prints."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(SLEEPTALKER)],
            env={**os.environ, "PORT": str(self.port)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.lines.put(line)

    def wait_until_awake(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                assert self.get("/healthz")[1] == b"awake\n"
                return
            except ConnectionRefusedError:
                assert time.monotonic() < until
                time.sleep(0.02)

    def get(self, path: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    try:
        server.wait_until_awake()
        yield server
    finally:
        server.end()


def test_it_ticks_unasked_and_stamps_its_ticks(server: Server) -> None:
    times = []
    for number in (1, 2, 3):
        line = server.lines.get(timeout=PATIENCE)
        match = re.fullmatch(rf"tick {number} at (\d+\.\d{{6}})\n", line)
        assert match, line
        times.append(float(match[1]))
    assert times[0] <= time.monotonic()
    assert all(after - before >= 0.49 for before, after in itertools.pairwise(times))


def test_it_sends_a_line_at_once_and_one_at_the_end_and_keeps_the_connection(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        for _ in range(2):
            began = time.monotonic()
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 200
            assert response.readline() == b"Hm? One moment.\n"
            first = time.monotonic() - began
            assert response.read() == b"Here you are.\n"
            took = time.monotonic() - began
            assert not response.will_close
            assert first < 1.5, "the first line did not come at once"
            assert took >= 2.0
            assert took - first > 0.5
    finally:
        connection.close()


def test_http_1_0_gets_it_until_the_connection_closes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        got = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert body == b"Hm? One moment.\nHere you are.\n"


def test_sigterm_lets_it_finish_and_leave_with_0(server: Server) -> None:
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)  # must not keep it
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.readline() == b"Hm? One moment.\n"
        server.process.send_signal(signal.SIGTERM)
        assert response.read() == b"Here you are.\n"
        assert server.process.wait(PATIENCE) == 0
    finally:
        connection.close()
        idle.close()
