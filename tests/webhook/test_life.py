"""The webhook's life: how it starts, when it is ready, how it leaves, and what it says when it cannot start."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.api_server import ApiServer
from tests.support.ports import free_port
from tests.support.wait import until
from tests.support.webhooks import PODS, Webhook, ask, client, get, review, running, trusted

POD: dict[str, Any] = json.loads((PODS / "1-plain.json").read_text())


def test_readiness(api_server: ApiServer, tmp_path: Path) -> None:
    health = free_port()
    api_server.vanish()
    with Webhook(api_server.kubeconfig(), "--health-listen", f"127.0.0.1:{health}", "--linger", "2s") as webhook:
        until(lambda: webhook.found("the certificate cannot be looked after"), "it has tried", 20)
        status, told = get(health, "/readyz")
        assert status == 503
        assert "could not give the MutatingWebhookConfiguration" in told
        assert get(health, "/healthz")[0] == 200
        assert get(health, "/else")[0] == 404
        api_server.listen()
        until(lambda: get(health, "/readyz")[0] == 200, "it is ready", 20)
        with client(trusted(api_server)) as http:
            webhook.process.terminate()
            until(lambda: get(health, "/readyz")[0] == 503, "it is not ready any more")
            assert "patch" in ask(http, webhook.port, review(POD))  # for those who have not heard of it
        assert webhook.process.wait(20) == 0


def test_no_review_is_lost_when_it_leaves(api_server: ApiServer) -> None:
    with running(api_server, "--linger", "1s") as webhook:
        authorities = trusted(api_server)
        results: list[str] = []

        def load() -> None:
            with client(authorities) as http:
                while webhook.process.poll() is None:
                    try:
                        results.append("patched" if "patch" in ask(http, webhook.port, review(POD)) else "not")
                    except httpx2.ConnectError:
                        return  # it has left
                    except httpx2.RemoteProtocolError as error:
                        # An idle connection was closed as the next request came: clients ask again.
                        results.append(f"closed: {error}")

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(results) > 50, "there is load")
        before = len(results)
        assert webhook.end() == 0
        for thread in threads:
            thread.join(20)
        assert len(results) > before
        assert results.count("patched") >= len(results) - len(threads)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--native-sidecars", "always"), 125, "This does not run in a pod"),
        (("--kubeconfig", "/nowhere"), 125, "/nowhere cannot be used"),
        (("--listen", "nonsense"), 2, "nonsense"),
        (("--certificate-lifetime", "0s"), 2, "no time at all"),
    ],
)
def test_wrong_settings_are_sentences(options: tuple[str, ...], code: int, says: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    command = [sys.executable, "-m", "freeze_proxy", "webhook", "--image", "x", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use_is_a_sentence(api_server: ApiServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Webhook(api_server.kubeconfig(), "--listen", f"127.0.0.1:{port}") as webhook:
            assert webhook.process.wait(20) == 125
            webhook._reader.join(10)
            assert f"127.0.0.1:{port} cannot be listened on: Address already in use. Choose another" in webhook.said
            assert "Traceback" not in webhook.said


def test_the_image_must_be_said() -> None:
    done = subprocess.run([sys.executable, "-m", "freeze_proxy", "webhook"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--image" in done.stderr
