"""gRPC over h2c: every kind of method, on one channel, through freezes."""

import queue
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.ambience import need_ambient
from tests.support.running import Beside
from tests.support.servers import grpc_server
from tests.support.starting import Start, Started


@pytest.fixture
def running(start: Start, tmp_path: Path) -> Iterator[Started]:
    with start(tmp_path, grpc_server(tmp_path), "--grace", "30ms") as running:
        yield running


def _channel(running: Started, *options: tuple[str, int]) -> grpc.Channel:
    return grpc.insecure_channel(f"{running.address}", options=options)


def test_unary_on_one_connection_through_freezes(running: Started) -> None:
    with _channel(running) as channel:
        call = channel.unary_unary("/test.Bytes/Unary")
        peers = set()
        for number in range(6):
            running.await_frozen()
            message = b"%d " % number * (1 + 40_000 * (number % 2))
            answer, info = call.with_call(message, timeout=10)
            assert answer == message[::-1]
            peers.add(dict(info.trailing_metadata())["peer"])
        assert len(peers) == 1, "the connection was not kept"
    running.await_frozen()


def test_server_stream_keeps_it_awake(running: Started) -> None:
    running.await_frozen()
    with _channel(running) as channel:
        frozen = running.count("frozen")
        for number, message in enumerate(channel.unary_stream("/test.Bytes/Count")(b"10", timeout=10)):
            assert message == str(number).encode()
            assert not running.is_frozen()
        assert number == 9
        assert running.count("frozen") <= frozen + 1
        running.await_frozen()


def test_client_stream(running: Started) -> None:
    def messages() -> Iterator[bytes]:
        for _ in range(10):
            yield b"0123456789"
            time.sleep(0.03)

    running.await_frozen()
    with _channel(running) as channel:
        assert channel.stream_unary("/test.Bytes/Total")(messages(), timeout=10) == b"100"
        running.await_frozen()


def test_bidirectional_stream(running: Started) -> None:
    running.await_frozen()
    words: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with _channel(running) as channel:
        answers = channel.stream_stream("/test.Bytes/Echo")(iter(words.get, None), timeout=20)
        for number in range(5):
            words.put(b"word %d" % number)
            assert next(answers) == b"> word %d" % number
            time.sleep(0.06)  # twice the grace
            assert not running.is_frozen()
        words.put(None)
        assert list(answers) == []
        running.await_frozen()


def test_errors_cancellations_and_deadlines_end_the_exchange(running: Started) -> None:
    running.await_frozen()
    with _channel(running) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            channel.unary_unary("/test.Bytes/Fail")(b"", timeout=10)
        assert failure.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert failure.value.details() == "as you wished"
        running.await_frozen()
        stream = channel.unary_stream("/test.Bytes/Count")(b"10000", timeout=60)
        assert next(stream) == b"0"
        stream.cancel()
        running.await_frozen()
        with pytest.raises(grpc.RpcError) as failure:
            list(channel.unary_stream("/test.Bytes/Count")(b"10000", timeout=0.3))
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        running.await_frozen()
        assert channel.unary_unary("/test.Bytes/Unary")(b"ab", timeout=10) == b"ba"


@pytest.mark.relay_only  # which answers them itself
def test_keepalive_pings_to_a_frozen_server_keep_the_channel(running: Started) -> None:
    options = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with _channel(running, *options) as channel:
        call = channel.unary_unary("/test.Bytes/Unary")
        _, before = call.with_call(b"before", timeout=10)
        running.await_frozen()
        thaws = running.count("thawed")
        time.sleep(3.5)  # three pings, of which each would end the connection after half a second without an answer
        assert running.count("thawed") == thaws
        _, after = call.with_call(b"after", timeout=10)
        assert dict(before.trailing_metadata())["peer"] == dict(after.trailing_metadata())["peer"]


def test_without_a_relay_keepalive_pings_wake_the_server_and_it_answers(tmp_path: Path) -> None:
    need_ambient()
    options = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with Beside(tmp_path, grpc_server(tmp_path), "--grace", "30ms") as running, _channel(running, *options) as channel:
        call = channel.unary_unary("/test.Bytes/Unary")
        _, before = call.with_call(b"before", timeout=10)
        for _ in range(2):
            running.await_frozen()
            running.await_event("thawed", running.mark())
        _, after = call.with_call(b"after", timeout=10)
        assert dict(before.trailing_metadata())["peer"] == dict(after.trailing_metadata())["peer"]
        running.await_frozen()
