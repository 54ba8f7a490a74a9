"""The webhook: what a review costs, and how soon it is answered, at the rate of a cluster in a hurry.

One webhook on a core of its own, as ``freeze-proxy webhook`` starts it, with a certificate that it has made itself; the
tests' stand-in for the API server keeps its Secret. Reviews are the samples of Knative's pods, in turns, over TLS:

- an open loop of 100 a second over four connections that stay open, as an API server has them. Latency counts from the
  moment at which a review was due;
- the same with a new connection for each, as it is when nobody has asked for a while.
"""

import http.client
import json
import os
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

from bench.helpers import Json
from bench.machine import LOAD_CORE, PROXY_CORE, cpu_ns, memory_kib, on_cores, percentile
from bench.relay import Tell
from tests.support.api_server import ApiServer
from tests.support.webhooks import HOST, PODS, Webhook, install, review, trusted

RATE = 100
"""Reviews a second."""
CONNECTIONS = 4
HEADERS = {"Host": HOST, "Content-Type": "application/json"}


def run(quick: bool, tell: Tell) -> Json:
    """All of it."""
    seconds = 2 if quick else 30
    bodies = [json.dumps(review(json.loads(path.read_text()))).encode() for path in sorted(PODS.glob("*.json"))]
    with tempfile.TemporaryDirectory() as folder, on_cores(LOAD_CORE), ApiServer(Path(folder)) as server:
        install(server)
        began = time.monotonic()
        with on_cores(PROXY_CORE):
            webhook = Webhook(server.kubeconfig())
        with webhook:
            context = ssl.create_default_context(cadata=_started(webhook, server).decode())
            start = time.monotonic() - began
            pid, port = webhook.process.pid, webhook.port
            fresh = memory_kib(pid)
            loads = {}
            for name, kept in (("kept", True), ("new", False)):
                tell(f"webhook: {'connections that stay' if kept else 'a connection for each'}")
                loads[name] = _load(pid, port, context, bodies, seconds, kept)
            return {
                "rate": RATE,
                "before_all_else": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
                "seconds": seconds,
                "connections": CONNECTIONS,
                "bytes": [len(body) for body in bodies],
                "start_ms": start * 1000,
                "loads": loads,
                "memory_kib": {"fresh": fresh, "after": memory_kib(pid)},
            }


def _started(webhook: Webhook, server: ApiServer) -> bytes:
    """Whom to trust, once it listens."""
    assert webhook.port
    return trusted(server)


def _load(pid: int, port: int, context: ssl.SSLContext, bodies: list[bytes], seconds: float, kept: bool) -> Json:
    _Client(port, context, kept).ask(bodies[0])  # what is made at the first
    latencies: list[float] = []
    late: list[float] = []
    wrong: list[str] = []
    lock = threading.Lock()
    count = int(RATE * seconds)
    turn = iter(range(count))
    clients = [_Client(port, context, kept) for _ in range(CONNECTIONS)]
    began = time.perf_counter() + 0.05
    used = cpu_ns(pid)

    def work(client: _Client) -> None:
        while True:
            with lock:
                n = next(turn, None)
            if n is None:
                return
            due = began + n / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            said = client.ask(bodies[n % len(bodies)])
            took = time.perf_counter() - due
            with lock:
                latencies.append(took * 1000)
                late.append((sent - due) * 1000)
                if "patch" not in said["response"]:
                    wrong.append(json.dumps(said)[:200])

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = cpu_ns(pid) - used
    return {
        "reviews": len(latencies),
        "wrong": wrong,
        "cpu_us": used / 1000 / count,
        "ms": {"p50": percentile(latencies, 50), "p99": percentile(latencies, 99), "max": max(latencies)},
        "late_ms": {"p50": percentile(late, 50), "p99": percentile(late, 99)},
    }


class _Client:
    """Asks over one connection, or over a new one each time."""

    def __init__(self, port: int, context: ssl.SSLContext, kept: bool) -> None:
        self._port, self._context, self._kept = port, context, kept
        self._connection: http.client.HTTPSConnection | None = None

    def ask(self, body: bytes) -> Json:
        """The answer to a review."""
        connection = self._connection or self._connect()
        connection.request("POST", "/mutate?timeout=3s", body, HEADERS)
        said: Json = json.loads(connection.getresponse().read())
        self._connection = connection if self._kept else None
        if not self._kept:
            connection.close()
        return said

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(HOST, self._port, timeout=20, context=self._context)
        plain = socket.create_connection(("127.0.0.1", self._port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = self._context.wrap_socket(plain, server_hostname=HOST)
        return connection
