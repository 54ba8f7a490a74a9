"""What a kubelet does, as far as a freezer can notice: pods and containers over CRI, named and placed as it does."""

import itertools
import json
import shutil
import signal
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tests.support.cluster import archives
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.messages import EXITED, NODE, POD, RUNNING
from tests.support.cluster.ticking import TICK, Command, Ticking
from tests.support.wait import until

NAMESPACE = "default"


class Made(NamedTuple):
    """What a container is made of. ``command``: empty for that of the image; ``mounts``: in it, and on the node.

    Confined is a container as restricted Pod Security wants it, with a read-only root as well.
    """

    command: Command = ()
    image: str = archives.WORKLOAD
    environment: Mapping[str, str] = {}
    mounts: Mapping[str, str] = {}
    writable: Mapping[str, str] = {}
    confined: bool = False


class Executed(NamedTuple):
    """What a command in a container has come to."""

    code: int
    out: bytes
    error: bytes


class Container(Ticking):
    """One container, from its start until its pod is deleted."""

    def __init__(self, pod: "Pod", name: str, attempt: int, made: Made) -> None:
        self._call = pod.kubelet.containerd.call
        self.pod = pod
        self.name = name
        self.attempt = attempt
        self.made = made
        self.command = made.command
        self.folder = pod.folder / name / str(attempt)
        self.folder.mkdir(parents=True)
        self.id: str = self._call(
            "CreateContainer", pod_sandbox_id=pod.id, config=self._config(), sandbox_config=pod.config
        ).container_id
        self._call("StartContainer", container_id=self.id)
        self.pid: int = json.loads(self.status(verbose=True).info["info"])["pid"]

    def _config(self) -> dict[str, Any]:
        made = self.made
        context: dict[str, Any] = {"namespace_options": {"network": self.pod.network, "pid": 1}}
        if made.confined:
            context |= {
                "capabilities": {"drop_capabilities": ["ALL"]},
                "readonly_rootfs": True,
                "no_new_privs": True,
                "seccomp": {"profile_type": 0},  # RuntimeDefault
            }
        mounts = [("/ticks", str(self.folder), False)] if not made.confined else []
        mounts += [(place, source, True) for place, source in made.mounts.items()]
        mounts += [(place, source, False) for place, source in made.writable.items()]
        return {
            "metadata": {"name": self.name, "attempt": self.attempt},
            "image": {"image": made.image},
            "command": list(made.command),
            "envs": [
                {"key": key, "value": value} for key, value in {"HOSTNAME": self.pod.name, **made.environment}.items()
            ],
            "mounts": [
                {"container_path": place, "host_path": source, "readonly": readonly}
                for place, source, readonly in mounts
            ],
            "labels": self.pod.labels | {"io.kubernetes.container.name": self.name},
            "annotations": {"io.kubernetes.container.restartCount": str(self.attempt)},
            "log_path": f"{self.name}/{self.attempt}.log",
            "linux": {
                "resources": {} if self.pod.kubelet.containerd.unified else {"cpu_shares": 102},
                "security_context": context,
            },
        }

    # What it prints.

    @property
    def log(self) -> Path:
        """What it printed, each line as ``TIME STREAM TAG TEXT``."""
        return self.pod.logs / self.name / f"{self.attempt}.log"

    @property
    def printed(self) -> list[str]:
        """The lines that it printed."""
        return [line.split(" ", 3)[3] for line in self.log.read_text().splitlines()]

    # What the runtime says.

    def status(self, verbose: bool = False) -> Any:
        return self._call("ContainerStatus", container_id=self.id, verbose=verbose)

    @property
    def state(self) -> int:
        return int(self.status().status.state)

    @property
    def running(self) -> bool:
        return self.state == RUNNING

    def stats(self) -> Any:
        return self._call("ContainerStats", container_id=self.id).stats

    def execute(self, *command: str, within: float = 10.0) -> Executed:
        """Run a command in it; ``grpc.RpcError`` if the runtime cannot."""
        answer = self._call(
            "ExecSync", within=within + 5, container_id=self.id, cmd=command, timeout=max(1, round(within))
        )
        return Executed(answer.exit_code, answer.stdout, answer.stderr)

    # Its end.

    def stop(self, grace: int = 0, within: float = 30.0) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds; at once if that is 0.

        As a kubelet does it, once more where containerd lost its shim on the way: the container was just ending.
        """
        try:
            self._call("StopContainer", within=within + grace, container_id=self.id, timeout=grace)
        except grpc.RpcError as error:
            if "ttrpc: closed" not in str(error):
                raise
            self._call("StopContainer", within=within + grace, container_id=self.id, timeout=grace)

    def await_exit(self, within: float = 10.0) -> None:
        until(lambda: self.state == EXITED, f"container {self.name} has ended", within)

    def remove(self) -> None:
        self._call("RemoveContainer", container_id=self.id)


class Pod:
    """A pod that runs. ``pod["user-container"]`` is the running container of that name."""

    def __init__(
        self,
        kubelet: "Kubelet",
        name: str,
        runtime: str,
        uid: str | None,
        labels: Mapping[str, str],
        network: int = NODE,
    ) -> None:
        self.kubelet = kubelet
        self.name = name
        self.namespace = NAMESPACE
        self.runtime = runtime
        self.network = network
        self.uid = uid or str(uuid.uuid4())
        self.labels = dict(labels) | {
            "io.kubernetes.pod.uid": self.uid,
            "io.kubernetes.pod.name": self.name,
            "io.kubernetes.pod.namespace": self.namespace,
        }
        self.folder = kubelet.containerd.folder / "pods" / self.uid
        self.logs = kubelet.containerd.folder / "logs" / f"{self.namespace}_{self.name}_{self.uid}"
        self.logs.mkdir(parents=True)
        self.containers: dict[str, Container] = {}
        self.past: list[Container] = []
        """Those that a restart has put others in place of."""
        self.config: dict[str, Any] = {
            "metadata": {"name": self.name, "uid": self.uid, "namespace": self.namespace},
            "log_directory": str(self.logs),
            "labels": self.labels,
            "linux": {
                "cgroup_parent": kubelet.containerd.cgroups.of_pod(self.uid),
                "security_context": {"namespace_options": {"network": network, "pid": 1}},
            },
        }
        call = kubelet.containerd.call
        self.id: str = call("RunPodSandbox", config=self.config, runtime_handler=runtime).pod_sandbox_id

    def __getitem__(self, name: str) -> Container:
        return self.containers[name]

    @property
    def ip(self) -> str:
        """Its address, where it has a network of its own."""
        answer = self.kubelet.containerd.call("PodSandboxStatus", pod_sandbox_id=self.id)
        return str(answer.status.network.ip)

    def start(self, name: str, command: "Command | Made") -> Container:
        """Start a container of this name; if there has been one already it counts as a restart."""
        before = self.containers.get(name)
        if before is not None:
            self.past.append(before)
        made = command if isinstance(command, Made) else Made(command)
        container = Container(self, name, 0 if before is None else before.attempt + 1, made)
        self.containers[name] = container
        return container

    def restart(self, name: str) -> Container:
        """End the container unless it has ended, and start another in its place, as a kubelet does after a crash."""
        container = self[name]
        if container.alive:
            container.kill()
        container.await_exit()
        return self.start(name, container.made)

    def kill(self, name: str, by: int = signal.SIGKILL) -> None:
        """A signal to the first process of a container."""
        self[name].kill(by)

    def delete(self, grace: int = 0) -> None:
        """As a kubelet: stop all containers side by side, then the sandbox, remove both, and then the pod's cgroup."""
        call = self.kubelet.containerd.call
        everyone = [*self.past, *self.containers.values()]
        with ThreadPoolExecutor(max(1, len(everyone))) as threads:
            list(threads.map(lambda container: container.stop(grace), everyone))
        call("StopPodSandbox", pod_sandbox_id=self.id)
        for container in everyone:
            container.remove()
        call("RemovePodSandbox", pod_sandbox_id=self.id)
        # Of a container whose shim was killed a process may be left that nobody ends.
        groups = self.kubelet.containerd.cgroups
        groups.end(groups.pod_name(self.uid))
        groups.remove(groups.pod_name(self.uid))
        for folder in (self.folder, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        self.kubelet.pods.remove(self)


class Kubelet:
    """Runs pods on a containerd, and deletes those that are left when it is closed."""

    _numbers = itertools.count(1)

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.pods: list[Pod] = []

    def pod(
        self,
        containers: "Mapping[str, Command | Made] | Sequence[str]" = ("user-container", "queue-proxy"),
        runtime: str = "runc",
        name: str | None = None,
        uid: str | None = None,
        labels: Mapping[str, str] | None = None,
        network: bool = False,
    ) -> Pod:
        """Run a pod; names alone stand for containers that tick. All of them run when this returns.

        Without a ``network`` of its own it is on the node's, which needs no plugins.
        """
        commands: Mapping[str, Command | Made]
        commands = containers if isinstance(containers, Mapping) else dict.fromkeys(containers, TICK)
        pod = Pod(self, name or f"pod-{next(self._numbers)}", runtime, uid, labels or {}, POD if network else NODE)
        self.pods.append(pod)
        for container, command in commands.items():
            pod.start(container, command)
        return pod

    def close(self) -> None:
        """Thaw and delete whatever pods are left."""
        self.containerd.ensure()
        self.containerd.cgroups.thaw()
        for pod in list(self.pods):
            try:
                pod.delete()
            except grpc.RpcError:
                self._remove_by_force(pod)

    def _remove_by_force(self, pod: Pod) -> None:
        """For a pod that its runtime cannot delete, as after a pause that was mixed with a write to the cgroup."""
        call, groups = self.containerd.call, self.containerd.cgroups
        groups.end(groups.pod_name(pod.uid))
        call("StopPodSandbox", pod_sandbox_id=pod.id)
        call("RemovePodSandbox", pod_sandbox_id=pod.id)
        groups.remove(groups.pod_name(pod.uid))
        self.pods.remove(pod)
