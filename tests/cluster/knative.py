"""Knative Serving from the manifests of its own module, and what one sees of a Knative Service."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.api import Api, Json, await_all, condition, ready
from tests.cluster.images import PYTHON, REGISTRY, ROOT, image
from tests.support.wait import until

SYSTEM = "knative-serving"
SERVING = "/apis/serving.knative.dev/v1/namespaces/default"
_INGRESS_CLASS = "test.ingress.networking.knative.dev"
_INGRESSES = "/apis/networking.internal.knative.dev/v1alpha1"
_KO = "ko://knative.dev/serving/cmd/"
_AUTOSCALER_ADDRESS = "10.96.200.1"
_DEPLOYMENTS = ("activator", "autoscaler", "controller", "webhook")

DIRECT = {"autoscaling.knative.dev/target-burst-capacity": "0"}
"""Annotations: requests go to queue-proxy in the pod; otherwise to the activator, as long as there are few pods."""


def _documents(*places: Path) -> Iterator[Json]:
    for place in places:
        for file in sorted(place.rglob("*.yaml")) if place.is_dir() else [place]:
            yield from filter(None, yaml.safe_load_all(file.read_text()))


def _with_images(thing: Any) -> Any:
    """The same with our images in the place of those that ko would have built."""
    if isinstance(thing, dict):
        return {key: _with_images(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [_with_images(value) for value in thing]
    if isinstance(thing, str) and thing.startswith(_KO):
        return image(thing.removeprefix(_KO))
    return thing


def _adapted(document: Json) -> Json:
    """A manifest as it suits one node of two cores without a registry, a name server and an ingress."""
    document = _with_images(document)
    name, kind = document["metadata"]["name"], document["kind"]
    settings = {
        "config-deployment": {
            "registries-skipping-tag-resolving": REGISTRY,
            "queue-sidecar-cpu-request": "5m",
        },
        "config-network": {"ingress-class": _INGRESS_CLASS},
        "config-defaults": {"revision-cpu-request": "5m"},
    }
    if kind == "ConfigMap" and name in settings:
        document.setdefault("data", {}).update(settings[name])
    if kind == "Service" and name == "autoscaler":
        document["spec"]["clusterIP"] = _AUTOSCALER_ADDRESS
    if kind == "Deployment":
        pod = document["spec"]["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = 1
        pod["containers"][0]["resources"]["requests"] = {"cpu": "5m", "memory": "20Mi"}
        pod["containers"][0]["readinessProbe"]["periodSeconds"] = 1
        # The one name that they look up.
        pod["hostAliases"] = [{"ip": _AUTOSCALER_ADDRESS, "hostnames": [f"autoscaler.{SYSTEM}.svc.cluster.local"]}]
    return document


def install(api: Api) -> None:
    """Apply all of it, and wait until it is ready."""
    serving, networking, caching = (
        Path(os.environ[f"CLUSTER_{name}"]) for name in ("SERVING", "NETWORKING", "CACHING")
    )
    core = serving / "config" / "core"
    found = [
        _adapted(document)
        for document in _documents(
            core, *sorted((networking / "config").glob("*.yaml")), *sorted((caching / "config").glob("image.yaml"))
        )
        if document["kind"] != "HorizontalPodAutoscaler"
    ]
    kinds = [document for document in found if document["kind"] == "CustomResourceDefinition"]
    spaces = [document for document in found if document["kind"] == "Namespace"]
    rest = [document for document in found if document not in kinds and document not in spaces]

    def apply(documents: list[Json]) -> None:
        api.kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all(documents), within=120)

    apply([*spaces, *kinds])
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await_all(
        "Knative's kinds are known",
        lambda: {
            each["metadata"]["name"]: condition(api.get(f"{definitions}/{each['metadata']['name']}"), "Established")
            == "True"
            for each in kinds
        },
        within=30,
    )
    apply(rest)
    await_all(
        "Knative is ready",
        lambda: {
            name: condition(api.get(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{name}"), "Available") == "True"
            for name in _DEPLOYMENTS
        },
        within=120,
    )


class Ingress(threading.Thread):
    """Says of every Knative ingress that it is ready, as the controller of an ingress does.

    No proxy stands behind it: who wants to reach a service looks up in the same object where an ingress would send the
    request, and with which headers; see ``route``.
    """

    def __init__(self, api: Api, log: Path) -> None:
        super().__init__(name="ingress", daemon=True)
        self._api = api
        self._log = log

    def run(self) -> None:
        """Until the process ends; the API server may be away in between."""
        while True:
            try:
                for kind, thing in self._api.watch(f"{_INGRESSES}/ingresses"):
                    if kind in ("ADDED", "MODIFIED") and not ready(thing):
                        self._ready(thing)
            except httpx.HTTPError as error:
                with self._log.open("a") as log:
                    print(error, file=log)
                time.sleep(0.5)

    def _ready(self, thing: Json) -> None:
        space, name = thing["metadata"]["namespace"], thing["metadata"]["name"]
        balancer = {"ingress": [{"domainInternal": "ingress.test"}]}
        status = {
            "observedGeneration": thing["metadata"]["generation"],
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": thing["metadata"]["creationTimestamp"]}
                for kind in ("LoadBalancerReady", "NetworkConfigured", "Ready")
            ],
            "publicLoadBalancer": balancer,
            "privateLoadBalancer": balancer,
        }
        self._api.patch(f"{_INGRESSES}/namespaces/{space}/ingresses/{name}/status", {"status": status})


@dataclass(frozen=True)
class Route:
    """Where an ingress sends the requests to a service, and what it adds to them."""

    address: str
    port: int
    headers: dict[str, str]


def route(api: Api, name: str) -> Route:
    """The way to a Knative Service that is ready."""
    rule = api.get(f"{_INGRESSES}/namespaces/default/ingresses/{name}")["spec"]["rules"][0]
    split = rule["http"]["paths"][0]["splits"][0]
    service = api.get(f"/api/v1/namespaces/{split['serviceNamespace']}/services/{split['serviceName']}")
    headers = {"Host": rule["hosts"][0], **split.get("appendHeaders", {})}
    return Route(service["spec"]["clusterIP"], int(split["servicePort"]), headers)


def service(name: str, container: Json, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    """The manifest of a Knative Service with the tests' server, of which one pod always stays."""
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "template": {
                "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1", **(annotations or {})}},
                "spec": {"containers": [{"image": image("server"), **container}], **spec},
            }
        },
    }


def example() -> Json:
    """config/example.yaml with the one image that is here."""
    made = yaml.safe_load((ROOT / "config/example.yaml").read_text())
    (container,) = made["spec"]["template"]["spec"]["containers"]
    container["image"] = PYTHON
    made["metadata"]["namespace"] = "default"
    return made


def apply(api: Api, *services: Json) -> None:
    """Apply services, all of them at the same time."""
    for each in services:
        api.apply(f"{SERVING}/services/{each['metadata']['name']}", each)


def await_services(api: Api, *names: str, within: float = 60) -> None:
    """Return when these services are Ready."""
    await_all(
        "services are ready", lambda: {name: ready(api.get(f"{SERVING}/services/{name}")) for name in names}, within
    )


def pods(api: Api, name: str) -> list[Json]:
    """The pods of a service."""
    listed = api.get(f"/api/v1/namespaces/default/pods?labelSelector=serving.knative.dev/service={name}")
    found: list[Json] = listed["items"]
    return found


def pod(api: Api, name: str) -> Json:
    """The one pod of a service."""
    return until(lambda: pods(api, name), f"{name} has a pod")[0]
