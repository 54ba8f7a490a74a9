"""Webhooks as processes of their own, before a stand-in for the API server, and clients that trust what it does."""

import base64
import contextlib
import copy
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import yaml

from tests.support.api_server import ApiServer
from tests.support.wait import until

Json = dict[str, Any]

CONFIG = Path(__file__).resolve().parents[2] / "config" / "base"
SECRET = "/api/v1/namespaces/freeze-proxy/secrets/freeze-proxy-webhook-certs"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/freeze-proxy"
HOST = "freeze-proxy-webhook.freeze-proxy.svc"
PODS = Path(__file__).resolve().parents[1] / "webhook" / "pods"


def manifest(name: str, kind: str) -> list[Json]:
    """The objects of this kind in a file of ``config/base``."""
    return [one for one in yaml.safe_load_all((CONFIG / name).read_text()) if one["kind"] == kind]


def install(server: ApiServer) -> None:
    """Does to the stand-in what ``kubectl apply`` would: the objects, and the rights, which are all the webhook has."""
    server.put(SECRET, copy.deepcopy(manifest("400-webhook.yaml", "Secret")[0]))
    (configuration,) = manifest("300-webhook-configuration.yaml", "MutatingWebhookConfiguration")
    server.put(CONFIGURATION, copy.deepcopy(configuration))
    roles = manifest("200-rbac-webhook.yaml", "Role") + manifest("200-rbac-webhook.yaml", "ClusterRole")
    server.rules = [rule for role in roles for rule in role["rules"]]


def trusted(server: ApiServer) -> bytes:
    """The ``caBundle`` (PEM), which must be the same for all of the configuration's webhooks."""
    bundles = {one["clientConfig"].get("caBundle", "") for one in server.objects[CONFIGURATION]["webhooks"]}
    assert len(bundles) == 1
    return base64.b64decode(bundles.pop())


def served(port: int) -> bytes:
    """The certificate (PEM) that is served there, whoever signed it."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5).encode()


class Webhook:
    """A ``freeze-proxy webhook`` on free ports. ``lines`` are those of its log."""

    def __init__(self, kubeconfig: Path | None, *options: str, image: str = "sidecar:1") -> None:
        where = ("--kubeconfig", str(kubeconfig)) if kubeconfig else ()
        command = [
            *(sys.executable, "-m", "freeze_proxy", "webhook", "--image", image, *where),
            *("--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--linger", "0s", *options),
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.lines: list[Json] = []
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said += line
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self._reader.join(10)
        return code

    def found(self, event: str) -> list[Json]:
        return [line for line in self.lines if line["event"] == event]

    def _place(self, name: str) -> int:
        (line,) = until(self._started, "the webhook starts", 20)
        return int(line[name].rpartition(":")[2])

    def _started(self) -> list[Json]:
        assert self.process.poll() is None, self.said
        return self.found("the webhook has started")

    @property
    def port(self) -> int:
        return self._place("listen")

    @property
    def health(self) -> int:
        return self._place("health")


@contextlib.contextmanager
def running(server: ApiServer, *options: str) -> Iterator[Webhook]:
    """A webhook that has started."""
    with Webhook(server.kubeconfig(), *options) as webhook:
        assert webhook.port
        yield webhook


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text of what is there on the health port."""
    answer = httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10)
    return answer.status_code, answer.text


def metric(port: int, name: str) -> float:
    """The value of the one sample that begins so."""
    (value,) = [float(line.split()[-1]) for line in get(port, "/metrics")[1].splitlines() if line.startswith(name)]
    return value


def client(authorities: bytes, **more: Any) -> httpx2.Client:
    """A client like the API server: it trusts these authorities, and no others."""
    context = ssl.create_default_context(cadata=authorities.decode())
    return httpx2.Client(verify=context, timeout=10, trust_env=False, **more)


def review(pod: Json, namespace: str = "default", uid: str = "705ab4f5-6393-11e8-b7cc-42010a800002") -> Json:
    """An AdmissionReview as the API server sends it, dated fields and all."""
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    }


def ask(http: httpx2.Client, port: int, content: Json) -> Json:
    """The response to a review, sent as the API server sends it: to the Service's name, with its time-out."""
    answer = http.post(
        f"https://127.0.0.1:{port}/mutate?timeout=3s",
        json=content,
        headers={"Host": HOST},
        extensions={"sni_hostname": HOST},
    )
    assert answer.status_code == 200, answer.text
    told: Json = answer.json()
    assert told["apiVersion"] == "admission.k8s.io/v1"
    assert told["kind"] == "AdmissionReview"
    response: Json = told["response"]
    assert response["uid"] == content["request"]["uid"]
    return response


def patch_of(response: Json) -> list[Json]:
    """The JSON patch in it."""
    assert response["allowed"]
    assert response["patchType"] == "JSONPatch"
    patch: list[Json] = json.loads(base64.b64decode(response["patch"]))
    return patch
