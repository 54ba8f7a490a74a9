"""The sidecar as a process, a real daemon, and a real container that serves."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cluster.kubelet import Pod
from tests.support.daemons import Daemon
from tests.support.node import Node
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.sidecars import NONCE, Sidecar
from tests.support.wait import until

BODY = "Here I am.\n"


@contextmanager
def scene(node: Node, daemon: Daemon, folder: Path, **variables: str) -> Iterator[tuple[Pod, Sidecar, Path]]:
    port = free_port()
    command = ("httpd", "-f", "-p", f"{LOOPBACK}:{port}", "-h", "/ticks")
    pod = node.kubelet.pod({"user-container": command}, labels={"serving.knative.dev/revision": "app-00001"})
    (pod["user-container"].folder / "index.html").write_text(BODY)
    token = folder / "token"
    token.write_text(node.token(pod))
    await_port(port)
    told = {
        "DAEMON": f"{LOOPBACK}:{daemon.port}",
        "TOKEN_FILE": str(token),
        "READINESS_PROBE": json.dumps({"httpGet": {"path": "/index.html", "port": port}, "periodSeconds": 0}),
        "LIVENESS_PROBES": json.dumps({"user-container": {"tcpSocket": {"port": port}}}),
        "LOG_LEVEL": "debug",
    }
    with Sidecar(port, **(told | variables)) as sidecar:
        yield pod, sidecar, token


def counted(sidecar: Sidecar, name: str) -> float:
    """The number of this name in its metrics."""
    lines = sidecar.ask("/metrics")[1].splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"freeze_proxy_{name} ")))


def test_it_freezes_and_thaws_and_probes_pass_all_the_time(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as (pod, sidecar, _):
        server = pod["user-container"]
        for _ in range(5):
            server.await_frozen()
            assert sidecar.get("/index.html") == (200, BODY)
        server.await_frozen()
        # Of the five, some may have come before the answer to a freeze, which then is none.
        until(lambda: counted(sidecar, "freezes_total") >= 1, "it has counted a freeze")
        until_then = time.monotonic() + 2
        while time.monotonic() < until_then:
            assert sidecar.ask("/ready") == (200, "ok\n")
            assert sidecar.ask("/live/user-container") == (200, "ok\n")
            assert server.frozen, "a probe thaws it"
        assert counted(sidecar, "requests_total") == counted(sidecar, "wait_seconds_count") == 5
        assert sidecar.end() == 0
        server.await_awake()


def test_the_hook_thaws_and_nothing_is_frozen_after_it(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path, DRAIN_QUIET="300ms") as (pod, sidecar, _):
        pod["user-container"].await_frozen()
        hook = threading.Thread(target=lambda: sidecar.ask(f"/drain/{NONCE}"))
        hook.start()
        pod["user-container"].await_awake()
        assert sidecar.get("/index.html") == (200, BODY)
        hook.join()
        assert not pod["user-container"].frozen
        assert sidecar.end() == 0


def test_a_sidecar_that_is_killed_leaves_nothing_frozen(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as (pod, sidecar, _):
        pod["user-container"].await_frozen()
        sidecar.process.kill()
        pod["user-container"].await_awake()


def test_a_server_that_restarts_while_it_is_frozen_is_seen_and_armed_anew(
    node: Node, daemon: Daemon, tmp_path: Path
) -> None:
    with scene(node, daemon, tmp_path) as (pod, sidecar, _):
        pod["user-container"].await_frozen()
        pod.restart("user-container")
        (pod["user-container"].folder / "index.html").write_text(BODY)
        until(lambda: sidecar.ask("/ready")[0] == 200 and sidecar.said("restarted"), "its restart is seen")
        pod["user-container"].await_frozen()
        assert sidecar.get("/index.html") == (200, BODY)


def await_more(answers: list[tuple[int, str]], than: int) -> None:
    until(lambda: len(answers) > than, "it goes on")


def test_daemons_are_killed_and_tokens_rotated_under_load(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path, GRACE="5ms") as (pod, sidecar, token):
        answers: list[tuple[int, str]] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                answers.append(sidecar.get("/index.html", timeout=20))
                over.wait(0.02)

        client = threading.Thread(target=ask)
        client.start()
        for _ in range(3):
            before = len(answers)
            daemon.end(signal.SIGKILL)
            daemon.start()
            token.write_text(node.token(pod))
            await_more(answers, before + 10)
        over.set()
        client.join()
        assert set(answers) == {(200, BODY)}
        pod["user-container"].await_frozen()
        said = [line["message"] for line in sidecar.log if line["level"] == "warning"]
        assert len(said) <= 12, said  # a few for each daemon, whatever is met first; not one a try
        assert sidecar.end() == 0


def test_its_numbers_are_in_the_daemons_metrics_until_it_is_gone(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    with scene(node, daemon, tmp_path) as (pod, sidecar, token):
        labels = f'{{namespace="default",pod="{pod.name}",revision="app-00001"}}'

        def told(name: str) -> float:
            return daemon.metric(f"freeze_proxy_pod_{name}{labels}")

        for _ in range(3):
            pod["user-container"].await_frozen()
            assert sidecar.get("/index.html") == (200, BODY)
        pod["user-container"].await_frozen()
        until(lambda: told("requests_total") == 3, "the daemon knows of the requests", within=20, every=0.1)
        until(lambda: told("freezes_total") == counted(sidecar, "freezes_total"), "and of the freezes", 20, 0.1)
        assert told("wait_seconds_count") == 3
        assert 0 < told("wait_seconds_sum") < 3
        assert 0 < told("frozen_seconds_total") < 60
        assert told("start_time_seconds") == counted(sidecar, "start_time_seconds")
        with daemon.control() as control:
            assert control.call("/numbers", token.read_text(), body={"requests": 9}).status == 403
            assert told("requests_total") == 3, "they are taken from who has asked for something before"
        assert sidecar.end() == 0
        until(lambda: "freeze_proxy_pod_requests_total{" not in daemon.ask("/metrics")[1], "it is gone", 20, 0.1)


def test_hostile_numbers_are_refused_and_are_of_nobody_else(node: Node, daemon: Daemon) -> None:
    honest, hostile = node.pod(), node.pod()
    with daemon.control() as one, daemon.control() as other:
        for control, (_, token) in ((one, honest), (other, hostile)):
            assert control.call("/thaw", token).status == 200
        zero = {"started": 1, "in_flight_seconds": 0, "frozen_seconds": 0, "waited_seconds": 0, "waits": [0] * 15}
        zero |= dict.fromkeys(("requests", "freezes", "thaws", "failed_freezes", "failed_thaws", "refused"), 1)
        assert one.call("/numbers", honest[1], body=zero).status == 200
        for body in (b"x" * 16000, b"[" * 16000, {}, zero | {"requests": -1}, zero | {"waits": [1e308] * 15}, None):
            assert other.call("/numbers", hostile[1], body=body).status == 400
        named = zero | {"namespace": "default", "pod": honest[0].name, "requests": 666}
        assert other.call("/numbers", honest[1], body=named).status == 403
        assert other.call("/numbers", hostile[1], body=named).status == 200
        text = daemon.ask("/metrics")[1]
        for (pod, _), count in ((honest, 1.0), (hostile, 666.0)):
            line = f'freeze_proxy_pod_requests_total{{namespace="default",pod="{pod.name}",revision=""}} {count}'
            assert line in text.splitlines()
