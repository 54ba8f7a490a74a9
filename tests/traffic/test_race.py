"""Nothing is lost, and nothing is late, when requests arrive at the very moment of a freeze: see ``racing``."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.racing import EARLY, GRACE, Ask, Race, judge, pace_of
from tests.support.raw import RawClient, request
from tests.support.running import Event, Running
from tests.support.servers import SERVERS, Command, nginx, nginx_h2c
from tests.support.starting import Many, Start, Started

Judge = Callable[[Race, Event, int], None]
"""Takes a race, the report of the server that was frozen, and around how many freezes it was."""


@pytest.fixture
def judged(record_property: Callable[[str, object], None]) -> Judge:
    """Judges a race, which is shown at the end of the run."""

    def judged(race: Race, report: Event, around: int) -> None:
        outcome = race.outcome(report)
        record_property("race", asdict(outcome))
        assert report["requests"] == len(race.raced)
        assert report["refused"] == 0
        # The first may come before the node's daemon has answered at all.
        assert report["failures"] <= (report["freezer"] == "pod")
        judge(outcome, around)

    return judged


@pytest.fixture(scope="module")
def unfrozen(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The yardstick."""
    with _unfrozen(start, tmp_path_factory.mktemp("unfrozen"), nginx) as running:
        yield running


def _unfrozen(start: Start, folder: Path, server: Callable[[Path], Command]) -> Started:
    return start(folder, server(folder), "--mode", "off")


def _asks(running: Started) -> Ask:
    """On one connection."""
    return partial(_exchange, RawClient(running.port, running.host))


def _asks_anew(running: Started) -> Ask:
    """On a connection of its own each time."""

    def ask(number: int) -> None:
        client = RawClient(running.port, running.host)
        _exchange(client, number)
        client.close()

    return ask


def _exchange(client: RawClient, number: int) -> None:
    assert b"GET /echo?%d\n" % number in client.exchange(request("GET", f"/echo?{number}"))


@pytest.mark.parametrize("freezer", ["cgroup1", "process"])
def test_by_another_freezer(tmp_path: Path, judged: Judge, freezer: str) -> None:
    race, tries = Race(pace_of(Running), 0), 500
    begin = partial(Running, tmp_path, nginx(tmp_path), "--grace", "2ms", "--freezer", freezer)
    with _unfrozen(Running, tmp_path, nginx) as unfrozen, begin() as running:
        race.run(tries, _asks(running), _asks(unfrozen))
        report = running.end()
    judged(race, report, tries)


@pytest.mark.parametrize("asks", [_asks, _asks_anew], ids=["on_a_kept_connection", "on_new_connections"])
def test_one_by_one(
    start: Start, many: Many, unfrozen: Started, judged: Judge, tmp_path: Path, asks: Callable[[Started], Ask]
) -> None:
    race, tries = Race(pace_of(start), 1), many(1500 if asks is _asks else 1000)
    with start(tmp_path, nginx(tmp_path), "--grace", "2ms") as running:
        race.run(tries, asks(running), asks(unfrozen))
        report = running.end()
    judged(race, report, tries)


def test_several_at_once(start: Start, many: Many, unfrozen: Started, judged: Judge, tmp_path: Path) -> None:
    """Four clients, each at a random moment around the same freeze, and four at the yardstick."""
    race, rounds, clients = Race(pace_of(start), 2), many(400), 4
    latest = race.pace.latest
    with start(tmp_path, nginx(tmp_path), "--grace", "2ms") as running:
        raced, others = ([RawClient(one.port, one.host) for _ in range(clients)] for one in (running, unfrozen))
        latencies = {client.socket: race.raced for client in raced}
        latencies |= {client.socket: race.yardstick for client in others}
        of = {client.socket: client for client in (*raced, *others)}
        for number in range(rounds):
            begin = time.monotonic() + GRACE
            todo = [(begin + race.chance.uniform(-EARLY / 4, latest), client) for client in raced]
            todo += [(begin + race.chance.uniform(-GRACE, latest), client) for client in others]
            todo.sort(key=lambda each: -each[0])
            sent: dict[socket.socket, float] = {}
            while todo or sent:
                wait = max(0.0, todo[-1][0] - time.monotonic()) if todo else 10
                answered, _, _ = select.select(list(sent), [], [], wait)
                for one in answered:
                    assert b"GET /echo?%d\n" % number in of[one].read_response("GET")
                    latencies[one].append(time.monotonic() - sent.pop(one))
                if todo and time.monotonic() >= todo[-1][0]:
                    _, client = todo.pop()
                    sent[client.socket] = time.monotonic()
                    client.socket.sendall(request("GET", f"/echo?{number}"))
        for client in of.values():
            client.close()
        report = running.end()
    assert len(race.raced) == len(race.yardstick) == rounds * clients
    judged(race, report, rounds)


def test_on_an_http2_connection(start: Start, many: Many, judged: Judge, tmp_path: Path) -> None:
    race, tries = Race(pace_of(start), 3), many(1000)
    with (
        _unfrozen(start, tmp_path, nginx_h2c) as unfrozen,
        start(tmp_path, nginx_h2c(tmp_path), "--grace", "2ms") as running,
    ):
        race.run(tries, _asks_by_http2(running), _asks_by_http2(unfrozen))
        report = running.end()
    judged(race, report, tries)


def _asks_by_http2(running: Started) -> Ask:
    client = RawClient(running.port, running.host)
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    protocol.initiate_connection()

    def ask(number: int) -> None:
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

    return ask


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
