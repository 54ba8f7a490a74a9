"""A stand-in for queue-proxy: it counts requests as the real one does, reports, and tells its statistics."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from freeze_proxy.daemon.ambient.statistics import KIND, PORT, TABLE
from freeze_proxy.protobuf import classes

_Stat = classes("freeze_proxy.test_queue", TABLE)["Stat"]


class Stats:
    """Counts as ``pkg/http/stats/request.go`` of knative.dev/networking does. ``now`` is given, in seconds."""

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self._last = self._began = now
        self._area = self._used = 0.0
        self._count = 0
        self.published = (0.0, 0.0, 0.0)

    def began(self, now: float) -> None:
        self._compute(now)
        self.in_flight += 1
        self._count += 1

    def ended(self, now: float) -> None:
        self._compute(now)
        self.in_flight -= 1

    def report(self, now: float) -> tuple[float, float]:
        """Average concurrency and number of requests since the last one."""
        self._compute(now)
        found = (self._area / self._used if self._used else 0.0, float(self._count))
        self._area = self._used = 0.0
        self._count = 0
        return found

    def publish(self, report: tuple[float, float], now: float) -> None:
        """What is answered from now on, with the uptime at this moment."""
        self.published = (*report, now - self._began)

    def _compute(self, now: float) -> None:
        if now > self._last:
            self._used += now - self._last
            self._area += self.in_flight * (now - self._last)
            self._last = now


class QueueProxy:
    """Serves at an address of its own, beside the server at ``port`` there; in a ``with``."""

    def __init__(self, ip: str, port: int, period: float = 1.0) -> None:
        self.ip = ip
        self._server_port = port
        self.asked = 0
        self.broken = False
        self._lock = threading.Lock()
        self._stats = Stats(time.monotonic())
        self._end = threading.Event()
        self._period = period
        queue = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                queue.asked += 1
                assert self.headers["Accept"] == KIND
                concurrency, requests, uptime = queue._stats.published
                body = _Stat(
                    average_concurrent_requests=concurrency, request_count=requests, process_uptime=uptime
                ).SerializeToString()
                self.send_response(500 if queue.broken else 200)
                self.send_header("Content-Type", KIND)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer((ip, PORT), Handler)
        self._server.daemon_threads = True

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """A request, as queue-proxy counts it."""
        with self._lock:
            self._stats.began(time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._stats.ended(time.monotonic())

    def get(self, path: str = "/", within: float = 10.0) -> tuple[int, float]:
        """A request to the server, counted; its status and how long it took."""
        with self.in_flight():
            return self.past(path, within)

    def past(self, path: str = "/", within: float = 10.0) -> tuple[int, float]:
        """One that queue-proxy does not count, like its probes."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(self.ip, self._server_port, timeout=within)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            return answer.status, time.monotonic() - began
        finally:
            connection.close()

    def _report(self) -> None:
        while not self._end.wait(self._period):
            with self._lock:
                report = self._stats.report(time.monotonic())
            self._stats.publish(report, time.monotonic())

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        threading.Thread(target=self._report, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
