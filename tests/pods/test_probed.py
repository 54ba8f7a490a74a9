"""The probe table of Knative: whoever asks a pod how it is, asks while it stands still, and nothing comes of it.

All kinds of probes side by side, each in a pod of its own, as Serving and the webhook write it. In a soak for the 90 s
in which each of them would have failed or wedged a pod without a sidecar; otherwise for less, and more often.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import expired
from tests.support.knative import HELPER, HELPER_PORT, KnativePod, Often, probed, specified
from tests.support.pods import PORT, SERVER, Rig
from tests.support.wait import until

SOAK = os.environ.get("FREEZE_PROXY_SOAK") == "yes"
SPAN = 90.0 if SOAK else 8.0
EVERY = 1.0 if SOAK else 0.25
"""Seconds between two probes of a kind, each period and time-out being one second."""

FIELDS = [{"name": "X-Probe", "value": "yes"}]
HTTP = {"httpGet": {"port": PORT, "host": "127.0.0.1", "path": "/ready", "httpHeaders": FIELDS}}
LIVE = {"httpGet": {"port": "user-port", "path": "/alive"}}
TCP = {"tcpSocket": {"port": PORT, "host": "127.0.0.1"}}
GRPC = {"grpc": {"port": PORT}}
HTTPS = {"httpGet": {"port": PORT, "host": "127.0.0.1", "path": "/x", "scheme": "HTTPS"}}
HELPERS = {"httpGet": {"port": HELPER_PORT, "host": "127.0.0.1", "path": "/helper"}}
EXEC = {"exec": {"command": ["/usr/bin/true"]}}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "http": ("http", {"readiness": HTTP, "liveness": LIVE}),
    "http every 50 ms": ("http", {"readiness": HTTP | {"periodSeconds": 0}}),
    "http with startup": ("http", {"readiness": HTTP, "liveness": LIVE, "startup": LIVE}),
    "tcp": ("tcp", {"readiness": TCP, "liveness": {"tcpSocket": {"port": PORT}}}),
    "grpc": ("grpc", {"readiness": GRPC, "liveness": GRPC, "startup": GRPC}),
    "https": ("https", {"readiness": HTTPS, "liveness": {"httpGet": {"port": PORT, "path": "/", "scheme": "HTTPS"}}}),
    "array": ("http", {"readiness": [HTTP, HELPERS]}),
    "exec": ("http", {"own_readiness": EXEC, "liveness": EXEC, "startup": EXEC}),
}


def scene(rig: Rig, kind: str, folder: Path) -> KnativePod:
    what, probes = KINDS[kind]
    servers = {SERVER: probed(what, folder)}
    if kind == "array":
        servers[HELPER] = probed("http", folder, HELPER_PORT)
    return KnativePod(rig, specified(**probes), servers, {"LOG_LEVEL": "info"})


def begin(pod: KnativePod, kind: str) -> None:
    """As a kubelet: the startup probe first, then the others; and the first request, which some wait for."""
    (container,) = [each for each in pod.spec["spec"]["containers"] if each["name"] == SERVER]
    if (startup := container.get("startupProbe")) is not None:
        if "httpGet" in startup and startup["httpGet"]["port"] == "user-port":
            startup = {"httpGet": startup["httpGet"] | {"port": PORT}}
        until(lambda: pod.probe(SERVER, startup) == "", f"{kind}: the startup probe passes", 20, 0.1)
    until(lambda: pod.ready() == "", f"{kind}: the pod is ready", 20, 0.05)
    answer(pod, kind)


def answer(pod: KnativePod, kind: str) -> None:
    if kind == "grpc":
        assert pod.grpc_call() == b"hello"
    elif kind == "https":
        return  # its requests are encrypted, and go by themselves
    else:
        assert pod.get("/hello") == (200, "/hello\n")


@pytest.mark.timeout(300)
def test_never_a_failure_never_a_thaw_never_a_wedge(rig: Rig, tmp_path: Path) -> None:
    expired(tmp_path / "server.pem")
    with ExitStack() as stack:
        pods = {kind: scene(rig, kind, tmp_path) for kind in KINDS}
        with ThreadPoolExecutor(3) as threads:
            for pod in threads.map(KnativePod.__enter__, pods.values()):
                stack.push(pod.__exit__)
            list(threads.map(begin, pods.values(), pods))
        for pod in pods.values():
            pod.await_frozen()
            until(lambda pod=pod: pod.counted("freezes_total") >= 1, "it has counted that")  # type: ignore[misc]
        thaws = {kind: pod.counted("thaws_total") for kind, pod in pods.items()}
        used = {kind: pod.cpu_seconds() for kind, pod in pods.items()}
        touchers = {f"{kind}: {name}": call for kind, pod in pods.items() for name, call in pod.touchers().items()}
        assert len(touchers) >= 2 * len(KINDS)
        awake = []
        with Often(touchers, EVERY) as often:
            over = time.monotonic() + SPAN
            while time.monotonic() < over:
                awake += [kind for kind, pod in pods.items() if not pod.is_frozen()]
                time.sleep(0.02)
        assert often.failures == []
        assert awake == []
        assert {kind: pod.counted("thaws_total") for kind, pod in pods.items()} == thaws
        assert {kind: pod.cpu_seconds() for kind, pod in pods.items()} == used
        assert min(often.times.values()) > SPAN / EVERY / 4, often.times
        for kind, pod in pods.items():
            began = time.monotonic()
            answer(pod, kind)
            assert time.monotonic() - began < 2.0, kind
            assert pod.ready() == ""


def test_a_server_that_falls_ill_is_not_ready_and_one_that_recovers_is(rig: Rig, tmp_path: Path) -> None:
    """What is answered about it is true whenever it is awake."""
    spec = specified({"httpGet": {"port": PORT, "host": "127.0.0.1", "path": "/hello"}}, LIVE)
    with KnativePod(rig, spec, {SERVER: probed("http", tmp_path)}) as pod:
        pod.await_frozen()
        assert pod.ready() == ""
        pod.server.kill()
        until(lambda: pod.ready() != "", "it is gone, and the pod is not ready")
        pod.server.await_exit()
        pod.pod.restart(SERVER)
        until(lambda: pod.ready() == "", "it is there again, and the pod is ready")
        pod.await_frozen()
        assert pod.get("/hello") == (200, "/hello\n")
