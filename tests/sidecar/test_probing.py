"""``sidecar/probing.py``: probes of every kind, run on the loop against real servers, good and bad."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import grpc
import pytest

from freeze_proxy.loop import Loop
from freeze_proxy.sidecar.probes import probes
from freeze_proxy.sidecar.probing import MOST_READ, Probing
from tests.support.certificates import expired
from tests.support.loops import turn_for, turn_until
from tests.support.ports import LOOPBACK, free_port

STATUSES = {b"": b"\x08\x01", b"\x0a\x02up": b"\x08\x01", b"\x0a\x04down": b"\x08\x02", b"\x0a\x05vague": b""}
"""What the gRPC server answers (grpc.health.v1.HealthCheckResponse), by request; any other it does not know."""


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def run(loop: Loop, value: Any, host: str = LOOPBACK) -> str:
    """What a probe, as Kubernetes writes it, comes to."""
    (probe,) = probes(value, 1)
    told: list[str] = []
    probing = Probing(loop, probe, host, told.append)
    assert told == [], "it answers before it has been begun"
    turn_until(loop, lambda: bool(told), f"the probe {probe!r} ends")
    turn_for(loop, 0.005)
    assert len(told) == 1
    assert probing._side is None, "its connection is left open"
    return told[0]


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "silent":
            threading.Event().wait(1)
            return
        if kind == "gone":
            self.close_connection = True
            return
        if kind == "loop":
            self.answer(302, self.path)
        elif kind == "to":
            self.answer(307, "/" + rest)
        elif kind == "away":
            self.answer(301, "http://192.0.2.1/")
        else:
            self.answer(int(kind))

    def answer(self, status: int, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def pages(context: ssl.SSLContext | None = None) -> Iterator[int]:
    Pages.asked = []
    with ThreadingHTTPServer((LOOPBACK, 0), Pages) as server:
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with pages() as port:
        yield port


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """With a certificate of another name, and expired."""
    file = expired(tmp_path_factory.mktemp("tls") / "server.pem")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


@pytest.fixture(scope="module")
def https_port(context: ssl.SSLContext) -> Iterator[int]:
    with pages(context) as port:
        yield port


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    def service(self, details: Any) -> Any:
        if details.method != "/grpc.health.v1.Health/Check":
            return None

        def check(request: bytes, context: Any) -> bytes:
            if request not in STATUSES:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return STATUSES[request]

        return grpc.unary_unary_rpc_method_handler(check)


@contextmanager
def grpc_server(*handlers: grpc.GenericRpcHandler) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=handlers)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    with grpc_server(Health()) as port:
        yield port


@contextmanager
def raw_server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """One that does as told with each connection, in a thread."""
    with ExitStack() as open_ones, socket.create_server((LOOPBACK, 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    open_ones.enter_context(connection)
                    serve(connection)
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# HTTP.


@pytest.mark.parametrize("status", [200, 204, 399])
def test_http_passes(loop: Loop, http_port: int, status: int) -> None:
    assert run(loop, {"httpGet": {"path": f"/{status}", "port": http_port}}) == ""


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_http_fails_by_its_status(loop: Loop, http_port: int, status: int) -> None:
    said = run(loop, {"httpGet": {"path": f"/{status}", "port": http_port}})
    assert said == f"does not pass GET http://the pod:{http_port}/{status}: it answers {status}"


def test_http_sends_what_kubernetes_says(loop: Loop, http_port: int) -> None:
    fields = [{"name": "X-One", "value": "1"}, {"name": "User-Agent", "value": "mine"}]
    assert run(loop, {"httpGet": {"path": "/200/?q=1", "port": http_port, "httpHeaders": fields}}) == ""
    path, sent = Pages.asked[-1]
    assert (path, sent["X-One"], sent["User-Agent"]) == ("/200/?q=1", "1", "mine")
    assert sent["Host"] == f"{LOOPBACK}:{http_port}"
    assert sent["Connection"] == "close"


def test_redirects_are_followed_to_their_end(loop: Loop, http_port: int) -> None:
    assert run(loop, {"httpGet": {"path": "/to/to/200", "port": http_port}}) == ""
    assert run(loop, {"httpGet": {"path": "/to/to/500", "port": http_port}}).endswith("it answers 500")
    assert run(loop, {"httpGet": {"path": "/away", "port": http_port}}) == "", "another host is not asked"
    before = len(Pages.asked)
    assert run(loop, {"httpGet": {"path": "/loop", "port": http_port}}).endswith("it redirects 10 times")
    assert len(Pages.asked) - before == 10


def test_a_server_that_says_nothing_fails_in_time(loop: Loop, http_port: int) -> None:
    value = {"httpGet": {"path": "/silent", "port": http_port}, "timeoutSeconds": 0.1}
    began = loop.now
    assert run(loop, value) == f"does not answer GET http://the pod:{http_port}/silent within 0.1 s"
    assert loop.now - began < 1


def test_a_server_that_closes_before_it_answers(loop: Loop, http_port: int) -> None:
    said = run(loop, {"httpGet": {"path": "/gone", "port": http_port}})
    assert said == f"closes the connection of GET http://the pod:{http_port}/gone before it answers"


def test_one_that_never_ends_its_head_is_read_no_further(loop: Loop) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\n" + b"X: y\r\n" * MOST_READ)

    with raw_server(flood) as port:
        assert "it says too much before it answers" in run(loop, {"httpGet": {"port": port}})


def test_one_that_speaks_something_else(loop: Loop) -> None:
    with raw_server(lambda connection: connection.sendall(b"220 mail.test ESMTP\r\n")) as port:
        assert run(loop, {"httpGet": {"port": port}}).endswith("it does not answer in HTTP")


# TCP, and what is the same for all.


@pytest.mark.parametrize("host", [LOOPBACK, "localhost"])
def test_tcp_passes_where_somebody_listens(loop: Loop, http_port: int, host: str) -> None:
    assert run(loop, {"tcpSocket": {"port": http_port, "host": host}}) == ""


@pytest.mark.parametrize("kind", ["httpGet", "tcpSocket", "grpc"])
def test_nobody_listens(loop: Loop, kind: str) -> None:
    port = free_port()
    said = run(loop, {kind: {"port": port}})
    assert said == f"does not accept connections at {LOOPBACK}:{port} (connection refused)"


@pytest.mark.parametrize("kind", ["httpGet", "tcpSocket", "grpc"])
def test_one_whose_queue_is_full_fails_in_time(loop: Loop, kind: str) -> None:
    """So does a server that stands still, if somebody were to probe it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            full = stack.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex((LOOPBACK, port))
        said = run(loop, {kind: {"port": port}, "timeoutSeconds": 0.1})
        assert said.startswith("does not accept a connection for "), said
        assert said.endswith("within 0.1 s")


def test_a_name_that_does_not_resolve(loop: Loop) -> None:
    said = run(loop, {"tcpSocket": {"port": 80, "host": "nobody.invalid"}, "timeoutSeconds": 5})
    assert said.startswith("cannot be found: nobody.invalid does not resolve"), said


def test_a_probe_that_is_stopped_is_not_heard_of(loop: Loop, http_port: int) -> None:
    (probe,) = probes({"httpGet": {"path": "/silent", "port": http_port}, "timeoutSeconds": 0.05}, 1)
    told: list[str] = []
    probing = Probing(loop, probe, LOOPBACK, told.append)
    turn_for(loop, 0.001)
    probing.stop()
    turn_for(loop, 0.1)
    assert told == []


# HTTPS.


def test_https_looks_at_no_certificate(loop: Loop, https_port: int) -> None:
    assert run(loop, {"httpGet": {"path": "/200", "port": https_port, "scheme": "HTTPS"}}) == ""
    said = run(loop, {"httpGet": {"path": "/503", "port": https_port, "scheme": "HTTPS", "host": "localhost"}})
    assert said == f"does not pass GET https://localhost:{https_port}/503: it answers 503"


def test_https_redirects_too(loop: Loop, https_port: int) -> None:
    assert run(loop, {"httpGet": {"path": "/to/200", "port": https_port, "scheme": "HTTPS"}}) == ""


def test_https_of_a_server_without_it(loop: Loop, http_port: int) -> None:
    said = run(loop, {"httpGet": {"path": "/200", "port": http_port, "scheme": "HTTPS"}})
    assert said.startswith("fails in TLS with GET https://"), said


def test_http_of_a_server_with_tls(loop: Loop, https_port: int) -> None:
    assert run(loop, {"httpGet": {"path": "/200", "port": https_port}}) != ""


# gRPC.


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("", ""),
        ("up", ""),
        ("down", "its gRPC health is NOT_SERVING"),
        ("vague", "its gRPC health is UNKNOWN"),
        ("nobody", "it does not offer the gRPC health service, or does not know the service"),
    ],
)
def test_grpc(loop: Loop, grpc_port: int, service: str, said: str) -> None:
    value = {"grpc": {"port": grpc_port, "service": service}} if service else {"grpc": {"port": grpc_port}}
    for _ in range(2):
        found = run(loop, value)
        assert found.endswith(said)
        assert bool(found) == bool(said)


def test_grpc_of_a_server_without_the_service(loop: Loop) -> None:
    with grpc_server() as port:
        said = run(loop, {"grpc": {"port": port}})
    assert said.endswith("it does not offer the gRPC health service, or does not know the service")


def test_grpc_of_a_server_that_speaks_http_1(loop: Loop, http_port: int) -> None:
    assert run(loop, {"grpc": {"port": http_port}}) != ""
