"""What the container runtime knows of pods, by CRI v1 over its unix socket.

Field numbers and calls are those of ``runtime/v1/api.proto`` in k8s.io/cri-api. All calls only read, so each may be
made again when the runtime has been restarted and the connection is lost.
"""

import asyncio
import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from freeze_proxy.protobuf import Service, Table, classes

TABLE: Table = {
    "VersionRequest": {"version": (1, "string")},
    "VersionResponse": {"runtime_name": (2, "string"), "runtime_version": (3, "string")},
    "PodSandboxStateValue": {"state": (1, "int32")},
    "PodSandboxFilter": {"state": (2, "PodSandboxStateValue"), "label_selector": (3, "map string string")},
    "ListPodSandboxRequest": {"filter": (1, "PodSandboxFilter")},
    "ListPodSandboxResponse": {"items": (1, "repeated PodSandbox")},
    "PodSandbox": {
        "id": (1, "string"),
        "metadata": (2, "PodSandboxMetadata"),
        "created_at": (4, "int64"),
        "labels": (5, "map string string"),
    },
    "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
    "ContainerFilter": {"label_selector": (4, "map string string")},
    "ListContainersRequest": {"filter": (1, "ContainerFilter")},
    "ListContainersResponse": {"containers": (1, "repeated Container")},
    "Container": {
        "id": (1, "string"),
        "pod_sandbox_id": (2, "string"),
        "metadata": (3, "ContainerMetadata"),
        "state": (6, "int32"),
        "created_at": (7, "int64"),
    },
    "ContainerMetadata": {"name": (1, "string"), "attempt": (2, "uint32")},
    "ContainerStatusRequest": {"container_id": (1, "string"), "verbose": (2, "bool")},
    "ContainerStatusResponse": {"status": (1, "ContainerStatus"), "info": (2, "map string string")},
    "ContainerStatus": {"state": (3, "int32")},
}
METHODS = {
    "Version": ("VersionRequest", "VersionResponse"),
    "ListPodSandbox": ("ListPodSandboxRequest", "ListPodSandboxResponse"),
    "ListContainers": ("ListContainersRequest", "ListContainersResponse"),
    "ContainerStatus": ("ContainerStatusRequest", "ContainerStatusResponse"),
}
_messages = classes("freeze_proxy.cri", TABLE)

READY = 0
"""A state of a sandbox."""
CREATED, RUNNING = 0, 1
"""States of a container."""
POD_UID = "io.kubernetes.pod.uid"
"""The label that a kubelet gives sandboxes and containers."""
REVISION = "serving.knative.dev/revision"
"""Knative's label of a pod, which a kubelet gives its sandbox, too."""

SOCKETS = (
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/run/containerd/containerd.sock",
)
"""Where runtimes listen. containerd's own place is the last: it also runs where Docker does, or beside another one."""
DOCKER = "/run/docker.sock"

_PATIENCE = 3.0
"""Seconds for one call."""
_AT_ONCE = 16
"""Calls under way for one question."""


class RuntimeAway(Exception):
    """The runtime cannot be asked; the text is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running container: its id, its name in the pod, the PID of its main process."""

    id: str
    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod on this node with its running containers; ``settled`` unless one has been created and not begun to run.

    ``revision`` is that of Knative, or empty.
    """

    uid: str
    namespace: str
    name: str
    containers: tuple[Running, ...]
    settled: bool = True
    revision: str = ""


class Lister(Protocol):
    """Knows pods."""

    async def containers_of(self, uid: str) -> Sandbox | None:
        """The pod with this UID; ``None`` if there is none that runs. Raises ``RuntimeAway``."""


class Runtime:
    """The runtime at a socket, or at the first of ``SOCKETS`` that answers if that is ``auto``.

    It may be away and come back: nothing is connected before it is needed, and it is connected again after a loss.
    ``docker`` is the Engine's socket, which knows what an old cri-dockerd does not tell.
    """

    def __init__(self, socket: str = "auto", docker: str = DOCKER) -> None:
        self._sockets = SOCKETS if socket == "auto" else (socket,)
        self._docker = docker
        self._name = ""
        self._channels: dict[str, Channel] = {}
        self._service = Service("runtime.v1.RuntimeService", _messages, METHODS)

    def identity(self) -> tuple[str, str]:
        """Name (``containerd``, ``cri-o``, ``docker``) and socket of the runtime, as far as it has answered yet."""
        return self._name, self._sockets[0] if len(self._sockets) == 1 else ""

    async def version(self) -> tuple[str, str]:
        """Name and version. Raises ``RuntimeAway``."""
        reasons = []
        for socket in self._sockets:
            if len(self._sockets) > 1 and not os.path.exists(socket):
                continue
            try:
                answer = await self._call_at(socket, "Version", {"version": "v1"})
            except RuntimeAway as reason:
                reasons.append(str(reason))
                continue
            self._name, self._sockets = answer.runtime_name, (socket,)
            return answer.runtime_name, answer.runtime_version
        raise RuntimeAway(
            " ".join(reasons)
            or f"No container runtime listens at {', '.join(SOCKETS)}: name its CRI socket with --runtime-socket."
        )

    async def containers_of(self, uid: str) -> Sandbox | None:
        """The pod with this UID, the newest if it has been made anew; ``None`` if there is none that is ready.

        Raises ``RuntimeAway``.
        """
        found = await self._sandboxes({POD_UID: uid})
        return next((sandbox for sandbox in found if sandbox.uid == uid), None)

    async def everybody(self) -> list[Sandbox]:
        """All pods that are ready, the newest first. Raises ``RuntimeAway``."""
        return await self._sandboxes({})

    async def close(self) -> None:
        """Close the connections."""
        while self._channels:
            self._channels.popitem()[1].close()

    # One question after another.

    async def _sandboxes(self, selector: Mapping[str, str]) -> list[Sandbox]:
        if not self._name:
            await self.version()
        # Containers carry the pod's label too, so there is no need to wait for the one answer to ask the other.
        pods, everything = await asyncio.gather(
            self._call("ListPodSandbox", {"filter": {"state": {"state": READY}, "label_selector": selector}}),
            self._call("ListContainers", {"filter": {"label_selector": selector}}),
        )
        chosen: dict[str, Any] = {}
        for pod in sorted(pods.items, key=lambda pod: pod.created_at, reverse=True):
            chosen.setdefault(pod.metadata.uid, pod)
        everyone: dict[str, list[Any]] = {}
        for container in everything.containers:
            everyone.setdefault(container.pod_sandbox_id, []).append(container)
        members = {pod.id: newest(everyone.get(pod.id, ())) for pod in chosen.values()}
        running = [c.id for containers in members.values() for c in containers if c.state == RUNNING]
        pids: dict[str, int] = {}
        for begin in range(0, len(running), _AT_ONCE):
            some = running[begin : begin + _AT_ONCE]
            pids.update(zip(some, await asyncio.gather(*map(self._pid, some)), strict=True))
        return [
            Sandbox(
                uid,
                pod.metadata.namespace,
                pod.metadata.name,
                tuple(Running(c.id, c.metadata.name, pids[c.id]) for c in members[pod.id] if pids.get(c.id)),
                all(c.state != CREATED for c in members[pod.id]),
                pod.labels.get(REVISION, ""),
            )
            for uid, pod in chosen.items()
        ]

    async def _pid(self, id: str) -> int:
        """Of the main process; 0 if the container runs no longer."""
        try:
            answer = await self._call("ContainerStatus", {"container_id": id, "verbose": True})
        except _NotFound:
            return 0
        if answer.status.state != RUNNING:
            return 0
        pid = pid_in(answer.info)
        if pid is None and self._name == "docker":
            pid = await self._pid_by_docker(id)
        if pid is None:
            raise RuntimeAway(f"{self._name} at {self._sockets[0]} does not tell the process of the container {id}.")
        return pid

    async def _pid_by_docker(self, id: str) -> int | None:
        import httpx2

        transport = httpx2.AsyncHTTPTransport(uds=self._docker, verify=False)  # nothing is encrypted here
        try:
            async with httpx2.AsyncClient(transport=transport, timeout=_PATIENCE, trust_env=False) as client:
                answer = await client.get(f"http://docker/containers/{id}/json")
                return 0 if answer.status_code == 404 else int(answer.raise_for_status().json()["State"]["Pid"])
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise RuntimeAway(f"Docker at {self._docker} does not tell the process of {id}: {error}.") from error

    async def _call(self, method: str, fields: Mapping[str, Any]) -> Any:
        return await self._call_at(self._sockets[0], method, fields)

    async def _call_at(self, socket: str, method: str, fields: Mapping[str, Any]) -> Any:
        try:
            try:
                return await self._service.call(self._channel(socket), method, fields, timeout=_PATIENCE)
            except (StreamTerminatedError, ConnectionError):
                # A connection that was there before may have ended with the runtime, which may be back by now.
                return await self._service.call(self._channel(socket), method, fields, timeout=_PATIENCE)
        except GRPCError as error:
            if error.status is Status.NOT_FOUND:
                raise _NotFound(str(error.message)) from error
            if error.status is Status.UNIMPLEMENTED:
                raise RuntimeAway(
                    f"What listens at {socket} does not speak CRI v1: containerd needs to be 1.6 or later with its CRI "
                    "plugin enabled."
                ) from error
            raise RuntimeAway(f"The container runtime at {socket} failed at {method}: {error.message}.") from error
        except TimeoutError as error:
            raise RuntimeAway(f"The container runtime at {socket} did not answer within {_PATIENCE:g} s.") from error
        except (StreamTerminatedError, ProtocolError) as error:
            raise RuntimeAway(f"The connection to the container runtime at {socket} broke: {error}.") from error
        except OSError as error:
            raise RuntimeAway(_unreachable(socket, error)) from error

    def _channel(self, socket: str) -> Channel:
        channel = self._channels.get(socket)
        if channel is None:
            channel = self._channels[socket] = Channel(path=socket)
        return channel


class _NotFound(RuntimeAway):
    """The runtime has no such thing."""


def newest(containers: Iterable[Any]) -> list[Any]:
    """Of containers that have the same name, the last attempt alone; in the order in which they were created."""
    last: dict[str, Any] = {}
    for container in sorted(containers, key=lambda c: (c.metadata.attempt, c.created_at)):
        last[container.metadata.name] = container
    return sorted(last.values(), key=lambda c: (c.created_at, c.id))


def pid_in(info: Mapping[str, str]) -> int | None:
    """The PID in a verbose ContainerStatus: containerd, CRI-O and cri-dockerd put it into JSON under ``info``."""
    try:
        pid = json.loads(info["info"])["pid"]
    except (KeyError, ValueError, TypeError):
        return None
    return pid if isinstance(pid, int) and pid > 0 else None


def _unreachable(socket: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"There is no container runtime at {socket}: name its CRI socket with --runtime-socket."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"The container runtime's socket {socket} may not be used by this user: run freeze-proxy as root."
    if error.errno == errno.ECONNREFUSED:
        return f"The container runtime at {socket} is not running: nobody listens at the socket."
    return f"The container runtime at {socket} cannot be reached: {error.strerror or error}."
