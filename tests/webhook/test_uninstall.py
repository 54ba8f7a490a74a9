"""What is left of freeze-proxy in a cluster, against a stand-in for the API server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest

from freeze_proxy.cli import main
from freeze_proxy.webhook.uninstall import Seen, left
from tests.support.api_server import ApiServer
from tests.support.webhooks import install, manifest

Json = dict[str, Any]
RBAC = "/apis/rbac.authorization.k8s.io/v1"
KINDS = {"clusterroles": "ClusterRole", "clusterrolebindings": "ClusterRoleBinding"}
APPS = "/apis/apps/v1/namespaces/freeze-proxy"


def installed(server: ApiServer) -> None:
    """As ``kubectl apply -k`` leaves it, with pods in two namespaces."""
    install(server)
    server.rules = None
    server.put("/api/v1/namespaces/freeze-proxy", {"metadata": {"name": "freeze-proxy"}, "status": {"phase": "Active"}})
    server.put(f"{APPS}/deployments/freeze-proxy-webhook", manifest("400-webhook.yaml", "Deployment")[0])
    server.put(f"{APPS}/daemonsets/freeze-proxy-daemon", manifest("400-daemon.yaml", "DaemonSet")[0])
    for kind in ("clusterroles", "clusterrolebindings"):
        for name in ("freeze-proxy-webhook", "freeze-proxy-daemon"):
            (one,) = manifest(f"200-rbac-{name.rpartition('-')[2]}.yaml", KINDS[kind])
            server.put(f"{RBAC}/{kind}/{name}", one)
    for namespace, name, label in (
        ("shop", "a", "true"),
        ("shop", "b", "true"),
        ("blog", "c", "true"),
        ("blog", "d", ""),
    ):
        labels = {"freeze.extensions.knative.dev/injected": label} if label else {}
        pod = {"metadata": {"name": name, "namespace": namespace, "labels": labels}}
        server.put(f"/api/v1/namespaces/{namespace}/pods/{name}", pod)


def checked(server: ApiServer, *options: str) -> click.testing.Result:
    command = ["uninstall", "--check", "--kubeconfig", str(server.kubeconfig()), *options]
    return click.testing.CliRunner().invoke(main, command)


def test_all_that_is_there_is_told_in_the_order_in_which_it_should_go(tmp_path: Path) -> None:
    with ApiServer(tmp_path) as server:
        installed(server)
        done = checked(server, "--json")
        table = checked(server)
    assert (done.exit_code, table.exit_code) == (1, 1)
    told = json.loads(done.stdout)
    assert told["clean"] is False
    assert [each["what"] for each in told["left"]] == [
        "MutatingWebhookConfiguration freeze-proxy",
        "1 pod with the sidecar in blog",
        "2 pods with the sidecar in shop",
        "Deployment freeze-proxy-webhook",
        "DaemonSet freeze-proxy-daemon",
        "Namespace freeze-proxy",
        "clusterrolebinding freeze-proxy-daemon",
        "clusterrolebinding freeze-proxy-webhook",
        "clusterrole freeze-proxy-daemon",
        "clusterrole freeze-proxy-webhook",
    ]
    for each in told["left"]:
        assert f"{each['what']}: {each['does']}\n    {each['todo']}\n" in table.stdout


def test_pods_that_are_left_go_on_working(tmp_path: Path) -> None:
    with ApiServer(tmp_path) as server:
        installed(server)
        for path in list(server.objects):
            if "/pods/" not in path:
                del server.objects[path]
        done = checked(server)
    assert done.exit_code == 1
    assert "only relays: without a daemon nothing is frozen" in done.stdout
    assert "kubectl delete pod -n shop -l freeze.extensions.knative.dev/injected=true" in done.stdout
    assert "once the configuration is gone" not in done.stdout


def test_nothing_is_left(tmp_path: Path) -> None:
    with ApiServer(tmp_path) as server:
        done = checked(server)
        assert (done.exit_code, done.stdout) == (0, "Nothing of freeze-proxy is left in this cluster.\n")
        assert json.loads(checked(server, "--json").stdout) == {"clean": True, "left": []}


def test_an_empty_cluster_has_nothing_left_and_much_is_told_shortly() -> None:
    assert left(Seen(), "freeze-proxy") == []
    many = left(Seen(pods={f"n{i:02}": 1 for i in range(30)}), "freeze-proxy")
    assert len(many) == 21
    assert many[-1].what == "pods in 10 more namespaces"
    (going,) = left(Seen(namespace="Terminating"), "freeze-proxy")
    assert (going.does, going.todo) == ("is going", "wait")


@pytest.mark.parametrize("fault", ["forbidden", "html", "overloaded"])
def test_what_it_may_not_see_is_a_sentence(tmp_path: Path, fault: str) -> None:
    with ApiServer(tmp_path) as server:
        server.become(fault)
        done = checked(server)
    assert done.exit_code == 125
    assert "could not give the Namespace freeze-proxy" in done.stderr
    assert "Traceback" not in done.output
    assert done.stderr.count("\n") == 1


def test_who_may_not_list_pods_is_told_which_right_is_missing(tmp_path: Path) -> None:
    with ApiServer(tmp_path) as server:
        installed(server)
        server.rules = [{"apiGroups": ["", "apps", "rbac.authorization.k8s.io", "admissionregistration.k8s.io"],
                         "resources": ["namespaces", "deployments", "daemonsets", "clusterroles", "clusterrolebindings",
                                       "mutatingwebhookconfigurations"], "verbs": ["get"]}]  # fmt: skip
        done = checked(server)
    assert done.exit_code == 125
    assert "permission to list pods in all namespaces" in done.stderr


def test_without_check_nothing_is_done() -> None:
    done = click.testing.CliRunner().invoke(main, ["uninstall"])
    assert done.exit_code == 2
    assert "with --check it tells" in done.output


def test_without_a_cluster_there_is_a_sentence(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin"}
    command = [sys.executable, "-m", "freeze_proxy", "uninstall", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 125
    assert "name a kubeconfig with --kubeconfig" in done.stderr
