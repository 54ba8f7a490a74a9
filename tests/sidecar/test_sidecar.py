"""``freeze-proxy sidecar`` as a process, without a daemon: it serves, answers probes, and leaves."""

import http.client
import http.server
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import LOOPBACK, free_port
from tests.support.sidecars import NONCE, Sidecar
from tests.support.wait import until


class Server(http.server.ThreadingHTTPServer):
    """``status``: what it answers to its readiness probe; ``asked``: for what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), Handler)
        self.status = 200
        self.asked: list[str] = []
        self.slow = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/slow":
            self.server.slow.wait(10)
        self.send_response(self.server.status if self.path == "/ready" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.slow.set()
        made.shutdown()


def test_it_serves_and_tells_the_truth_about_readiness(server: Server) -> None:
    with Sidecar(server.server_port) as sidecar:
        assert sidecar.get("/hello") == (200, "ok")
        assert sidecar.ask("/ready") == (200, "ok\n")
        server.status = 500
        status, text = sidecar.ask("/ready")
        assert status == 503
        assert "it answers 500" in text
        server.status = 200
        assert sidecar.ask("/ready") == (200, "ok\n")
        assert sidecar.ask("/live") == (200, "ok\n")
        assert sidecar.ask("/live/nobody")[0] == 404
        assert sidecar.ask("/nowhere")[0] == 404
        assert sidecar.ask("/drain/wrong")[0] == 404
        until(lambda: len(sidecar.said("not ready any more")) == 1, "it was said that it is not ready")
        metrics = sidecar.ask("/metrics")[1]
        assert "freeze_proxy_requests_total 1\n" in metrics, "probes are no requests"
        assert "freeze_proxy_in_flight 0\n" in metrics
        assert sidecar.end() == 0


def test_a_server_that_is_not_there_is_not_ready_and_the_daemon_is_said_to_be_away_once() -> None:
    with Sidecar(free_port()) as sidecar:
        status, text = sidecar.ask("/ready")
        assert (status, "does not accept connections" in text) == (503, True)
        until(lambda: sidecar.said("cannot be reached"), "it was said that the daemon is away")
        time.sleep(0.3)  # tries to connect again come much more often
        assert len(sidecar.said("cannot be reached")) == 1


def test_requests_that_call_themselves_probes_are_traffic(server: Server) -> None:
    """Anybody outside can send what queue-proxy of old sent with its probes."""
    with Sidecar(server.server_port) as sidecar:
        fields = {"K-Kubelet-Probe": "queue", "K-Network-Probe": "queue", "User-Agent": "kube-probe/1.34"}
        client = http.client.HTTPConnection(LOOPBACK, sidecar.port, timeout=5)
        client.request("GET", "/ready", headers=fields)
        assert client.getresponse().status == 200
        client.close()
        assert "freeze_proxy_requests_total 1\n" in sidecar.ask("/metrics")[1]


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """What is no daemon: it says this to everybody, or is silent; its address."""
    with socket.create_server((LOOPBACK, 0)) as listener, ExitStack() as open_ones:

        def serve() -> None:
            while True:
                try:
                    connection = open_ones.enter_context(listener.accept()[0])
                except OSError:
                    return
                with suppress(OSError):  # by RST, perhaps; the next one may come
                    while answer is not None and (asked := connection.recv(65536)):
                        connection.sendall(answer * asked.count(b"POST /"))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def said_by(status: str, sentence: str) -> bytes:
    body = json.dumps({"error": sentence}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


TROUBLES = {
    "refuses": (said_by("403 Forbidden", "It is not for you."), "It is not for you."),
    "is helpless": (said_by("503 Service Unavailable", "The runtime is away."), "The runtime is away."),
    "is no daemon": (b"SSH-2.0-OpenSSH_9.2\r\n", "is not the daemon"),
    "is silent": (None, "does not answer"),
    "is not there": ("", "cannot be reached (connection refused)"),
    "is nowhere": ("192.0.2.1:9696", "cannot be reached"),
    "has no name": ("nobody.invalid:9696", "its name does not resolve"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_whatever_is_wrong_with_the_daemon_it_serves_and_says_so_once(
    server: Server, tmp_path: Path, trouble: str
) -> None:
    what, sentence = TROUBLES[trouble]
    token = tmp_path / "token"
    token.write_text("a.b.c")
    with ExitStack() as stack:
        if what == "":
            what = f"{LOOPBACK}:{free_port()}"
        address = what if isinstance(what, str) else stack.enter_context(listening(what))
        sidecar = stack.enter_context(Sidecar(server.server_port, DAEMON=address, TOKEN_FILE=str(token)))
        until(lambda: sidecar.said(sentence), f"it says: {sentence}")
        over = time.monotonic() + 1.0
        while time.monotonic() < over:
            assert sidecar.get("/hello") == (200, "ok")
            assert sidecar.ask("/ready") == (200, "ok\n")
        assert len(sidecar.said(sentence)) == 1
        assert len([line for line in sidecar.log if line["level"] != "info"]) <= 2, sidecar.log
        assert not any("a.b.c" in str(line) for line in sidecar.log)
        assert sidecar.end() == 0


def test_a_request_in_flight_ends_before_the_sidecar_does(server: Server) -> None:
    with Sidecar(server.server_port) as sidecar:
        answers: list[tuple[int, str]] = []
        client = threading.Thread(target=lambda: answers.append(sidecar.get("/slow", timeout=20)))
        client.start()
        until(lambda: "/slow" in server.asked, "the request has arrived")
        sidecar.process.send_signal(signal.SIGTERM)
        assert sidecar.get("/during") == (200, "ok"), "a request is refused while it drains"
        with pytest.raises(subprocess.TimeoutExpired):
            sidecar.process.wait(0.6)
        server.slow.set()
        client.join()
        assert answers == [(200, "ok")]
        assert sidecar.process.wait(timeout=10) == 0


def test_the_hook_is_answered_when_no_request_will_come(server: Server) -> None:
    with Sidecar(server.server_port, DRAIN_URL=f"http://{LOOPBACK}:{server.server_port}/slow") as sidecar:
        answers: list[tuple[int, str]] = []
        hook = threading.Thread(target=lambda: answers.append(sidecar.get(f"/drain/{NONCE}", sidecar.admin, 20)))
        hook.start()
        until(lambda: "/slow" in server.asked, "queue-proxy has been asked")
        assert sidecar.get("/during") == (200, "ok")
        assert not answers
        server.slow.set()
        hook.join()
        assert answers == [(200, "drained\n")]
        assert sidecar.end() == 0


def test_whoever_knows_nothing_of_draining_may_go_on_sending(server: Server) -> None:
    server.status = 404
    told = {"DRAIN_URL": f"http://{LOOPBACK}:{server.server_port}/ready", "DRAIN_QUIET": "700ms"}
    with Sidecar(server.server_port, **told) as sidecar:
        sidecar.process.send_signal(signal.SIGTERM)
        until(lambda: server.asked.count("/ready") > 1, "it has been asked")
        until(lambda: server.asked.count("/ready") > 1 and sidecar.get("/during") == (200, "ok"), "it serves")
        with pytest.raises(subprocess.TimeoutExpired):
            sidecar.process.wait(0.4)
        assert sidecar.process.wait(timeout=10) == 0


def test_queue_proxy_that_is_gone_sends_no_more(server: Server) -> None:
    with Sidecar(server.server_port, DRAIN_URL=f"http://{LOOPBACK}:{free_port()}/", DRAIN_QUIET="60s") as sidecar:
        assert sidecar.end() == 0


def test_the_grace_ends_what_does_not_end(server: Server) -> None:
    with Sidecar(server.server_port, TERMINATION_GRACE="1500ms") as sidecar:
        client = http.client.HTTPConnection(LOOPBACK, sidecar.port, timeout=20)
        client.request("GET", "/slow")
        until(lambda: "/slow" in server.asked, "the request has arrived")
        assert sidecar.end() == 0
        assert sidecar.said("grace of 1.5 s is over, with 1 in flight")
        client.close()


def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    with Sidecar(server.server_port, DRAIN_QUIET="20s") as sidecar:
        sidecar.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            sidecar.process.wait(0.3)
        assert sidecar.end() == 0


@pytest.mark.parametrize(
    ("variables", "code", "sentence"),
    [
        ({"GRACE": "soon", "MODE": "x"}, 2, "FREEZE_PROXY_GRACE: 'soon' is not a duration"),
        ({"LISTEN": "192.0.2.1:80"}, 125, "It cannot listen on 192.0.2.1:80"),
        ({"ADMIN": "somewhere:80"}, 125, "FREEZE_PROXY_ADMIN names somewhere, which is no address"),
    ],
)
def test_what_cannot_be_ends_with_a_sentence(variables: dict[str, str], code: int, sentence: str) -> None:
    with Sidecar(1, **variables) as sidecar:
        assert sidecar.process.wait(timeout=10) == code
        until(lambda: sidecar.said(sentence), "it says why")


def test_its_memory_and_its_modules(server: Server) -> None:
    with Sidecar(server.server_port) as sidecar:
        for _ in range(200):
            sidecar.get("/x")
        status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 13 * 1024
        assert sidecar.end() == 0
