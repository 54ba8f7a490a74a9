"""A million mixed exchanges and their aborts through one relay: at the end, nothing may be in flight."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from typing import Any

from bench.machine import (
    LOAD_CORE,
    PROXY_CORE,
    ROOT,
    BenchError,
    free_port,
    interpreter,
    listening,
    memory_kib,
    on_cores,
    running,
    wait_until,
)
from bench.programs import backend, own_folder
from bench.relay import Tell, compile_all

CLIENTS = 12
SETTLE = 10.0
"""Seconds for the relay to notice that all clients have left; it gives a client 5 s to fetch its last response."""


def _length(port: int, request: bytes) -> int:
    """The length of a response to a request that the server answers at once."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(request)
        connection.settimeout(0.3)
        size = 0
        with contextlib.suppress(TimeoutError):
            while got := connection.recv(1 << 20):
                size += len(got)
        return size


def _sizes(port: int) -> dict[str, int]:
    host = b" HTTP/1.1\r\nHost: soak\r\n"
    return {
        "small": _length(port, b"GET /" + host + b"\r\n"),
        "small-close": _length(port, b"GET /" + host + b"Connection: close\r\n\r\n"),
        "head": _length(port, b"HEAD /64k" + host + b"\r\n"),
        "chunked": _length(port, b"GET /chunked" + host + b"\r\n"),
        "64k": _length(port, b"GET /64k" + host + b"\r\n"),
    }


def _ask(relay: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The relay's counters."""
    assert relay.stdout is not None
    relay.send_signal(signal.SIGUSR1)
    if not select.select([relay.stdout], [], [], 5)[0]:
        raise BenchError("The relay does not answer a signal within 5 s.")
    line = relay.stdout.readline()
    if not line:
        raise BenchError("The relay has ended; see what it said above.")
    counters: dict[str, Any] = json.loads(line)
    return counters


def run(quick: bool, tell: Tell) -> dict[str, Any]:
    """Soak, then count."""
    quota, limit = (20_000, 30) if quick else (1_000_000, 170)
    compile_all()
    with own_folder() as folder, on_cores(LOAD_CORE), contextlib.ExitStack() as stack:
        target, port = free_port(), free_port()
        stack.enter_context(backend(folder, target))
        sizes = json.dumps(_sizes(target))
        python = [interpreter(), "-I", "-S"]
        command = [*python, str(ROOT / "bench/relay_alone.py"), str(port), str(target), "soak"]
        relay = stack.enter_context(running(command, core=PROXY_CORE, stdout=subprocess.PIPE))
        wait_until(lambda: listening(port), 10, "the relay to listen")
        before = memory_kib(relay.pid)["Rss"]
        begin = time.monotonic()
        share = str(-(-quota // CLIENTS))
        clients = []
        for seed in range(CLIENTS):
            command = [*python, str(ROOT / "bench/soak_client.py"), str(port), str(seed), share, str(limit), sizes]
            clients.append(stack.enter_context(running(command, stdout=subprocess.PIPE)))
        while any(client.poll() is None for client in clients):
            if time.monotonic() > begin + limit + 30:
                raise BenchError("The soak's clients do not come to an end.")
            tell(f"soak: {_ask(relay)['requests']:,} exchanges")
            time.sleep(0.5)
        seconds = time.monotonic() - begin
        done, leaves, lost = 0, Counter[str](), []
        for client in clients:
            assert client.stdout is not None
            said = json.loads(client.stdout.read() or b'{"done": 0, "leaves": {}, "lost": ["a client has failed"]}')
            done += said["done"]
            leaves.update(said["leaves"])
            lost += said["lost"]
        tell("soak: settling")
        end = time.monotonic() + SETTLE
        counters = _ask(relay)
        while (counters["in_flight"] or counters["connections"]) and time.monotonic() < end:
            time.sleep(0.1)
            counters = _ask(relay)
        files = len(os.listdir(f"/proc/{relay.pid}/fd"))
        after = memory_kib(relay.pid)["Rss"]
    aborted = sum(
        count for how, count in leaves.items() if how.endswith(("-rst", "-fin")) and not how.startswith("fin")
    )
    return {
        "clients": CLIENTS,
        "seconds": seconds,
        "wanted": quota,
        "completed": done,
        "aborted_connections": aborted,
        "leaves": dict(sorted(leaves.items())),
        "lost": lost,
        "relay": counters,
        "files_open": files,
        "rss_kib": [before, after],
    }
