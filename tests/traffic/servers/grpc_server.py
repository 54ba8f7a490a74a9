"""A gRPC server whose messages are plain bytes, with a method of every kind. Listens on ``$PORT`` by h2c."""

import os
import time
from collections.abc import Iterator
from concurrent import futures

import grpc


def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata((("peer", context.peer()),))
    return request[::-1]


def count(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
    """So many messages, with pauses."""
    for number in range(int(request)):
        yield str(number).encode()
        time.sleep(0.05)


def total(requests: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
    return str(sum(len(request) for request in requests)).encode()


def echo(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield b"> " + request


def fail(_request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wished")
    raise AssertionError("abort raises")


def main() -> None:
    server = grpc.server(
        futures.ThreadPoolExecutor(16),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10),
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Bytes", handlers),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
