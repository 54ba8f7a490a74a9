"""What lasts: WebSockets and server-sent events."""

import contextlib
import time
from itertools import pairwise
from pathlib import Path

import httpx
from websockets.sync.client import connect

from tests.support.raw import RawClient, request
from tests.support.servers import SERVERS, websocket_server
from tests.support.starting import Start
from tests.support.wait import until


def test_websocket_echo_and_the_server_stays_awake_until_it_closes(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, websocket_server(tmp_path), "--grace", "20ms") as running:
        running.await_event("frozen")
        with connect(f"ws://{running.address}/", ping_interval=None) as socket:
            frozen = running.count("frozen")
            for message in ("hello", "x" * 200_000, b"\x00\xff" * 1000):
                socket.send(message)
                assert socket.recv(timeout=10) == message
            time.sleep(0.2)  # ten times the grace
            assert running.count("frozen") == frozen
            assert not running.is_frozen()
            socket.ping().wait(10)
        running.await_frozen()
        with connect(f"ws://{running.address}/talk", ping_interval=None) as socket:
            assert list(socket) == ["word 0", "word 1", "word 2"]
        running.await_frozen()


def test_an_idle_websocket_lets_the_server_freeze_and_lives_on(start: Start, tmp_path: Path) -> None:
    options = ("--grace", "20ms", "--idle-stream", "300ms")
    with start(tmp_path, websocket_server(tmp_path), *options) as running, contextlib.ExitStack() as stack:
        url = f"ws://{running.address}/"
        sockets = [stack.enter_context(connect(url, ping_interval=None)) for _ in range(3)]
        for number in range(3):
            # The kernel has it frozen a moment before that is counted.
            until(lambda: running.count("frozen") > number and running.is_frozen(), "it is frozen")  # noqa: B023
            for socket in sockets:
                socket.send(f"message {number}")
                assert socket.recv(timeout=10) == f"message {number}"
            assert not running.is_frozen()
        running.await_frozen()
        for socket in sockets:
            socket.close()
        running.await_frozen()
        report = running.end()
    assert report["requests"] == 3
    assert report["freezes"] >= 3
    # Beside a server it may just have been let run, so that its connections can end in time, when a message came.
    assert report["thaw"]["count"] >= 3 or report.get("way") == "ambient"


def test_events_arrive_when_they_are_sent_and_keep_the_server_awake(start: Start, tmp_path: Path) -> None:
    for name in ("uvicorn", "node"):
        with start(tmp_path, SERVERS[name](tmp_path), "--grace", "20ms") as running:
            running.await_frozen()
            arrivals = []
            with httpx.stream("GET", f"http://{running.address}/sse/200", trust_env=False) as response:
                for line in response.iter_lines():
                    if line:
                        arrivals.append(time.monotonic())
                        assert not running.is_frozen()
            assert len(arrivals) == 3
            for earlier, later in pairwise(arrivals):
                assert 0.1 < later - earlier < 2
            frozen = [event["monotonic"] for event in running.events if event["event"] == "frozen"]
            assert not [at for at in frozen if arrivals[0] < at < arrivals[-1]]
            running.await_frozen()


def test_a_silent_event_stream_counts_as_idle_where_asked_for(start: Start, tmp_path: Path) -> None:
    options = ("--grace", "20ms", "--idle-stream", "200ms", "--breathe", "400ms/100ms")
    with start(tmp_path, SERVERS["node"](tmp_path), *options) as running:
        client = RawClient(running.port, running.host)
        client.socket.sendall(request("GET", "/sse/1000"))  # silent for a second after each of three events
        got = client.read_response("GET")
        assert got.count(b"data: ") == 3
        client.close()
        until(lambda: running.count("frozen") >= 2, "it was frozen while the stream was silent")
        assert running.end()["requests"] == 1
