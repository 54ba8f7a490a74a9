"""Services that ask the daemon to be frozen, and have neither a sidecar nor anything else of freeze-proxy's."""

from collections.abc import Callable

from tests.cluster import knative, traffic
from tests.cluster.api import Api, Json
from tests.cluster.background import Background
from tests.cluster.components import Cluster
from tests.cluster.minute import EXEC, GRPC, HTTP, TCP, both
from tests.cluster.runtime import CHOSEN
from tests.cluster.traffic import Service

ASKS = {"freeze.extensions.knative.dev/attach": "ambient"}
"""The annotation."""
STOCK = f"{CHOSEN}stock"
"""One that asks for nothing, in cgroup2 alone like the others."""
HYBRID = "hybrid"
"""One on cgroups of both versions."""
PROBED: dict[str, Json] = {
    "none": {},
    "http": both(HTTP),
    "tcp": both(TCP),
    "grpc": both(GRPC, port="h2c"),
    "exec": both(EXEC),
}
"""Readiness and liveness by the kind of their probes, as often as Kubernetes does when nothing is said of it."""
SECONDS = 45
"""For which the services with probes are left alone."""
_SILENT = 12.0
_TRIES = 8


def services(some_at_a_time: dict[str, str]) -> list[Json]:
    """All but those with probes."""
    asks = {**knative.DIRECT, **ASKS}
    return [
        knative.service(f"{CHOSEN}traffic", {}, asks),
        knative.service(f"{CHOSEN}grpc", {"ports": [{"name": "h2c", "containerPort": 8080}]}, asks),
        knative.service(f"{CHOSEN}by-activator", {}, {**ASKS, **some_at_a_time}),
        knative.service(f"{CHOSEN}deleted", {}, asks),
        knative.service(STOCK, {}, knative.DIRECT),
        knative.service(HYBRID, {}, asks),
    ]


def probed() -> dict[str, Json]:
    """Those with probes, by their kind."""
    return {
        kind: knative.service(f"{CHOSEN}{kind}-probed", container, {**knative.DIRECT, **ASKS})
        for kind, container in PROBED.items()
    }


def sleeptalker() -> Json:
    """The example, unchanged but for its name and the annotation."""
    made = knative.example()
    made["metadata"]["name"] = f"{CHOSEN}sleeptalker"
    made["spec"]["template"]["metadata"]["annotations"] |= ASKS
    return made


def sent(api: Api, cluster: Cluster) -> dict[str, Background[list[float]]]:
    """Whatever users send, to several services at a time; for each, how long requests that raced freezes took."""

    def http1(service: Service) -> None:
        traffic.kept_connection(service)
        traffic.websocket(service, silence=5)
        traffic.events(service)

    def streams(service: Service) -> None:
        traffic.http2(service)
        traffic.grpc(service)

    def by_activator(service: Service) -> None:
        traffic.kept_connection(service)
        traffic.silent_request(service, _SILENT)

    def begun(name: str, kinds: Callable[[Service], None]) -> Background[list[float]]:
        service = Service(api, cluster, name)

        def work() -> list[float]:
            kinds(service)
            return [] if kinds is streams else traffic.race(service, _TRIES)

        return Background(work)

    return {
        name: begun(name, kinds)
        for name, kinds in (
            (f"{CHOSEN}traffic", http1),
            (f"{CHOSEN}grpc", streams),
            (f"{CHOSEN}by-activator", by_activator),
            (HYBRID, traffic.kept_connection),
        )
    }
