"""The relay between a scripted client and a scripted server, with a gate whose orders the test answers by hand."""

import contextlib
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from freeze_proxy.connection import BULK_READ
from freeze_proxy.gate import AWAKE, FREEZING, FROZEN, THAWING, Settings
from tests.support.house import House, Upstream, quiet, read_exactly, read_to_end, read_until
from tests.support.ports import free_port
from tests.support.wait import until

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NEVER = Settings(grace=3600.0)
"""A gate that does not freeze while the test runs."""
KERNEL_ROOM = 32 << 20
"""Bytes that the kernel's socket buffers of two connections may hold, generously."""


def exchange_on_a_new_connection(client: socket.socket, upstream: Upstream, request: bytes, response: bytes) -> None:
    client.sendall(request)
    server = upstream.accept()
    assert read_exactly(server, len(request)) == request
    server.sendall(response)
    assert read_exactly(client, len(response)) == response


def drain(connection: socket.socket) -> None:
    """Read whatever has arrived."""
    while not quiet(connection):
        assert connection.recv(65536)


def reset(connection: socket.socket) -> None:
    """Close it by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_reset(connection: socket.socket) -> bool:
    """Whether the other side ends it by RST."""
    try:
        read_to_end(connection)
    except ConnectionResetError:
        return True
    return False


def can_be_written_to(connection: socket.socket) -> bool:
    """Now, or within a while."""
    poll = select.poll()  # whose descriptors may be beyond 1024, as select's may not
    poll.register(connection, select.POLLOUT)
    return bool(poll.poll(300))


def push_until_full(source: socket.socket, house: House) -> int:
    """Send until the other side has taken nothing for a while; returns how many bytes went."""
    block = bytes(range(256)) * 256
    sent = 0
    source.setblocking(False)
    while can_be_written_to(source):
        try:
            sent += source.send(block[sent % 256 :])
        except BlockingIOError:
            continue
        assert sent < KERNEL_ROOM + house.tails(), f"{sent} bytes went into a relay whose reader does not read"
    source.setblocking(True)
    return sent


# Held and let go.


def test_a_request_waits_for_the_thaw_and_goes_on_when_it_is_done() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET)
        house.await_order()
        assert house.state() == THAWING
        assert upstream.hears_nothing()
        house.answer()
        server = upstream.accept()
        assert read_exactly(server, len(GET)) == GET
        assert house.in_flight() == 1
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        house.await_frozen()
        client.close()


def test_all_that_arrive_during_a_thaw_go_together() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        clients = [house.client() for _ in range(20)]
        for client in clients:
            client.sendall(GET)
        until(lambda: house.in_flight() == 20, "all twenty are in flight")
        assert house.hand.thaws == 1
        house.answer()
        for _ in clients:
            server = upstream.accept()
            read_exactly(server, len(GET))
            server.sendall(OK)
        for client in clients:
            assert read_exactly(client, len(OK)) == OK
            client.close()
        assert house.hand.thaws == 1


def test_the_first_that_waits_is_connected_meanwhile_and_the_others_when_it_is_over() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        clients = [house.client() for _ in range(3)]
        for client in clients:
            client.sendall(GET)
        until(lambda: house.in_flight() == 3, "all three are in flight")
        early = upstream.accept()
        assert quiet(early)
        assert upstream.nobody_comes()
        house.answer()
        for server in (early, upstream.accept(), upstream.accept()):
            assert read_exactly(server, len(GET)) == GET
            server.sendall(OK)
        for client in clients:
            assert read_exactly(client, len(OK)) == OK
            client.close()


@pytest.mark.parametrize("by_reset", [False, True])
def test_a_connection_that_ends_during_the_thaw_is_made_again(by_reset: bool) -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET)
        early = upstream.accept()
        assert quiet(early)
        if by_reset:
            reset(early)
        else:
            early.close()
        house.answer()
        server = upstream.accept()
        assert read_exactly(server, len(GET)) == GET
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        client.close()


def test_the_connection_of_a_request_that_is_refused_is_given_up() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.2)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET)
        early = upstream.accept()
        assert read_to_end(client).startswith(b"HTTP/1.1 503 ")
        assert read_to_end(early) == b""
        house.answer()
        assert upstream.nobody_comes()
        client.close()


def test_a_request_during_a_freeze_orders_the_thaw_and_waits_for_it() -> None:
    with Upstream() as upstream, House(upstream.port, ready=False) as house:
        house.hand.freeze_after = None
        house.on_loop(house.keeper.ready)
        house.await_state(FREEZING)
        house.hold_thaws()
        client = house.client()
        client.sendall(GET)
        house.await_state(THAWING)
        house.answer()  # the freeze, which is done too late to count
        assert house.state() == THAWING
        assert upstream.hears_nothing()
        house.answer()  # the thaw
        server = upstream.accept()
        assert read_exactly(server, len(GET)) == GET
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        client.close()


def test_no_freeze_while_a_response_is_awaited_and_none_during_its_body() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.01)) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        frozen_before = house.hand.freezes
        for piece in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 4\r\n\r\n", b"a", b"bc"):
            server.sendall(piece)
            assert read_exactly(client, len(piece)) == piece
            assert quiet(client, 0.03)
            assert house.state() == AWAKE
        assert house.hand.freezes == frozen_before
        server.sendall(b"d")
        assert read_exactly(client, 1) == b"d"
        house.await_frozen()
        client.close()


def test_pipelined_requests_are_held_together() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET * 3)
        house.await_order()
        house.answer()
        server = upstream.accept()
        assert read_exactly(server, 3 * len(GET)) == GET * 3
        server.sendall(OK * 2)
        assert read_exactly(client, 2 * len(OK)) == OK * 2
        assert house.in_flight() == 1
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        house.await_frozen()
        client.close()


def test_an_upload_to_a_frozen_server_waits_in_the_kernel() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        head = b"POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: %d\r\n\r\n" % (64 << 20)
        client.sendall(head)
        house.await_order()
        sent = push_until_full(client, house)
        assert house.tails() <= 128 << 10
        house.answer()
        server = upstream.accept()
        assert read_exactly(server, len(head)) == head
        assert read_exactly(server, sent) == (bytes(range(256)) * (sent // 256 + 1))[:sent]
        client.close()


def test_expect_100_continue_from_a_frozen_server() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        head = b"POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        for _ in range(2):
            house.await_frozen()
            client.sendall(head)
            server = upstream.accept()
            assert read_exactly(server, len(head)) == head
            server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert quiet(client)
            assert house.state() == AWAKE
            client.sendall(b"hello")
            assert read_exactly(server, 5) == b"hello"
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
        house.await_frozen()
        client.close()


@pytest.mark.parametrize("first", [b"P", b"PR"])
def test_the_first_bytes_of_a_method_do_not_tell_the_protocol_and_are_kept(first: bytes) -> None:
    rest = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n" if first == b"P" else b"PROPFIND / HTTP/1.1\r\n\r\n"
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        house.await_frozen()
        client.sendall(first)
        assert upstream.nobody_comes()
        assert house.state() == FROZEN
        client.sendall(rest[len(first) :])
        server = upstream.accept()
        assert read_exactly(server, len(rest)) == rest
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        client.close()


@pytest.mark.parametrize("first", [b"P", b"PR", b"PRI"])
def test_a_client_that_ends_after_the_first_bytes_has_them_passed_on(first: bytes) -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        client = house.client()
        client.sendall(first)
        client.shutdown(socket.SHUT_WR)
        server = upstream.accept()
        assert read_to_end(server) == first
        server.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        server.close()
        assert read_to_end(client).startswith(b"HTTP/1.1 400 ")
        client.close()


# A thaw that fails.


def test_a_failed_thaw_is_answered_503_and_the_next_request_after_it_gets_through() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.3)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        start = time.monotonic()
        client.sendall(GET)
        house.fail()
        refusal = read_to_end(client)
        assert 0.25 < time.monotonic() - start < 2
        head, _, body = refusal.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1" in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert body
        client.close()
        assert upstream.hears_nothing()
        until(lambda: ("refused", 1) in house.notes.told, "that is told")
        until(lambda: house.in_flight() == 0, "the refused one is no longer in flight")

        again = house.client()
        again.sendall(GET)
        house.on_loop(lambda: house.hand.unanswered.__delitem__(slice(0, -1)))
        until(lambda: house.hand.thaws > 2, "the thaw is tried again")
        house.hand.thaw_after = 0.0
        house.await_awake()
        server = upstream.accept()
        assert read_exactly(server, len(GET)) == GET
        server.sendall(OK)
        assert read_exactly(again, len(OK)) == OK
        again.close()


def test_a_refused_head_request_gets_no_body() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.1)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET.replace(b"GET", b"HEAD"))
        assert read_to_end(client).endswith(b"\r\n\r\n")
        client.close()


def test_a_refused_upload_can_still_read_its_503() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.2)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(b"POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: 4000000\r\n\r\n")
        sender = threading.Thread(target=client.sendall, args=(bytes(4_000_000),))
        sender.start()
        assert b" 503 " in read_exactly(client, 20)
        sender.join()
        assert b"Retry-After" in read_to_end(client)
        client.close()


def test_a_client_that_leaves_while_it_waits_is_forgotten() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.2)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = house.client()
        client.sendall(GET)
        until(lambda: house.in_flight() == 1, "it waits")
        client.close()
        until(lambda: house.in_flight() == 0, "it is forgotten")
        until(lambda: house.connections() == 0, "its connection is closed")


# HTTP/2.


class H2Side:
    """One side of an HTTP/2 connection, by hand, over a blocking socket."""

    def __init__(self, connection: socket.socket, client_side: bool) -> None:
        self.socket = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client_side))
        self.events: list[h2.events.Event] = []
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.socket.sendall(data)

    def await_event(self, kind: type[h2.events.Event], stream: int | None = None) -> h2.events.Event:
        """The next event of this kind (on that stream)."""
        while True:
            for at, event in enumerate(self.events):
                if isinstance(event, kind) and (stream is None or getattr(event, "stream_id", None) == stream):
                    return self.events.pop(at)
            data = self.socket.recv(65536)
            assert data, f"The connection ended before {kind.__name__}; there were {self.events}."
            self.events += self.h2.receive_data(data)
            self.flush()


class H2Client(H2Side):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, client_side=True)

    def request(self, end: bool = True) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream,
            [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "example.test")],
            end_stream=end,
        )
        self.flush()
        return stream


class H2Server(H2Side):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, client_side=False)

    def answer(self, stream: int) -> None:
        self.h2.send_headers(stream, [(":status", "200")])
        self.h2.send_data(stream, b"ok", end_stream=True)
        self.flush()


def status(event: h2.events.Event) -> bytes:
    assert isinstance(event, h2.events.ResponseReceived)
    value = dict(event.headers)[b":status"]
    assert isinstance(value, bytes)
    return value


def h2_exchange(client: H2Client, server: H2Server) -> None:
    stream = client.request()
    server.await_event(h2.events.RequestReceived, stream)
    server.answer(stream)
    assert status(client.await_event(h2.events.ResponseReceived, stream)) == b"200"
    client.await_event(h2.events.StreamEnded, stream)


def test_h2_streams_through_freezes_on_one_connection() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        client = H2Client(house.client())
        server = H2Server(upstream.accept())
        for _ in range(3):
            h2_exchange(client, server)
            house.await_frozen()
        assert len(upstream.accepted) == 1
        assert upstream.nobody_comes()
        client.socket.close()


def test_a_ping_to_a_frozen_server_is_answered_and_leaves_it_frozen() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = H2Client(house.client())
        server = H2Server(upstream.accept())
        h2_exchange(client, server)
        house.await_frozen()
        drain(server.socket)
        thaws = house.hand.thaws
        for number in range(3):
            client.h2.ping(b"number %d" % number)
            client.flush()
            pong = client.await_event(h2.events.PingAckReceived)
            assert isinstance(pong, h2.events.PingAckReceived)
            assert pong.ping_data == b"number %d" % number
        assert house.hand.thaws == thaws
        assert house.state() == FROZEN
        assert quiet(server.socket)
        h2_exchange(client, server)
        client.socket.close()


def test_a_flood_of_pings_whose_answers_are_not_read_is_held_back_and_then_served() -> None:
    """Some are answered by the relay, some, cut in two by a read, wake the server, which answers the rest."""
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00flooding"
    pong = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00flooding"

    def answer_pings(server: socket.socket) -> None:
        pinged = b""
        while data := server.recv(1 << 18):
            pinged += data
            whole = len(pinged) - len(pinged) % len(ping)
            server.sendall(pinged[:whole].replace(ping, pong))
            pinged = pinged[whole:]

    with Upstream() as upstream, House(upstream.port, Settings(grace=0.001)) as house:
        client = H2Client(house.client(receive_buffer=8192))
        server = H2Server(upstream.accept())
        h2_exchange(client, server)
        house.await_frozen()
        drain(server.socket)
        drain(client.socket)
        server.socket.settimeout(None)
        answerer = threading.Thread(target=answer_pings, args=(server.socket,), daemon=True)
        answerer.start()
        block = ping * 1000
        sent = 0
        client.socket.setblocking(False)
        while can_be_written_to(client.socket):
            try:
                sent += client.socket.send(block[sent % len(block) :])
            except BlockingIOError:
                continue
            assert sent < KERNEL_ROOM
        assert house.tails() <= 1 << 20
        client.socket.settimeout(10)
        rest = block[sent % len(block) :]
        finisher = threading.Thread(target=client.socket.sendall, args=(rest,))
        finisher.start()
        answers = read_exactly(client.socket, sent + len(rest))
        assert answers == pong * (len(answers) // len(pong))
        finisher.join()
        house.await_frozen()
        client.socket.close()
        answerer.join(10)
        assert not answerer.is_alive()


def test_h2_streams_whose_thaw_fails_are_refused_on_a_new_connection() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.2)) as house:
        house.await_frozen()
        house.hold_thaws()
        client = H2Client(house.client())
        streams = [client.request(), client.request()]
        for stream in streams:
            response = client.await_event(h2.events.ResponseReceived, stream)
            assert status(response) == b"503"
            assert isinstance(response, h2.events.ResponseReceived)
            assert dict(response.headers)[b"retry-after"] == b"1"
        client.await_event(h2.events.ConnectionTerminated)
        assert read_to_end(client.socket) == b""
        until(lambda: house.in_flight() == 0, "nothing is in flight")
        assert upstream.hears_nothing()
        client.socket.close()
        until(lambda: house.connections() == 0, "the connection is gone")


def test_h2_streams_whose_thaw_fails_are_refused_on_a_connection_in_use() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.02, thaw_timeout=0.2)) as house:
        client = H2Client(house.client())
        server = H2Server(upstream.accept())
        h2_exchange(client, server)
        house.await_frozen()
        house.hold_thaws()
        drain(server.socket)
        stream = client.request()
        assert status(client.await_event(h2.events.ResponseReceived, stream)) == b"503"
        client.await_event(h2.events.ConnectionTerminated)
        assert read_to_end(client.socket) == b""
        assert read_to_end(server.socket) == b""  # the request never came, and the connection ended
        client.socket.close()
        until(lambda: house.connections() == 0, "the connection is gone")

        house.hand.thaw_after = 0.0
        house.on_loop(house.keeper.lost)
        again = H2Client(house.client())
        h2_exchange(again, H2Server(upstream.accept()))
        again.socket.close()


def test_an_h2_server_that_closes_while_a_request_is_held_closes_the_connection() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = H2Client(house.client())
        server = H2Server(upstream.accept())
        h2_exchange(client, server)
        house.await_frozen()
        house.hold_thaws()
        drain(server.socket)
        client.request()
        house.await_order()
        server.h2.close_connection()  # as its idle timer has it, just after the thaw and before we know of that
        server.flush()
        server.socket.close()
        client.await_event(h2.events.ConnectionTerminated)
        house.answer()
        assert read_to_end(client.socket) == b""
        assert upstream.hears_nothing()
        assert house.in_flight() == 0
        client.socket.close()
        until(lambda: house.connections() == 0, "the connection is gone")


def test_an_idle_h2_server_that_closes_closes_the_client() -> None:
    with Upstream() as upstream, House(upstream.port, NEVER) as house:
        client = H2Client(house.client())
        server = H2Server(upstream.accept())
        h2_exchange(client, server)
        server.h2.close_connection()
        server.flush()
        server.socket.close()
        client.await_event(h2.events.ConnectionTerminated)
        assert read_to_end(client.socket) == b""
        client.socket.close()
        until(lambda: house.connections() == 0, "the connection is gone")


# Connections to the server.


def test_a_freeze_closes_the_idle_connection_and_the_next_request_opens_another() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(GET)
        for _ in range(4):
            server = upstream.accept()
            assert read_exactly(server, len(GET)) == GET
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
            house.await_frozen()
            assert read_to_end(server) == b""
            client.sendall(GET)
        client.close()


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"),
        (GET, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection:  Close\r\n\r\nok"),
        (GET, b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        (GET[:-2] + b"Connection: close\r\n\r\n", OK),
        (b"GET / HTTP/1.0\r\n\r\n", OK),
    ],
    ids=["announced", "in-lower-case", "http-1.0-response", "chunked", "no-content", "asked-for", "http-1.0-request"],
)
def test_a_client_that_waits_for_the_end_of_the_last_response_gets_it(request_: bytes, response: bytes) -> None:
    """A server may be slow to close after a last response: its freeze must not leave the client without the end."""
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.01)) as house:
        client = house.client()
        client.sendall(request_)
        server = upstream.accept()
        assert read_exactly(server, len(request_)) == request_
        server.sendall(response)
        assert read_exactly(client, len(response)) == response
        assert read_to_end(client) == b""
        client.close()
        house.await_frozen()
        until(lambda: house.connections() == 0, "the connection is gone")


def test_an_http_1_0_client_that_asks_for_it_keeps_its_connection_through_freezes() -> None:
    asked = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    kept = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        for _ in range(3):
            exchange_on_a_new_connection(client, upstream, asked, kept)
            house.await_frozen()
        client.close()


def test_a_server_that_closes_an_idle_connection_closes_the_client_and_may_be_frozen() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.2)) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        exchange_rest = read_exactly(server, len(GET))
        assert exchange_rest == GET
        server.sendall(OK)
        assert read_exactly(client, len(OK)) == OK
        server.close()
        assert read_to_end(client) == b""
        house.await_frozen()
        assert house.in_flight() == 0
        client.close()
        until(lambda: house.connections() == 0, "the connection is gone")


def test_no_server_there() -> None:
    with House(free_port(), NEVER) as house:
        client = house.client()
        client.sendall(GET)
        assert is_reset(client)
        until(lambda: house.in_flight() == 0, "nothing is in flight")
        until(lambda: house.connections() == 0, "the connection is gone")


def test_hundreds_of_idle_connections_cost_the_server_none_and_all_still_work() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        clients = [house.client() for _ in range(400)]
        until(lambda: house.connections() == 400, "all are accepted")
        assert upstream.nobody_comes()
        for client in clients:
            client.sendall(GET)
        servers = [upstream.accept() for _ in clients]
        for server in servers:
            read_exactly(server, len(GET))
            server.sendall(OK)
        for client in clients:
            assert read_exactly(client, len(OK)) == OK
        house.await_frozen()
        for server in servers:
            assert read_to_end(server) == b""
        for client in clients[::40]:
            client.sendall(GET)
            server = upstream.accept()
            read_exactly(server, len(GET))
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
        for client in clients:
            client.close()
        until(lambda: house.connections() == 0, "all are gone")


# Ends and resets.


def test_a_client_that_has_said_all_still_gets_its_response() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        house.await_frozen()
        client = house.client()
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        server = upstream.accept()
        assert read_to_end(server) == GET
        body = bytes(300_000)
        server.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        server.close()
        assert read_to_end(client).endswith(body)
        client.close()


def test_a_tunnel_is_half_closed_either_way() -> None:
    upgrade = b"GET / HTTP/1.1\r\nUpgrade: any\r\nConnection: Upgrade\r\n\r\n"
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: any\r\nConnection: Upgrade\r\n\r\n"
    for client_first in (True, False):
        with Upstream() as upstream, House(upstream.port) as house:
            client = house.client()
            client.sendall(upgrade)
            server = upstream.accept()
            read_exactly(server, len(upgrade))
            server.sendall(switched + b"hello")
            assert read_exactly(client, len(switched) + 5) == switched + b"hello"
            first, second = (client, server) if client_first else (server, client)
            first.sendall(b"the last from here")
            first.shutdown(socket.SHUT_WR)
            assert read_to_end(second) == b"the last from here"
            for _ in range(3):
                second.sendall(b"still ")
                assert read_exactly(first, 6) == b"still "
            assert house.state() == AWAKE
            second.close()
            assert read_to_end(first) == b""
            until(lambda house=house: house.connections() == 0, "the connection is gone")  # type: ignore[misc]
            house.await_frozen()


def test_a_client_that_leaves_during_its_request_is_gone_for_the_server_too() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        head = b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nsome"
        client.sendall(head)
        server = upstream.accept()
        read_exactly(server, len(head))
        client.close()
        assert read_to_end(server) == b""
        server.close()
        until(lambda: house.connections() == 0, "the connection is gone")
        house.await_frozen()


def test_a_client_that_resets_during_its_response_resets_the_server() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        read_until(client, b"some")
        reset(client)
        assert is_reset(server)
        house.await_frozen()
        assert house.connections() == 0


def test_a_client_that_leaves_during_a_download_stops_it() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        read_until(client, b"\r\n\r\n")
        push_until_full(server, house)
        client.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            server.sendall(bytes(100 << 20))
        house.await_frozen()
        assert house.connections() == 0


def test_a_server_that_resets_during_its_response_resets_the_client() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        read_until(client, b"some")
        reset(server)
        assert is_reset(client)
        house.await_frozen()
        assert house.connections() == 0


def test_a_server_that_closes_in_the_midst_of_its_response() -> None:
    part = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        server.sendall(part)
        server.close()
        assert read_to_end(client) == part
        client.close()
        house.await_frozen()


def test_an_upload_that_the_server_refuses_and_closes_on_still_reads_the_refusal() -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge"
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client()
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n")
        server = upstream.accept()
        read_until(server, b"\r\n\r\n")
        sender = threading.Thread(target=client.sendall, args=(bytes(50_000_000),))
        sender.start()
        read_exactly(server, 10_000)
        server.sendall(refusal)
        server.close()  # with unread bytes of the upload: the kernel sends RST
        assert read_to_end(client) == refusal
        sender.join(10)
        assert not sender.is_alive()
        client.close()
        until(lambda: house.connections() == 0, "the connection is gone")
        house.await_frozen()


def test_a_client_that_never_closes_after_the_server_has_is_closed_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freeze_proxy.connection.LINGER", 0.2)
    with Upstream() as upstream, House(upstream.port) as house:
        clients = [house.client() for _ in range(3)]
        for client in clients:
            client.sendall(GET)
            server = upstream.accept()
            read_exactly(server, len(GET))
            server.sendall(b"HTTP/1.1 200 OK\r\n\r\nto the end")
            server.close()
            assert read_to_end(client).endswith(b"to the end")
        assert house.connections() == 3
        until(lambda: house.connections() == 0, "all are closed")
        for client in clients:
            client.close()


# Flow control.


def test_a_slow_reader_of_a_response_holds_the_server_back_and_gets_every_byte() -> None:
    with Upstream() as upstream, House(upstream.port, NEVER) as house:
        client = house.client(receive_buffer=16384)
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
        server.sendall(head)
        assert read_exactly(client, len(head)) == head
        sent = push_until_full(server, house)
        assert 0 < house.tails() <= BULK_READ
        assert read_exactly(client, sent) == (bytes(range(256)) * (sent // 256 + 1))[:sent]
        server.sendall(b"more")
        assert read_exactly(client, 4) == b"more"
        assert house.tails() == 0
        client.close()


def test_a_slow_reader_of_an_upload_holds_the_client_back_and_gets_every_byte() -> None:
    with Upstream() as upstream, House(upstream.port, NEVER) as house:
        client = house.client()
        head = b"POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n"
        client.sendall(head)
        server = upstream.accept(receive_buffer=16384)
        assert read_exactly(server, len(head)) == head
        sent = push_until_full(client, house)
        assert 0 < house.tails() <= BULK_READ
        assert read_exactly(server, sent) == (bytes(range(256)) * (sent // 256 + 1))[:sent]
        client.sendall(b"more")
        assert read_exactly(server, 4) == b"more"
        assert house.tails() == 0
        client.close()


def test_a_slow_reader_that_leaves_gives_everything_back() -> None:
    with Upstream() as upstream, House(upstream.port) as house:
        client = house.client(receive_buffer=16384)
        client.sendall(GET)
        server = upstream.accept()
        read_exactly(server, len(GET))
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        push_until_full(server, house)
        reset(client)
        until(lambda: house.connections() == 0, "the connection is gone")
        house.await_frozen()


def test_long_bodies_that_pass_inside_the_kernel_do_not_mix_and_their_ends_are_seen() -> None:
    """They share one pipe: nothing of a client that leaves may turn up in what another gets."""
    bodies = [random.Random(seed).randbytes((4 << 20) + seed) for seed in range(4)]
    with Upstream() as upstream, House(upstream.port) as house, contextlib.ExitStack() as ends:
        clients, senders = [], []
        for body in bodies:
            client = ends.enter_context(house.client(receive_buffer=16384))
            client.sendall(GET)
            server = ends.enter_context(upstream.accept())
            read_exactly(server, len(GET))
            response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            sender = threading.Thread(target=send_what_it_takes, args=(server, response), daemon=True)
            sender.start()
            clients.append(client)
            senders.append(sender)
        for client in clients:
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        got = [bytearray() for _ in bodies]
        while any(len(piece) < len(body) for piece, body in zip(got[1:], bodies[1:], strict=True)):
            for number in range(1, 4):
                if len(got[number]) < len(bodies[number]):
                    got[number] += clients[number].recv(7919 * number)
            if len(got[3]) > 1 << 20 and clients[0].fileno() >= 0:
                reset(clients[0])
        assert got[1:] == bodies[1:]
        for sender in senders:
            sender.join(10)
        until(lambda: house.in_flight() == 0, "every end has been seen")
        house.await_frozen()


def send_what_it_takes(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


# Streams that count as idle.


def test_a_silent_tunnel_lets_the_server_freeze_and_any_byte_thaws_it() -> None:
    upgrade = b"GET / HTTP/1.1\r\nUpgrade: any\r\nConnection: Upgrade\r\n\r\n"
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: any\r\nConnection: Upgrade\r\n\r\n"
    with Upstream() as upstream, House(upstream.port, idle_stream=0.2) as house:
        client = house.client()
        client.sendall(upgrade)
        server = upstream.accept()
        read_exactly(server, len(upgrade))
        server.sendall(switched)
        read_exactly(client, len(switched))
        for word in (b"one", b"two"):
            house.await_frozen()
            assert house.in_flight() == 0
            client.sendall(word)
            assert read_exactly(server, 3) == word
            house.await_state(AWAKE)
            house.await_frozen()
            server.sendall(word)  # written before the freeze, as it were, and read by us after it
            assert read_exactly(client, 3) == word
        client.close()
        assert read_to_end(server) == b""


def test_without_idle_stream_a_silent_tunnel_keeps_the_server_awake() -> None:
    upgrade = b"GET / HTTP/1.1\r\nUpgrade: any\r\nConnection: Upgrade\r\n\r\n"
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.01)) as house:
        client = house.client()
        client.sendall(upgrade)
        server = upstream.accept()
        read_exactly(server, len(upgrade))
        server.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        freezes = house.hand.freezes
        assert quiet(server, 0.3)
        assert house.hand.freezes == freezes
        assert house.in_flight() == 1
        client.close()


def test_what_is_not_http_passes_and_keeps_the_server_awake() -> None:
    with Upstream() as upstream, House(upstream.port, Settings(grace=0.01)) as house:
        house.await_frozen()
        client = house.client()
        hello = b"\x16\x03\x01\x02\x00 a client that wants to speak TLS"
        client.sendall(hello)
        server = upstream.accept()
        assert read_exactly(server, len(hello)) == hello
        server.sendall(b"\x15\x03\x03 no")
        assert read_exactly(client, 6) == b"\x15\x03\x03 no"
        freezes = house.hand.freezes
        assert quiet(client, 0.1)
        assert house.hand.freezes == freezes
        client.close()
        assert read_to_end(server) == b""
        server.close()
        house.await_frozen()


# Out of descriptors.

_FEW_DESCRIPTORS = """
import resource, sys, time
from tests.support.house import House, Upstream, read_exactly
from freeze_proxy.gate import Settings
GET = b"GET / HTTP/1.1\\r\\n\\r\\n"
OK = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"
import socket
port = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with House(port, Settings(grace=3600.0)) as house:
    print(house.port, flush=True)
    sys.stdin.readline()
    began = time.process_time()
    sys.stdin.readline()
    print(time.process_time() - began, flush=True)
    sys.stdin.readline()
"""


def test_out_of_descriptors_it_neither_spins_nor_dies_and_recovers(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with (
        Upstream() as upstream,
        subprocess.Popen(
            [sys.executable, "-c", _FEW_DESCRIPTORS, str(upstream.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def go_on() -> None:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        clients: list[socket.socket] = []
        try:
            port = int(process.stdout.readline())
            # More clients than there are descriptors; each wants a connection to the server as well.
            for _ in range(60):
                client = socket.create_connection(("127.0.0.1", port), timeout=10)
                clients.append(client)
                client.sendall(GET)
            go_on()
            time.sleep(0.5)  # the span over which its CPU time is measured
            go_on()
            assert float(process.stdout.readline()) < 0.2
            for client in clients:
                client.close()
            while not upstream.nobody_comes(0.3):
                upstream.accepted.pop().close()
            # Everybody has left: it serves again.
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            clients.append(client)
            client.sendall(GET)
            server = upstream.accept()
            assert read_exactly(server, len(GET)) == GET
            server.sendall(OK)
            assert read_exactly(client, len(OK)) == OK
            client.close()
            go_on()
            assert process.wait(10) == 0
        finally:
            for client in clients:
                client.close()
            process.kill()
