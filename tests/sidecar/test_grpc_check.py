"""``sidecar/grpc.py``: a health check in HTTP/2 frames, read and answered by a library that knows the standard."""

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.sidecar import grpc


def server() -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    made.initiate_connection()
    return made


@pytest.mark.parametrize(
    ("host", "service", "authority"),
    [
        ("127.0.0.1", "", "127.0.0.1:50051"),
        ("::1", "a.b.Service", "[::1]:50051"),
        ("app.test", "x" * 300, "app.test:50051"),
        ("h" * 200, "", "h" * 200 + ":50051"),
    ],
)
def test_the_request_is_what_the_protocol_asks_for(host: str, service: str, authority: str) -> None:
    events = server().receive_data(grpc.request(host, 50051, service))
    (asked,) = [event for event in events if isinstance(event, h2.events.RequestReceived)]
    fields = {bytes(name).decode(): bytes(value).decode() for name, value in asked.headers or ()}
    assert fields == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
        "user-agent": "kube-probe/freeze-proxy",
    }
    data = b"".join(event.data or b"" for event in events if isinstance(event, h2.events.DataReceived))
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    assert data.endswith(service.encode())
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)


def answered(message: bytes | None, *, padding: int | None = None, status: str = "0") -> bytes:
    """All that a server says to the check."""
    speaks = server()
    speaks.receive_data(grpc.request("127.0.0.1", 1, ""))
    speaks.ping(b"12345678")
    if message is None:
        speaks.send_headers(1, [(":status", "200"), ("grpc-status", status)], end_stream=True)
    else:
        speaks.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        speaks.send_data(1, b"\0" + len(message).to_bytes(4, "big") + message, pad_length=padding)
        speaks.send_headers(1, [("grpc-status", status)], end_stream=True)
    return bytes(speaks.data_to_send())


def verdict(data: bytes, cut: int) -> tuple[str | None, bytes]:
    reader, replies = grpc.Answer(), b""
    for begin in range(0, len(data), cut):
        said, reply = reader.feed(data[begin : begin + cut])
        replies += reply
        if said is not None:
            return said, replies
    return None, replies


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\x08\x01", ""),
        (b"", "its gRPC health is UNKNOWN"),
        (b"\x08\x02", "its gRPC health is NOT_SERVING"),
        (b"\x08\x03", "its gRPC health is SERVICE_UNKNOWN"),
        (None, "it does not offer the gRPC health service, or does not know the service"),
    ],
)
@given(cut=st.integers(1, 200), padding=st.none() | st.integers(0, 255))
def test_the_verdict_whatever_the_pieces(message: bytes | None, said: str, cut: int, padding: int | None) -> None:
    found, replies = verdict(answered(message, padding=padding, status="0" if message is not None else "12"), cut)
    assert found == said
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.receive_data(grpc.request("127.0.0.1", 1, ""))
    events = client.receive_data(replies)
    assert any(isinstance(event, h2.events.SettingsAcknowledged) for event in events) or replies
    assert replies.endswith(b"12345678"), "the ping is answered"


def test_a_refusal_is_one() -> None:
    speaks = server()
    speaks.receive_data(grpc.request("127.0.0.1", 1, ""))
    speaks.reset_stream(1)
    assert verdict(bytes(speaks.data_to_send()), 1000)[0] == "it refuses the gRPC health check"
    speaks = server()
    speaks.close_connection()
    assert verdict(bytes(speaks.data_to_send()), 1000)[0] == "it refuses the gRPC health check"


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_nothing_that_comes_raises(pieces: list[bytes]) -> None:
    reader = grpc.Answer()
    for piece in pieces:
        said, reply = reader.feed(piece)
        assert len(reply) <= 9 * (len(piece) + 9)
        if said is not None:
            break


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=40))
def test_nor_does_any_frame(kind: int, flags: int, stream: int, payload: bytes) -> None:
    frame = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    said, _ = grpc.Answer().feed(frame * 3)
    assert said != "" or (kind == 0 and stream == 1), "only a message on the stream passes"
