"""Nothing is lost when requests arrive at the very moment of a freeze.

With a grace of 2 ms the next freeze is ordered 2 ms after a response. Each try sends a request at a random moment from
1 ms before that to 3 ms after it, so that it meets a server awake, about to be frozen, half frozen, and frozen.
"""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.raw import RawClient, request
from tests.support.running import Beside, Event, Running
from tests.support.servers import SERVERS, nginx, nginx_h2c
from tests.support.starting import Many, Start, Started

GRACE = 0.002
EARLY, LATE = 0.001, 0.003
LATER = 0.008
"""Instead, where packets are looked at from the side: those of a response are, half a millisecond later or more."""
IN_A_POD = 0.005
"""Instead, where a freeze takes a message to the daemon and its answer."""
LONGEST = 2.0
"""Seconds that any answer may take: well below the time after which it would be refused."""


def _latest(start: Start) -> float:
    if start is Running:
        return LATE
    return LATER if start is Beside else IN_A_POD


def _moments(tries: int, latest: float = LATE) -> Iterator[int]:
    """The numbers of the tries, each after a pause that ends around the next freeze."""
    chance = random.Random(tries)
    for number in range(tries):
        time.sleep(GRACE + chance.uniform(-EARLY, latest))
        yield number


def _judge(report: Event, tries: int, latencies: list[float]) -> None:
    assert len(latencies) == tries
    assert max(latencies) < LONGEST
    assert sorted(latencies)[tries // 2] < 0.02
    assert report["requests"] == tries
    assert report["refused"] == 0
    # The first may come before the node's daemon has answered at all.
    assert report["failures"] <= (report["freezer"] == "pod")
    assert report["freezes"] > tries / 4, "The tries did not meet freezes."


@pytest.mark.parametrize("freezer", ["cgroup1", "process"])
def test_by_another_freezer(tmp_path: Path, freezer: str) -> None:
    _on_a_kept_connection(partial(Running, tmp_path, nginx(tmp_path), "--grace", "2ms", "--freezer", freezer), 1000)


def test_on_a_kept_connection(start: Start, many: Many, tmp_path: Path) -> None:
    _on_a_kept_connection(partial(start, tmp_path, nginx(tmp_path), "--grace", "2ms"), many(4000), _latest(start))


def _on_a_kept_connection(begin: Callable[[], Started], tries: int, latest: float = LATE) -> None:
    latencies = []
    with begin() as running:
        client = RawClient(running.port, running.host)
        for number in _moments(tries, latest):
            since = time.monotonic()
            assert b"GET /echo?%d\n" % number in client.exchange(request("GET", f"/echo?{number}"))
            latencies.append(time.monotonic() - since)
        client.close()
        report = running.end()
    _judge(report, tries, latencies)


def test_on_new_connections(start: Start, many: Many, tmp_path: Path) -> None:
    tries = many(2000)
    latencies = []
    with start(tmp_path, nginx(tmp_path), "--grace", "2ms") as running:
        for number in _moments(tries, _latest(start)):
            since = time.monotonic()
            client = RawClient(running.port, running.host)
            assert b"GET /echo?%d\n" % number in client.exchange(request("GET", f"/echo?{number}"))
            client.close()
            latencies.append(time.monotonic() - since)
        report = running.end()
    _judge(report, tries, latencies)


def test_several_at_once(start: Start, many: Many, tmp_path: Path) -> None:
    """Four clients, each at a random moment around the same freeze."""
    rounds, clients = many(1000), 4
    chance = random.Random(rounds)
    latencies = []
    with start(tmp_path, nginx(tmp_path), "--grace", "2ms") as running:
        raw = [RawClient(running.port, running.host) for _ in range(clients)]
        for round_ in range(rounds):
            begin = time.monotonic() + GRACE
            offsets = sorted((chance.uniform(-EARLY / 4, _latest(start)), client) for client in range(clients))
            sent = {}
            for offset, client in offsets:
                time.sleep(max(0.0, begin + offset - time.monotonic()))
                sent[client] = time.monotonic()
                raw[client].socket.sendall(request("GET", f"/echo?{round_}-{client}"))
            for client, since in sent.items():
                assert f"GET /echo?{round_}-{client}\n".encode() in raw[client].read_response("GET")
                latencies.append(time.monotonic() - since)
        for client_ in raw:
            client_.close()
        report = running.end()
    assert report["freezes"] > rounds / 4
    assert report["refused"] == 0
    assert report["requests"] == len(latencies) == rounds * clients
    assert max(latencies) < LONGEST


def test_on_an_http2_connection(start: Start, many: Many, tmp_path: Path) -> None:
    tries = many(2000)
    latencies = []
    with start(tmp_path, nginx_h2c(tmp_path), "--grace", "2ms") as running:
        client = RawClient(running.port, running.host)
        protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        protocol.initiate_connection()
        for number in _moments(tries, _latest(start)):
            since = time.monotonic()
            stream = protocol.get_next_available_stream_id()
            fields = [(":method", "GET"), (":path", f"/echo?{number}"), (":scheme", "http"), (":authority", "x.test")]
            protocol.send_headers(stream, fields, end_stream=True)
            client.socket.sendall(protocol.data_to_send())
            body, ended = b"", False
            while not ended:
                data = client.socket.recv(65536)
                assert data, "The connection was closed."
                for event in protocol.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        body += event.data
                        protocol.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                    ended = ended or isinstance(event, h2.events.StreamEnded)
                if reply := protocol.data_to_send():
                    client.socket.sendall(reply)
            assert body.startswith(b"GET /echo?%d\n" % number)
            latencies.append(time.monotonic() - since)
        client.close()
        report = running.end()
    _judge(report, tries, latencies)


@pytest.mark.relay_only  # which keeps the client's connection when the server ends its own
def test_keep_alive_timers_that_run_out_during_a_freeze_harm_no_request(start: Start, tmp_path: Path) -> None:
    """The server would close its idle connections at the very moment at which a request thaws it."""
    command, environment = SERVERS["node"](tmp_path), {"KEEP_ALIVE_MS": "60"}
    with start(tmp_path, command, "--grace", "20ms", environment=environment) as running:
        clients = [RawClient(running.port, running.host) for _ in range(20)]
        for number in range(4):
            for client in clients:
                assert b"GET /echo?%d\n" % number in client.exchange(request("GET", f"/echo?{number}"))
            running.await_frozen()
            time.sleep(1.2)  # longer than the server's keep-alive, to which Node adds a second
        for client in clients:
            client.close()
