"""Pods that ask to be frozen without a sidecar: real containers with a server, and what the API server says of them."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from freeze_proxy.freezers import cgroup
from tests.support.api_server import ApiServer
from tests.support.cluster import cgroups
from tests.support.cluster.kubelet import Kubelet
from tests.support.cluster.ticking import TICK
from tests.support.node import NAME
from tests.support.queue_proxies import QueueProxy

ATTACH = "freeze.extensions.knative.dev/attach"
PORT = 10_000 + os.getpid() * 2 % 20_000
"""Pods of tests that run beside these share the network, and whoever listens on a port counts as one of the pod."""
_numbers = itertools.count()


def address() -> str:
    """An address of this machine that no other test has: the pods of tests share its network."""
    number = next(_numbers)
    return f"127.{100 + os.getpid() % 100}.{number // 250 + 1}.{number % 250 + 1}"


SERVE = "httpd -p $AT -h /tmp"
AGAIN = "while :; do httpd -f -p $AT -h /tmp; sleep 0.5; done &"
"""One that is started again, half a second after it has ended."""


def serving(ip: str, how: str = SERVE) -> tuple[str, ...]:
    """A server of files at an address, that ticks as well."""
    return (*TICK[:2], f"echo hello >/tmp/index.html; AT={ip}:{PORT}; {how}\n{TICK[2]}")


class AmbientPod:
    """One with a server in ``user-container`` and a stand-in for its queue-proxy; in a ``with``."""

    def __init__(
        self,
        kubelet: Kubelet,
        api_server: ApiServer,
        runtime: str = "runc",
        annotations: Mapping[str, str] | None = None,
        namespace: str = "default",
        queue_proxy: bool = True,
        period: float = 0.25,
        serve: str = SERVE,
    ) -> None:
        self.ip = address()
        self._api_server = api_server
        self.queue = QueueProxy(self.ip, PORT, period)
        names = {"user-container": serving(self.ip, serve)} | ({"queue-proxy": TICK} if queue_proxy else {})
        self.pod = kubelet.pod(names, runtime)
        self.server = self.pod["user-container"]
        self.path = f"/api/v1/namespaces/{namespace}/pods/{self.pod.name}"
        self.ready = True
        self.facts: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.pod.name,
                "namespace": namespace,
                "uid": self.pod.uid,
                "annotations": {ATTACH: "ambient"} if annotations is None else dict(annotations),
            },
            "spec": {"nodeName": NAME, "containers": [{"name": name, "image": "none"} for name in names]},
        }

    def tell(self) -> None:
        """The API server knows it as it is now."""
        self.server = self.pod["user-container"]
        self.facts["status"] = {
            "phase": "Running",
            "podIP": self.ip,
            "conditions": [{"type": "Ready", "status": str(self.ready)}],
            "containerStatuses": [
                {
                    "name": name,
                    "image": "none",
                    "imageID": "none",
                    "ready": True,
                    "started": True,
                    "restartCount": container.attempt,
                    "containerID": f"containerd://{container.id}",
                }
                for name, container in self.pod.containers.items()
            ],
        }
        self._api_server.put(self.path, self.facts)

    def servers(self) -> list[int]:
        """PIDs of what serves, as the node counts processes."""
        pids = cgroup.members(str(cgroups.places(self.server.pid)[""]))
        return [pid for pid in pids if b"httpd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0:2]]

    def __enter__(self) -> Self:
        self.queue.__enter__()
        self.tell()
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.__exit__()
        if self.path in self._api_server.objects:
            self._api_server.remove(self.path)
