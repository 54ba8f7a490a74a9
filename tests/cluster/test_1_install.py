"""Installed as docs/install.md tells a user to, with images made here."""

import base64
from collections.abc import Callable

from tests.cluster.api import Api, Json
from tests.cluster.components import NODE
from tests.cluster.installed import NAMESPACE, configuration, install

_CERTIFICATES = f"/api/v1/namespaces/{NAMESPACE}/secrets/freeze-proxy-webhook-certs"


def _pods(api: Api) -> list[Json]:
    found: list[Json] = api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    return found


def test_a_stock_service_is_ready(api: Api, stock: None) -> None:
    """Knative itself works here; these services have no sidecar, and are what ours are compared with."""


def test_it_is_installed(api: Api, stock: None, say: Callable[[str], None]) -> None:
    say("Installing freeze-proxy: kubectl apply -k config/overlays/containerd.")
    install(api)
    say("freeze-proxy is ready.")
    assert {pod["spec"]["nodeName"] for pod in _pods(api)} == {NODE}
    names = sorted(pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in _pods(api))
    assert names == ["freeze-proxy-daemon", "freeze-proxy-webhook", "freeze-proxy-webhook"]
    restarts = {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in _pods(api)}
    assert not any(restarts.values()), restarts


def test_its_certificates_are_in_place(api: Api) -> None:
    authority = base64.b64decode(api.get(_CERTIFICATES)["data"]["ca.crt"])
    for webhook in configuration(api)["webhooks"]:
        assert base64.b64decode(webhook["clientConfig"]["caBundle"]) == authority, webhook["name"]


def test_applying_it_again_changes_nothing(api: Api) -> None:
    before = configuration(api), api.get(_CERTIFICATES)["data"]
    install(api)
    assert (configuration(api), api.get(_CERTIFICATES)["data"]) == before


def test_the_doctor_finds_the_node_well(api: Api) -> None:
    """As docs/install.md has it."""
    program = ("python3", "-I", "-S", "-OO", "/opt/freeze-proxy/__main__.pyc", "doctor")
    free = ("--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0")
    said = api.kubectl("exec", "-n", NAMESPACE, "daemonset/freeze-proxy-daemon", "--", *program, *free)
    assert "The daemon will work here." in said, said


def test_the_webhook_says_how_it_is(api: Api) -> None:
    """As docs/troubleshooting.md has it."""
    label = "app.kubernetes.io/name"
    webhooks = [pod for pod in _pods(api) if pod["metadata"]["labels"][label] == "freeze-proxy-webhook"]
    for pod in webhooks:
        said = api.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:9697/proxy/readyz"
        )
        assert '"status": "ok"' in said
