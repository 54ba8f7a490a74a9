"""A pod's life with the sidecar in it: started in any order, restarted, deleted; daemons killed and tokens rotated."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.knative import KnativePod, Often, probed, specified
from tests.support.pods import PORT, QUEUE_PROXY, SERVER, SIDECAR, Rig
from tests.support.wait import until

READY = {"httpGet": {"port": PORT, "host": "127.0.0.1", "path": "/hello"}, "periodSeconds": 0}
REVISION = "serving.knative.dev/revision"
ORDERS = list(itertools.permutations((SERVER, QUEUE_PROXY, SIDECAR)))


def scene(rig: Rig, folder: Path, late: bool = False, drain: float = 0.2, delay: float = 0.0) -> KnativePod:
    servers = {SERVER: probed("http", folder, delay=delay)}
    return KnativePod(rig, specified(READY), servers, {"GRACE": "20ms", "LOG_LEVEL": "info"}, late, drain)


def asks(pod: KnativePod, path: str = "/hello") -> Callable[[], str]:
    """A request through queue-proxy, and why it was not answered as it should be."""

    def ask() -> str:
        status, text = pod.get(path)
        return "" if (status, text) == (200, f"{path}\n") else f"{status} {text}"

    return ask


def await_freezing(pod: KnativePod) -> None:
    pod.await_frozen()
    assert pod.get("/hello") == (200, "/hello\n")
    pod.await_frozen()


@pytest.mark.parametrize("order", ORDERS, ids=["-".join(order) for order in ORDERS])
def test_started_in_any_order(rig: Rig, tmp_path: Path, order: tuple[str, ...]) -> None:
    """The server takes its time, and the token comes last of all: until then it serves, and is not frozen."""
    with scene(rig, tmp_path, late=True, delay=0.4) as pod:
        for name in order:
            if name == SIDECAR:
                pod.start()
            else:
                pod.pod.start(name, pod.made[name])
        server = pod.pod[SERVER]
        until(lambda: "serving" in pod.pod[QUEUE_PROXY].printed and pod.ask("/")[0] == 200, "both serve", 20)
        while pod.ready() != "":
            assert pod.ask("/ready")[0] in (200, 503)
            assert server.alive
        assert pod.get("/hello") == (200, "/hello\n"), "ready is ready"
        assert not pod.is_frozen()
        pod.rotate()
        await_freezing(pod)


def test_a_sidecar_that_is_killed_leaves_its_server_awake_and_its_successor_goes_on(rig: Rig, tmp_path: Path) -> None:
    with scene(rig, tmp_path) as pod:
        pod.await_frozen()
        pod.sidecar.kill()
        pod.await_awake()
        pod.sidecar.await_exit()
        pod.start()
        until(lambda: pod.ready() == "", "it is ready again")
        await_freezing(pod)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_server_that_crashes_is_not_ready_and_armed_anew_when_it_is_back(
    rig: Rig, tmp_path: Path, frozen: bool
) -> None:
    with scene(rig, tmp_path) as pod:
        pod.await_frozen()
        if not frozen:
            assert pod.get("/hello")[0] == 200
        pod.server.kill()
        until(lambda: pod.ready() != "", "it is not ready")
        pod.server.await_exit()
        pod.pod.restart(SERVER)
        until(lambda: pod.ready() == "", "it is ready again")
        assert pod.get("/hello") == (200, "/hello\n")
        await_freezing(pod)


@pytest.mark.parametrize("native", [True, False], ids=["native sidecar", "plain container"])
def test_deleted_while_frozen_it_refuses_no_request_and_takes_no_longer(rig: Rig, tmp_path: Path, native: bool) -> None:
    """queue-proxy goes on sending after SIGTERM. Plain containers get theirs side by side, native sidecars the last."""
    drain = 1.0
    with scene(rig, tmp_path, drain=drain) as pod:
        pod.await_frozen()
        hooks: list[tuple[int, str]] = []
        with Often({str(number): asks(pod) for number in range(4)}, 0.01) as often:
            until(lambda: min(often.times.values()) > 5, "there is load")

            def end(name: str) -> None:
                if name != QUEUE_PROXY:  # which has no hook
                    hooks.append(pod.hook(name))
                if pod.pod[name].alive:
                    pod.pod[name].kill(signal.SIGTERM)

            began = time.monotonic()
            names = [QUEUE_PROXY, SERVER] if native else [QUEUE_PROXY, SERVER, SIDECAR]
            threads = [threading.Thread(target=end, args=(name,)) for name in names]
            for thread in threads:
                thread.start()
            time.sleep(drain * 0.8)  # for so long queue-proxy serves
        assert often.failures == [], often.failures[:5]
        assert sum(often.times.values()) > 50
        for thread in threads:
            thread.join(20)
        pod.server.await_exit()
        if native:
            end(SIDECAR)
        pod.sidecar.await_exit()
        assert time.monotonic() - began < drain + 2
        assert {status for status, _ in hooks} == {200}
        assert pod.sidecar.status().status.exit_code == 0
        pod._report = {"ended": True}


def test_daemons_are_killed_and_tokens_rotated_under_load(rig: Rig, tmp_path: Path) -> None:
    daemon = rig.daemon
    with scene(rig, tmp_path) as pod:
        # Each asks seldom enough for the server to be frozen in between.
        clients = {f"client {number}": asks(pod, f"/{number}") for number in range(3)}
        with Often(clients, 0.15) as often:

            def go_on() -> None:
                before = dict(often.times)
                until(lambda: all(often.times[name] > before[name] + 3 for name in before), "it goes on", 20)

            for whom in ("supervisor", "daemon", "both"):
                go_on()
                if whom == "both":
                    daemon.kill_both()
                elif whom == "daemon":
                    os.kill(daemon.pid, signal.SIGKILL)
                    assert daemon.process is not None
                    daemon.process.wait(20)
                else:
                    daemon.end(signal.SIGKILL)
                go_on()
                daemon.start()
                pod.rotate()
            go_on()
        assert often.failures == [], often.failures[:5]
        await_freezing(pod)
        assert pod.counted("refused_total") == 0
        warnings = [line["message"] for line in pod.log() if line["level"] == "warning"]
        assert 1 <= len(warnings) <= 12, warnings  # a few for each of three daemons; not one a try
        labels = f'{{namespace="default",pod="{pod.pod.name}",revision="{pod.spec["metadata"]["labels"][REVISION]}"}}'
        requests = pod.counted("requests_total")
        until(
            lambda: daemon.metric(f"freeze_proxy_pod_requests_total{labels}") == requests,
            "one scrape of the daemon tells the pod's numbers", 20, 0.2,
        )  # fmt: skip


def test_a_token_that_has_expired_is_replaced_under_load(rig: Rig, tmp_path: Path) -> None:
    """Each lives for two seconds, and the second is not replaced in time."""
    with scene(rig, tmp_path) as pod:
        with Often({"client": asks(pod)}, 0.04) as often:
            for late in (False, True):
                token = rig.node.api_server.token(pod.pod.uid, pod.pod.name, pod.pod.namespace, "this-node", lifetime=2)
                pod.put(token)
                time.sleep(2.5 if late else 1.0)  # that it expires is the point
            pod.rotate()
        assert often.failures == [], often.failures[:5]
        await_freezing(pod)


def test_what_the_sidecar_says_of_itself_is_in_its_log_and_no_token_is(rig: Rig, tmp_path: Path) -> None:
    with scene(rig, tmp_path) as pod:
        pod.await_frozen()
        token = pod.token.read_text()
        text = json.dumps(pod.log()) + pod.ask("/metrics")[1]
        assert not [part for part in token.split(".") if part in text]
