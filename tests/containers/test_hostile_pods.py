"""Pods that try to freeze and thaw others, or to keep the daemon from its work, against a real daemon and containers.

Three parties: the attacker and its pod, the victim that is frozen under a lease of its own and must stay so, and an
honest pod that must be served in time all the while.
"""

import hmac
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.control.messages import MOST_TOKEN
from freeze_proxy.control.server import MOST_UNTRUSTED
from tests.containers.attacker import ANSWER
from tests.support.api_server import ApiServer, b64, key, unb64
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.kubelet import Kubelet, Pod
from tests.support.daemons import ROOT, Answered, Control, Daemon
from tests.support.examples import examples
from tests.support.ports import LOOPBACK
from tests.support.wait import until

NODE = "this-node"
ELSEWHERE = "127.0.0.66"
"""The attacker's address."""


class Scene:
    """The daemon, and the three pods. What moves is seen by the kernel's word."""

    def __init__(self, daemon: Daemon, api_server: ApiServer, kubelet: Kubelet) -> None:
        self.daemon = daemon
        self.api_server = api_server
        self.victim, self.honest, self.attacker = (
            kubelet.pod(("user-container", "queue-proxy"), name=name) for name in ("victim", "honest", "attacker")
        )
        self.tokens: list[str] = []
        self.victims_token = self.token(self.victim)
        self.control = daemon.control()

    def token(self, pod: Pod, **changes: Any) -> str:
        wanted: dict[str, Any] = {"uid": pod.uid, "name": pod.name, "namespace": pod.namespace, "node": NODE}
        token = self.api_server.token(**(wanted | changes))
        self.tokens.append(token)
        return token

    def freeze_victim(self) -> None:
        assert self.control.call("/freeze", self.victims_token).status == 200
        assert self.victim["user-container"].frozen

    def thaw_victim(self) -> None:
        assert self.control.call("/thaw", self.victims_token).status == 200
        self.victim["user-container"].await_ticks()

    def assert_frozen(self) -> None:
        """The victim stands still; everybody else runs."""
        assert self.victim["user-container"].stands_still()
        assert self.victim["user-container"].frozen
        for container in (self.victim["queue-proxy"], self.attacker["user-container"], self.honest["user-container"]):
            assert not container.frozen

    def assert_awake(self) -> None:
        """All run."""
        self.victim["user-container"].await_ticks()
        for pod in (self.victim, self.attacker, self.honest):
            assert not any(container.frozen for container in pod.containers.values())

    def memory(self) -> float:
        """The most that the daemon has had in memory so far, in MiB."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("There is no VmHWM.")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def connections(self) -> float:
        return self.daemon.metric("freeze_proxy_connections")

    def assert_no_token_was_logged(self) -> None:
        log = self.daemon.log()
        for token in [*self.tokens, *self.api_server.credentials]:
            assert not any(part in log for part in token.split(".")[1:] or [token])


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api-server") as server:
        yield server


@pytest.fixture(params=["tokenreview"])
def identity(request: pytest.FixtureRequest) -> str:
    """How tokens are checked."""
    return str(request.param)


@pytest.fixture
def scene(
    tmp_path: Path, api_server: ApiServer, containerd: Containerd, kubelet: Kubelet, identity: str
) -> Iterator[Scene]:
    options = ("--node-name", NODE, "--identity", identity)
    with Daemon(tmp_path / "daemon", api_server.kubeconfig(), containerd.socket, *options) as daemon:
        made = Scene(daemon, api_server, kubelet)
        yield made
        made.control.close()
        made.victim["user-container"].await_awake()
        made.assert_no_token_was_logged()
        assert "trace" not in daemon.log(), "an exception that nobody thought of"


def sent(scene: Scene, data: bytes, here: str = ELSEWHERE) -> Answered | None:
    """What the daemon answers to these bytes, from the attacker's address; ``None`` if it closes without a word."""
    with socket.create_connection((LOOPBACK, scene.daemon.port), 20, (here, 0)) as connection:
        try:
            connection.sendall(data)
        except OSError:
            pass  # it may have been refused before it was all sent
        return heard(connection)


def heard(connection: socket.socket) -> Answered | None:
    answer = b""
    try:
        while b"\r\n\r\n" not in answer:
            part = connection.recv(1 << 16)
            if not part:
                return None
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            part = connection.recv(1 << 16)
            if not part:
                return None
            body += part
    except ConnectionResetError:
        return None
    return Answered(int(head.split()[1]), json.loads(body[:length]))


def request(path: str, fields: str = "", body: str = "", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nLease: connection\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return (head + body).encode("latin-1")


# Other pods' identities.


def wrong_tokens(scene: Scene) -> dict[str, str]:
    """Tokens that name the victim, or nobody, and are none of the victim's."""
    victim, api_server = scene.victim, scene.api_server
    good = scene.victims_token
    head, payload, _ = good.split(".")
    claims = json.loads(unb64(payload))

    def unsigned(algorithm: str, secret: bytes | None = None) -> str:
        named = json.dumps({"alg": algorithm, "kid": api_server.signing.kid}).encode()
        data = f"{b64(named)}.{payload}"
        return f"{data}.{b64(hmac.digest(secret, data.encode(), 'sha256') if secret else b'x')}"

    own = scene.token(scene.attacker)
    gone = scene.token(scene.victim, uid="7c6b0bb0-0000-4000-8000-000000000000", name="gone")
    api_server.delete_pod("7c6b0bb0-0000-4000-8000-000000000000")
    return {
        "nobody's signature": f"{head}.{payload}.AAAA",
        "own signature, the victim's name": ".".join([head, payload, own.split(".")[2]]),
        "somebody's key": scene.token(victim, key=key("forger")),
        "somebody's key by the right name": key("forger").sign(claims, kid=api_server.signing.kid),
        "a shared secret": unsigned("HS256", api_server.signing.pem),
        "no signature": unsigned("none"),
        "expired": scene.token(victim, lifetime=-60),
        "not valid yet": scene.token(victim, claims={"nbf": int(time.time()) + 300}),
        "for the API server": scene.token(victim, audience=api_server.issuer),
        "for queue-proxy's hook": scene.token(victim, audience="concurrency-state-hook"),
        "for an audience that begins alike": scene.token(victim, audience="freeze2"),
        "of another node": scene.token(victim, node="another-node"),
        "of no pod": scene.token(victim, uid=None),
        "of a pod that is gone": gone,
        "the daemon's own": min(api_server.credentials),
        "with a word before": f"Bearer {good}",
        "in quotes": f'"{good}"',
        "twice": f"{good},{good}",
        "shortened": good[:-1],
        "with a part too many": f"{good}.x",
        "too long": "a." + "b" * MOST_TOKEN + ".c",
        "characters that no token has": "\xff\xfe.\xe4.x",
    }


@pytest.mark.parametrize("identity", ["tokenreview", "jwks"], indirect=True)
def test_nobody_else_moves_the_victim(scene: Scene, identity: str) -> None:
    tokens = wrong_tokens(scene)
    if identity == "jwks":
        del tokens["of a pod that is gone"]  # names a pod that has no container
    scene.freeze_victim()
    for name, token in tokens.items():
        for path in ("/thaw", "/freeze"):
            answer = sent(scene, request(path, f"Token: {token}\r\n"))
            assert answer is not None, name
            assert answer.status == 403, f"{name}: {answer}"
            assert not any(part in answer.error for part in token.split(".") if len(part) > 8)
    scene.assert_frozen()
    scene.thaw_victim()
    for token in tokens.values():
        sent(scene, request("/freeze", f"Token: {token}\r\n"))
    scene.assert_awake()


def test_a_token_in_the_wrong_place_is_no_token(scene: Scene) -> None:
    token = scene.victims_token
    scene.freeze_victim()
    for path in ("/thaw", "/freeze"):
        body = json.dumps({"token": token, "Token": token})
        for wrong in (
            request(path),
            request(path, "Token:\r\n"),
            request(path, "Token: \t \r\n"),
            request(path, f"Authorization: Bearer {token}\r\n"),
            request(path, f"X-Token: {token}\r\n"),
            request(path, f"Cookie: token={token}\r\n"),
            request(f"{path}?token={token}"),
            request(f"{path}?Token={token}", f"Authorization: {token}\r\n"),
            request(path, "", body),
            request(path, "Content-Type: application/x-www-form-urlencoded\r\n", f"token={token}"),
        ):
            answer = sent(scene, wrong)
            assert answer is not None
            assert answer.status == 400, wrong
            assert "header Token is missing" in answer.error
        for status, elsewhere in (
            (404, request(f"{path}/{token}")),
            (404, request(f"{path}/", f"Token: {token}\r\n")),
            (404, request(f"/{path}", f"Token: {token}\r\n")),
            (404, request(path.upper(), f"Token: {token}\r\n")),
            (404, request(f"http://h{path}", f"Token: {token}\r\n")),
            (405, request(path, f"Token: {token}\r\n", method="GET")),
            (405, request(path, f"Token: {token}\r\n", method="PUT")),
            (403, request("/", f"Token: {token}\r\n", '{"action": "resume"}')),
            # Of two the first counts.
            (403, request(path, f"Token: a.b.c\r\nToken: {token}\r\n")),
            # A field that goes on in the next line is not HTTP any more.
            (400, request(path, f"X: y\r\n Token: {token}\r\n")),
            (400, request(path, f"Token : {token}\r\n")),
        ):
            answer = sent(scene, elsewhere)
            assert answer is not None
            assert answer.status == status, elsewhere
    scene.assert_frozen()


def test_a_good_token_moves_its_own_pod_alone_whatever_the_request_says(scene: Scene) -> None:
    scene.freeze_victim()
    own, victim = scene.token(scene.attacker), scene.victim
    fields = f"Token: {own}\r\nX-Pod-Uid: {victim.uid}\r\nX-Forwarded-For: 10.0.0.1\r\n"
    names: list[dict[str, Any]] = [
        {"pod": victim.uid},
        {"uid": victim.uid, "name": victim.name, "namespace": victim.namespace},
        {"sandbox": victim.id, "id": victim["user-container"].id},
    ]
    for body in names:
        for path in (f"/thaw?pod={victim.uid}", f"/freeze?uid={victim.uid}", "/thaw"):
            answer = sent(scene, request(path, fields, json.dumps(body)))
            assert answer is not None
            assert answer.status == 200
            assert [each["id"] for each in answer.facts["containers"]] == [scene.attacker["user-container"].id]
    for containers in (
        [victim["user-container"].id],
        [f"{victim.name}/user-container"],
        [f"../{victim.uid}/user-container"],
        ["user-container", f"{victim.id}"],
        ["*"],
        [""],
        ["queue-proxy"],
        ["\ud800", "\0", "x" * 1000],
    ):
        answer = sent(scene, request("/freeze", fields, json.dumps({"containers": containers})))
        assert answer is not None
        assert answer.status == 404, containers
    for nonsense in ("{", "[]", "5", '"x"', "null", "[" * 5000, '{"containers": "all"}', '{"containers": [1]}',
                     '{"containers": {}}', '{"containers": []}', '{"mode": "kill"}', '{"mode": ["freeze"]}',
                     '{"containers": [' + ", ".join(['"x"'] * 100) + "]}", "1" * 6000, "\xff\xfe"):  # fmt: skip
        answer = sent(scene, request("/freeze", fields, nonsense))
        assert answer is not None
        assert answer.status == 400, nonsense
    scene.attacker["user-container"].await_awake()
    scene.assert_frozen()


def test_another_connections_end_releases_nothing_of_the_victims(scene: Scene) -> None:
    scene.freeze_victim()
    own = scene.token(scene.attacker)
    for _ in range(3):
        with socket.create_connection((LOOPBACK, scene.daemon.port), 20, (ELSEWHERE, 0)) as connection:
            connection.sendall(request("/freeze", f"Token: {own}\r\n") + request("/freeze", "Token: a.b.c\r\n"))
            assert heard(connection) is not None
        scene.attacker["user-container"].await_awake()
    scene.assert_frozen()
    scene.thaw_victim()


# Bytes.


CHUNKED = b"POST /thaw HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_what_is_too_large_or_no_http_gets_its_status(scene: Scene) -> None:
    scene.freeze_victim()
    big = "x" * 1_000_000
    token = f"Token: {scene.victims_token}\r\n"
    for status, data in (
        (431, request("/thaw", f"X: {big}\r\n{token}")),
        (431, request("/thaw", f"{big}: x\r\n{token}")),
        (431, request(f"/thaw?{big}", token)),
        (431, request("/thaw", "X: y\r\n" * 5000 + token)),
        (431, request("/thaw", f"Token: {'a' * 20_000}\r\n")),
        (413, request("/thaw", token, big)),
        (413, b"POST /thaw HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000),
        (413, CHUNKED + b"1000\r\n" + b"x" * 4096 + b"\r\nFFFFFF\r\n" + b"x" * 100_000),
        (431, CHUNKED + b"1;x=" + b"y" * 100_000),
        (400, CHUNKED + b"-1\r\n"),
        (400, b"POST /thaw HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        (400, b"POST /thaw HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        (400, b"POST /thaw HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, b"\0" * 1000),
        (400, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + os.urandom(500)),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"),
        (400, b"SSH-2.0-OpenSSH_9.2\r\n"),
        (400, f"POST /thaw HTTP/1.1\r\n{token}Connection: upgrade\r\nUpgrade: h2c\r\n\r\n".encode()),
        (400, b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n"),
    ):
        answer = sent(scene, data)
        assert answer is not None, data[:100]
        assert answer.status == status, (data[:100], answer)
        assert answer.error
    scene.assert_frozen()
    assert scene.memory() < 80


def test_any_bytes_whatever_neither_move_nor_stop_anything(scene: Scene) -> None:
    scene.freeze_victim()
    pieces = [
        *(b"POST ", b"GET ", b"/thaw", b"/freeze", b"/", b" HTTP/1.1\r\n", b" HTTP/1.0\n", b"\r\n", b"\r\n\r\n"),
        *(b"Token: ", b"a.b.c", b"Content-Length: ", b"5", b"0", b"Transfer-Encoding: chunked", b"Lease: connection"),
        *(b"Connection: close", b"Expect: 100-continue", b"{}", b'{"action": "resume"}', b"\0", b"\xff"),
    ]
    parts = st.lists(st.one_of(st.sampled_from(pieces), st.binary(max_size=20)), max_size=12).map(b"".join)

    @given(parts)
    @examples(150)
    def hurl(data: bytes) -> None:
        with socket.create_connection((LOOPBACK, scene.daemon.port), 20, (ELSEWHERE, 0)) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while part := connection.recv(1 << 16):
                    answer += part
            except ConnectionResetError:
                pass
        statuses = {int(status) for status in ANSWER.findall(answer)}
        assert statuses <= {100, 400, 403, 404, 405, 413, 431}

    hurl()
    scene.assert_frozen()
    scene.thaw_victim()


# Floods.


class Honest:
    """Freezes and thaws its own pod all the time, on one connection as a sidecar; ``thaws`` is how long each took."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.thaws: list[float] = []
        self._token = scene.token(scene.honest)
        self._stop = threading.Event()
        self._trouble: BaseException | None = None
        self._control = Control(scene.daemon.port)
        self._thread = threading.Thread(target=self._run, name="honest pod", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                assert self._control.call("/freeze", self._token).status == 200
                began = time.monotonic()
                assert self._control.call("/thaw", self._token).status == 200
                self.thaws.append(time.monotonic() - began)
                time.sleep(0.01)  # a pod that freezes without end would be an attacker itself
        except BaseException as trouble:
            self._trouble = trouble

    def __enter__(self) -> "Honest":
        assert self._control.call("/thaw", self._token).status == 200
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._control.close()
        assert not self._thread.is_alive()
        if self._trouble is not None:
            raise self._trouble

    def assert_served(self, longest: float = 1.0, usually: float = 0.1) -> None:
        """In seconds. Attacker, daemon and test share a few processors, so it cannot be as quick as in peace."""
        assert len(self.thaws) > 10
        middle, worst = statistics.median(self.thaws), max(self.thaws)
        print(f"{len(self.thaws)} thaws: {middle * 1e3:.1f} ms, at most {worst * 1e3:.1f} ms")
        assert worst < longest
        assert middle < usually


@contextmanager
def attack(kind: str, port: int, seconds: float, tokens: list[str], here: str = ELSEWHERE) -> Iterator[dict[str, int]]:
    """A process that attacks from here to the end of the ``with``, where what it heard is filled in."""
    command = [sys.executable, "-m", "tests.containers.attacker", kind, str(port), here, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write("\n".join(tokens))
            process.stdin.close()
            assert process.stdout.readline() == "begun\n"
            said: dict[str, int] = {}
            yield said
            said |= json.loads(process.stdout.read())
            assert process.wait(30) == 0
        finally:
            process.kill()


FLOODS: dict[str, set[str]] = {
    "nothing_here": {"404"},
    "stolen_name": {"403"},
    "forged": {"403", "503"},
    "own": {"200", "409"},
    "garbage": {"400"},
    "endless": {"431"},
    "connects": {"400"},
}
"""What each kind of flood is to hear; all of them may hear that they are too many."""


@pytest.mark.alone
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_keeps_nobody_else_from_being_served(scene: Scene, kind: str) -> None:
    scene.freeze_victim()
    descriptors = scene.descriptors()
    tokens = [scene.token(scene.attacker)]
    with Honest(scene) as honest:
        with attack(kind, scene.daemon.port, 2.0, tokens) as said:
            pass
        honest.assert_served()
    assert FLOODS[kind] & said.keys()
    assert said.keys() <= FLOODS[kind] | {"429", "ended"}
    until(lambda: scene.connections() <= 1, "the attacker's connections have ended")
    scene.attacker["user-container"].await_awake()
    scene.assert_frozen()
    scene.thaw_victim()
    until(lambda: scene.descriptors() <= descriptors + 20, "and are given back")
    assert scene.memory() < 100


@pytest.mark.alone
def test_forged_tokens_do_not_become_a_flood_of_the_api_server(scene: Scene) -> None:
    newcomer = scene.token(scene.honest)
    with attack("forged", scene.daemon.port, 2.0, [scene.victims_token]):
        time.sleep(0.5)  # let it get going
        began = time.monotonic()
        with scene.daemon.control() as control:
            assert control.call("/thaw", newcomer).status == 200
        took = time.monotonic() - began
    assert took < 1.0, f"one that is unknown and good waited {took:.2f} s"
    assert scene.api_server.reviews < 100, "twenty a second, and a few to begin with"


def test_a_flood_of_the_metrics_port_keeps_nobody_from_being_served(scene: Scene) -> None:
    with Honest(scene) as honest:
        with attack("metrics", scene.daemon.health_port, 2.0, []) as said:
            pass
        honest.assert_served()
    assert said.keys() <= {"200", "429", "ended"}
    assert scene.daemon.ask("/healthz")[0] == 200


def test_thousands_of_connections_leave_room_for_others(scene: Scene) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(3000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, many + 400), hard))
    scene.freeze_victim()
    try:
        with ExitStack() as stack:
            opened: list[socket.socket] = []
            honest = stack.enter_context(Honest(scene))
            for number in range(many):
                address = f"127.0.1.{number % 10}" if number > 1000 else ELSEWHERE
                opened.append(
                    stack.enter_context(socket.create_connection((LOOPBACK, scene.daemon.port), 20, (address, 0)))
                )
            before = len(honest.thaws)
            until(lambda: len(honest.thaws) > before + 20, "the honest pod goes on")
            honest.assert_served()
            refused = sum(is_refused(connection) for connection in opened)
            # Eleven addresses, each with as many as an address may have.
            assert many - refused <= 11 * MOST_UNTRUSTED
            assert refused >= min(many, 1000) - MOST_UNTRUSTED
            # A pod that comes new is let in.
            assert sent(scene, request("/thaw", f"Token: {scene.token(scene.attacker)}\r\n"), "127.0.2.1") is not None
        scene.assert_frozen()
        until(lambda: scene.connections() <= 1, "all have gone", within=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_refused(connection: socket.socket) -> bool:
    """Whether it was told to go: at once, for it would have been heard before the last one was opened."""
    connection.setblocking(False)
    try:
        data = connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    assert b" 429 " in data[:20], data
    return True


def test_the_slow_are_cut_off_and_hold_up_nobody(scene: Scene) -> None:
    """One byte at a time, nothing at all, or no reading of what is answered."""
    scene.freeze_victim()
    own = scene.token(scene.attacker)
    drip = request("/thaw", f"X: {'y' * 4000}\r\nToken: {own}\r\n")
    with ExitStack() as stack:
        honest = stack.enter_context(Honest(scene))

        def connections(number: int, address: str) -> list[socket.socket]:
            made = [stack.enter_context(socket.socket()) for _ in range(number)]
            for connection in made:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # soon full
                connection.bind((address, 0))
                connection.connect((LOOPBACK, scene.daemon.port))
            return made

        drippers, silent, deaf = (
            connections(60, ELSEWHERE),
            connections(40, "127.0.0.67"),
            connections(10, "127.0.0.68"),
        )
        flood = request("/x") * 2000
        alive = {*drippers, *silent, *deaf}
        deadline = time.monotonic() + 25
        at = 0
        while alive and time.monotonic() < deadline:
            at += 1
            alive -= {connection for connection in deaf if has_ended(connection, flood, reads=False)}
            alive -= {connection for connection in drippers if has_ended(connection, drip[at : at + 1])}
            alive -= {connection for connection in silent if has_ended(connection, b"")}
            time.sleep(0.1)
        assert not alive, f"{len(alive)} are still there"
        honest.assert_served()
    scene.assert_frozen()


def has_ended(connection: socket.socket, data: bytes, reads: bool = True) -> bool:
    """Send this, as much of it as goes; whether the daemon has closed the connection."""
    connection.setblocking(False)
    try:
        connection.send(data)
        return reads and not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_random_attacks_at_random_moments(scene: Scene) -> None:
    """All at once, and the victim's own sidecar in between: what it asks for is what is so."""
    dice = random.Random(os.urandom(8))
    tokens = [*wrong_tokens(scene).values(), ""]
    stop = threading.Event()
    statuses: set[int] = set()

    def attack_for_ever() -> None:
        while not stop.is_set():
            token, path = dice.choice(tokens), dice.choice(["/freeze", "/thaw", "/", "/x"])
            answer = sent(scene, request(path, f"Token: {token}\r\n" if token else ""))
            statuses.add(answer.status if answer else 0)

    threads = [threading.Thread(target=attack_for_ever, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            scene.freeze_victim()
            scene.assert_frozen()
            scene.thaw_victim()
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert statuses <= {400, 403, 404, 503}
