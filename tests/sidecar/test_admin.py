"""``sidecar/admin.py``: a small server for anybody in the cluster, within bounds."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from freeze_proxy.loop import Loop
from freeze_proxy.sidecar import admin as module
from freeze_proxy.sidecar.admin import MOST_CONNECTIONS, MOST_HEAD, Admin
from freeze_proxy.tcp import listen
from tests.support.loops import turn_for, turn_until
from tests.support.ports import LOOPBACK

NONCE = "n0nce"


class Scene:
    """An admin port whose answers come when the test says so, if ``late``."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.trouble = ""
        self.late = False
        self.waiting: list[Callable[[str], None]] = []
        self.drained: list[Callable[[], None]] = []
        self.admin = Admin(
            self.loop,
            listen((LOOPBACK, 0)),
            ready=self.tell,
            live=self.live,
            metrics=lambda: "# TYPE a gauge\na 1\n",
            drain=self.drained.append,
            nonce=NONCE,
        )
        self.port = self.admin.listener.getsockname()[1]

    def tell(self, answer: Callable[[str], None]) -> None:
        self.waiting.append(answer)
        if not self.late:
            answer(self.trouble)

    def live(self, name: str, answer: Callable[[str], None]) -> bool:
        if name not in ("", "app"):
            return False
        self.tell(answer)
        return True

    def close(self) -> None:
        self.admin.close()
        turn_for(self.loop, 0)
        self.loop.close()

    def connect(self) -> "Client":
        return Client(self)

    def ask(self, data: bytes) -> bytes:
        """All that is answered until the connection ends."""
        client = self.connect()
        client.send(data)
        return client.hear_all()


class Client:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.socket = socket.create_connection((LOOPBACK, scene.port))
        self.socket.setblocking(False)
        self.heard = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def look(self) -> None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.ended = self.ended or not data
        self.heard += data

    def hear(self, part: bytes) -> bytes:
        def there() -> bool:
            self.look()
            return part in self.heard

        turn_until(self.scene.loop, there, f"{part!r} is heard")
        heard, self.heard = self.heard, b""
        return heard

    def hear_all(self) -> bytes:
        def over() -> bool:
            self.look()
            return self.ended

        turn_until(self.scene.loop, over, "the connection ends")
        self.socket.close()
        return self.heard


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def get(path: str, *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/ready", 200, "ok\n"),
        ("/ready?x=1", 200, "ok\n"),
        ("/live", 200, "ok\n"),
        ("/live/app", 200, "ok\n"),
        ("/live/nobody", 404, "There is no liveness probe of such a container.\n"),
        ("/metrics", 200, "# TYPE a gauge\na 1\n"),
        ("/", 200, "freeze-proxy sidecar: /ready, /live, /metrics\n"),
        ("/nowhere", 404, "There is no such path."),
        ("/drain/", 404, "There is no such path."),
        (f"/drain/{NONCE}x", 404, "There is no such path."),
        ("/drain/n0ncé", 404, "There is no such path."),
    ],
)
def test_each_path(scene: Scene, path: str, status: int, body: str) -> None:
    answer = scene.ask(get(path, "Connection: close"))
    head, _, rest = answer.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert rest.startswith(body)
    assert f"Content-Length: {len(rest.encode())}" in head
    assert ("text/plain; version=0.0.4" in head) == (path == "/metrics")
    assert scene.drained == []


def test_what_is_wrong_is_said(scene: Scene) -> None:
    scene.trouble = "does not answer"
    answer = scene.ask(get("/ready", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert answer.endswith(b"\r\n\r\nThe server does not answer.\n")


def test_the_hook_is_answered_later(scene: Scene) -> None:
    client = scene.connect()
    client.send(get(f"/drain/{NONCE}", "Connection: close"))
    turn_until(scene.loop, lambda: scene.drained, "it begins")
    turn_for(scene.loop, 0.05)
    client.look()
    assert client.heard == b""
    scene.drained[0]()
    assert client.hear_all().endswith(b"\r\n\r\ndrained\n")


def test_without_a_nonce_there_is_no_hook(scene: Scene) -> None:
    scene.admin._nonce = b""
    assert b" 404 " in scene.ask(get("/drain/", "Connection: close"))
    assert scene.drained == []


def test_requests_of_one_connection_are_answered_one_after_another(scene: Scene) -> None:
    scene.late = True
    client = scene.connect()
    client.send(get("/ready") + get("/live") + get("/metrics"))
    for _ in range(2):
        turn_until(scene.loop, lambda: scene.waiting, "it is asked")
        turn_for(scene.loop, 0.01)
        assert len(scene.waiting) == 1, "the next waits for the answer to this"
        scene.waiting.pop()("")
    assert client.hear(b"a 1\n").count(b"HTTP/1.1 200 OK") == 3
    client.send(get("/metrics"))
    client.hear(b"a 1\n")
    client.socket.close()


def test_a_request_in_pieces(scene: Scene) -> None:
    client = scene.connect()
    for byte in get("/ready"):
        client.send(bytes((byte,)))
        turn_for(scene.loop, 0.0005)
    client.hear(b"\r\n\r\nok\n")
    client.socket.close()


def test_head_has_no_body(scene: Scene) -> None:
    answer = scene.ask(get("/ready", "Connection: close", method="HEAD"))
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/ready", version="1.0"), 200),
        (get("/ready", "connection: CLOSE"), 200),
        (get("/ready", "Content-Length: 5") + b"hello", 200),
        (get("/ready", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 200),
        (get("/ready", method="POST"), 405),
        (b"GET /ready\r\n\r\n", 400),
        (b"GET /ready HTTP/2.0\r\n\r\n", 400),
        (b"\0\xff\r\n\r\n", 400),
        (b"GET /" + b"x" * (2 * MOST_HEAD), 400),
    ],
)
def test_what_ends_a_connection(scene: Scene, data: bytes, status: int) -> None:
    answer = scene.ask(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"\r\nContent-Length:") == 1
    assert b"\r\nConnection: close\r\n" in answer


def test_who_leaves_while_he_waits_is_forgotten(scene: Scene) -> None:
    scene.late = True
    client = scene.connect()
    client.send(get("/ready"))
    turn_until(scene.loop, lambda: scene.waiting, "it is asked")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.socket.close()
    turn_for(scene.loop, 0.02)
    scene.waiting[0]("")
    turn_until(scene.loop, lambda: not scene.admin.connections, "it is forgotten")


@pytest.mark.parametrize("said", [b"", b"GET /ready HTTP/1.1\r\nHost:", get("/ready")])
def test_who_says_no_more_is_closed_after_a_while(scene: Scene, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_TIME", 0.1)
    client = scene.connect()
    client.send(said)
    began = time.monotonic()
    client.hear_all()
    assert 0.09 < time.monotonic() - began < 2
    assert not scene.admin.connections


def test_of_too_many_the_oldest_that_waits_for_nothing_goes(scene: Scene) -> None:
    scene.late = True
    busy = scene.connect()
    busy.send(get("/ready"))
    turn_until(scene.loop, lambda: scene.waiting, "it is asked")
    idle = [scene.connect() for _ in range(MOST_CONNECTIONS + 20)]
    turn_until(scene.loop, lambda: len(scene.admin.connections) == MOST_CONNECTIONS, "they are there")

    def gone() -> int:
        for client in idle:
            client.look()
        return sum(client.ended for client in idle)

    turn_until(scene.loop, lambda: gone() == 21, "21 have been closed")
    assert all(client.ended for client in idle[:21])
    scene.waiting[0]("")
    busy.hear(b"ok\n")
    for client in [*idle, busy]:
        client.socket.close()
