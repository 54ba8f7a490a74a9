"""Pods as Knative makes them and the webhook changes them, run for real: a server, queue-proxy's stand-in, the sidecar.

Whoever touches such a pod is here as well: the kubelet's probes, by the pod's own specification, and the activator's.
"""

import http.client
import json
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from tests.support.cluster.kubelet import Made
from tests.support.pods import PORT, QUEUE_PROXY, ROOT, SERVER, InPod, Rig, server
from tests.support.wait import until
from tests.webhook.test_inject import PODS, injected, sample, sidecar_of

Probe = dict[str, Any]

QUEUE_PORT = 8012
HELPER, HELPER_PORT = "helper", 8081
PREFIX = "FREEZE_PROXY_"
_PROBED = "tests.traffic.servers.probed"


def probed(kind: str, folder: Path, port: int = PORT, delay: float = 0.0) -> Made:
    """A container with a server of this kind: see ``probed.py``. ``delay``: seconds until it listens."""
    return server([sys.executable, "-m", _PROBED, kind, str(port), folder, str(delay)], folder)


def specified(
    readiness: Probe | Sequence[Probe] | None = None,
    liveness: Probe | None = None,
    startup: Probe | None = None,
    own_readiness: Probe | None = None,
) -> Any:
    """The pod's JSON, after the webhook. ``own_readiness``: one that Serving leaves with the container; an array of
    readiness probes makes a second container."""
    pod = sample(PODS[0])
    container, queue_proxy = pod["spec"]["containers"]
    assert (container["name"], queue_proxy["name"]) == (SERVER, QUEUE_PROXY)
    for name, probe in (("livenessProbe", liveness), ("startupProbe", startup), ("readinessProbe", own_readiness)):
        if probe is not None:
            container[name] = probe
    variables = {each["name"]: each for each in queue_proxy["env"]}
    if readiness is not None:
        variables["SERVING_READINESS_PROBE"]["value"] = json.dumps(readiness)
    if isinstance(readiness, list):
        pod["spec"]["containers"].insert(1, {"name": HELPER, "image": "helper"})
        queue_proxy["env"].append({"name": "ENABLE_MULTI_CONTAINER_PROBES", "value": "true"})
    return injected(pod)


class KnativePod(InPod):
    """One that runs; ``spec``: its JSON. ``servers``: what its containers run, by their names."""

    def __init__(
        self,
        rig: Rig,
        spec: Any,
        servers: Mapping[str, Made],
        told: Mapping[str, str] | None = None,
        late: bool = False,
        drain: float = 0.2,
    ) -> None:
        self.spec = spec
        variables = {each["name"]: each.get("value", "") for each in sidecar_of(spec)["env"]}
        ours = {name[len(PREFIX) :]: value for name, value in variables.items() if name.startswith(PREFIX)}
        del ours["DAEMON"], ours["LISTEN"]  # the node of the tests; and gRPC clients come in beside queue-proxy
        self.nonce = ours["NONCE"]
        (queue_proxy,) = [each for each in spec["spec"]["containers"] if each["name"] == QUEUE_PROXY]
        environment = {each["name"]: str(each.get("value", "")) for each in queue_proxy["env"]}
        command = [sys.executable, "-m", "tests.support.cluster.queue_proxy"]
        made = server(command, rig.node.folder, {**environment, "DRAIN": str(drain), "PYTHONPATH": str(ROOT)})
        self.made = {**servers, QUEUE_PROXY: made}
        labels = {name: text for name, text in spec["metadata"]["labels"].items() if "/" in name}
        super().__init__(rig, {} if late else self.made, {**ours, **(told or {})}, labels, late)

    def __enter__(self) -> Self:
        super().__enter__()
        if not self._late:
            until(lambda: self.ready() == "", "queue-proxy says that it is ready", 20, 0.02)
        return self

    def end(self) -> Any:
        """As ``InPod``; queue-proxy goes with it."""
        if not self._report and self.pod[QUEUE_PROXY].alive:
            self.pod[QUEUE_PROXY].kill(signal.SIGTERM)
        return super().end()

    # Requests.

    def get(self, path: str = "/", timeout: float = 10.0, **fields: str) -> tuple[int, str]:
        """Through queue-proxy; 0 where that does not answer."""
        sent = {name.replace("_", "-"): value for name, value in fields.items()}
        return fetch(self.host, QUEUE_PORT, path, sent, timeout)

    def grpc_call(self) -> bytes:
        """A gRPC call to the server."""
        with grpc.insecure_channel(self.address) as channel:
            answer: bytes = channel.unary_unary("/test.Hello/Hello")(b"", timeout=10)
            return answer

    # Who touches it.

    def touchers(self) -> dict[str, Callable[[], str]]:
        """By name, what to do now and then: each returns why it has failed, or nothing."""
        found: dict[str, Callable[[], str]] = {}
        for container in self.spec["spec"]["containers"]:
            for field in ("readinessProbe", "livenessProbe"):
                if (probe := container.get(field)) is not None:
                    name = container["name"]
                    found[f"{field} of {name}"] = lambda name=name, probe=probe: self.probe(name, probe)  # type: ignore[misc]
        found["activator"] = lambda: self.ready("Knative-Activator-Probe")
        return found

    def probe(self, container: str, probe: Probe) -> str:
        """As the kubelet does it."""
        seconds = probe.get("timeoutSeconds", 1) or 1
        if (said := probe.get("httpGet")) is not None:
            fields = {each["name"]: each["value"] for each in said.get("httpHeaders") or ()}
            scheme, path = said.get("scheme", "HTTP"), said.get("path", "/")
            status, text = fetch(self.host, int(said["port"]), path, fields, seconds, scheme)
            return "" if 200 <= status < 400 else f"{status} {text}"
        if (said := probe.get("exec")) is not None:
            try:
                done = self.pod[container].execute(*said["command"], within=seconds)
            except grpc.RpcError:
                return ""  # The runtime refuses: the kubelet discards that.
            return "" if done.code == 0 else f"exit code {done.code}"
        with grpc.insecure_channel(f"{self.host}:{probe['grpc']['port']}") as channel:
            try:
                answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=seconds)
            except grpc.RpcError as error:
                return str(error.code())
        return "" if answer == b"\x08\x01" else repr(answer)

    def ready(self, agent: str = "kube-probe/1.34") -> str:
        """Asked of queue-proxy, as kubelet and activator do: nothing, or why it is not."""
        status, text = self.get("/", 1.0, K_Network_Probe="queue", User_Agent=agent)
        return "" if status == 200 else f"{status} {text}"

    def hook(self, container: str) -> tuple[int, str]:
        """The preStop hook of a container, as the kubelet calls it."""
        everyone = self.spec["spec"]["containers"] + self.spec["spec"].get("initContainers", [])
        (one,) = [each for each in everyone if each["name"] == container]
        said = one["lifecycle"]["preStop"]["httpGet"]
        return fetch(self.host, int(said["port"]), said["path"], {}, 30.0)


def fetch(
    host: str, port: int, path: str, fields: Mapping[str, str], timeout: float, scheme: str = "HTTP"
) -> tuple[int, str]:
    """A GET on a connection of its own: status and body; 0 and the reason where there is no answer."""
    if scheme == "HTTPS":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    else:
        client = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        client.request("GET", path, headers=dict(fields))
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__} {error}"
    finally:
        client.close()


class Often:
    """Does each of these again and again, in a thread of its own, until the ``with`` is over; notes what has failed."""

    def __init__(self, what: Mapping[str, Callable[[], str]], every: float) -> None:
        self.times = dict.fromkeys(what, 0)
        self.failures: list[str] = []
        self._every = every
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._do, args=each, daemon=True) for each in what.items()]

    def _do(self, name: str, call: Callable[[], str]) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                said = call()
            except Exception as error:
                said = repr(error)
            self.times[name] += 1
            if said:
                self.failures.append(f"{name}: {said} after {time.monotonic() - begun:.2f} s")
            self._over.wait(max(0.0, begun + self._every - time.monotonic()))

    def __enter__(self) -> "Often":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
