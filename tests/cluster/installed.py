"""freeze-proxy on the cluster: install it, ask it, take it away."""

import json
import os
import urllib.request
from pathlib import Path

from tests.cluster.api import Api, Json, await_all, condition
from tests.cluster.images import ROOT
from tests.cluster.inside import NODE_ADDRESS

NAMESPACE = "freeze-proxy"
CONFIG = ROOT / "config"
DAEMON = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/freeze-proxy-daemon"
WEBHOOK = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/freeze-proxy-webhook"
CONTROL = f"http://{NODE_ADDRESS}:9696"


def configuration(api: Api) -> Json:
    """What tells the API server of the webhook."""
    return api.get("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/freeze-proxy")


def _daemon_is_ready(api: Api) -> bool:
    found = api.get(DAEMON)
    status = found.get("status", {})
    current: bool = status.get("observedGeneration") == found["metadata"]["generation"]
    return current and 0 < status["desiredNumberScheduled"] == status.get("numberReady")


def _webhook_is_ready(api: Api) -> bool:
    found = api.get(WEBHOOK)
    return condition(found, "Available") == "True" and found["status"].get("readyReplicas") == found["spec"]["replicas"]


def ready(api: Api) -> dict[str, bool]:
    """Which of its parts are."""
    return {
        "daemon": _daemon_is_ready(api),
        "webhook": _webhook_is_ready(api),
        "caBundle": all("caBundle" in each["clientConfig"] for each in configuration(api)["webhooks"]),
    }


def overlay(*components: str) -> Path:
    """A user's own, as docs/ambient.md has it: that for containerd with these components."""
    folder = Path(os.environ["CLUSTER_FOLDER"], "-".join(("overlay", *components)))
    folder.mkdir(exist_ok=True)
    content = {
        "resources": [os.path.relpath(CONFIG / "overlays" / "containerd", folder)],
        "components": [os.path.relpath(CONFIG / "components" / each, folder) for each in components],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(content))
    return folder


def install(api: Api) -> None:
    """As a user does, who wants sidecars and ambient pods; all of it is ready when this returns."""
    api.kubectl("apply", "-k", overlay("ambient"))
    await_ready(api)


def install_daemon_alone(api: Api) -> None:
    """As a user does who wants no sidecars; it is ready when this returns."""
    api.kubectl("apply", "-k", overlay("ambient", "daemon-only"))
    await_all("the daemon is ready", lambda: {"daemon": _daemon_is_ready(api)}, 60)


def await_ready(api: Api, within: float = 60) -> None:
    """Return when all of it is ready."""
    await_all("freeze-proxy is ready", lambda: ready(api), within)


def daemons_pod(api: Api) -> Json:
    """The one that runs."""
    label = "labelSelector=app.kubernetes.io/name=freeze-proxy-daemon"
    return api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?{label}")["items"][0]


def metrics() -> str:
    """What the daemon tells Prometheus."""
    with urllib.request.urlopen(f"http://{NODE_ADDRESS}:9697/metrics", timeout=5) as answer:
        return str(answer.read().decode())
