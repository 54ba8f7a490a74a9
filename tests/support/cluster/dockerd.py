"""A dockerd of the test's own, on a containerd of the test's own."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.cluster import archives
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.programs import Daemon, end_processes_with, remove_folder
from tests.support.cluster.ticking import TICK, Command, Ticking
from tests.support.needs import need_program
from tests.support.wait import until


class DockerContainer(Ticking):
    """A container that dockerd runs."""

    def __init__(self, dockerd: "Dockerd", name: str, identity: str, folder: Path) -> None:
        self.dockerd = dockerd
        self.name = name
        self.id = identity
        self.folder = folder
        self.pid: int = self.inspect()["State"]["Pid"]

    def inspect(self) -> Any:
        return json.loads(self.dockerd.docker("inspect", self.id))[0]

    @property
    def status(self) -> str:
        """``running``, ``paused``, ``exited``."""
        return str(self.inspect()["State"]["Status"])

    @property
    def printed(self) -> list[str]:
        """The lines that it printed."""
        return self.dockerd.docker("logs", self.id).splitlines()

    def remove(self) -> None:
        """Thaw it however it was frozen, and remove it."""
        self.dockerd.cgroups.thaw()
        try:
            self.dockerd.docker("rm", "--force", self.id)
        except DockerError as error:
            if "No such container" not in str(error):
                raise
        shutil.rmtree(self.folder)
        self.dockerd.containers.remove(self)


class Dockerd:
    """Runs from ``start`` to ``close``; with live-restore, so that containers outlive it in between."""

    def __init__(self, containerd: Containerd) -> None:
        program = need_program("dockerd", "docker.io")
        self._client = need_program("docker", "docker.io")
        self.containerd = containerd
        self.cgroups = containerd.cgroups
        self.folder = containerd.folder / "docker"
        self.folder.mkdir()
        self.socket = self.folder / "docker.sock"
        self.containers: list[DockerContainer] = []
        config = self.folder / "daemon.json"
        facts: dict[str, Any] = {"deprecated-key-path": f"{self.folder}/key.json"}
        if containerd.unified:
            facts |= {"runtimes": {"own": {"path": containerd.programs["runc"]}}, "default-runtime": "own"}
        config.write_text(json.dumps(facts))
        command = [
            program,
            f"--config-file={config}",
            f"--host=unix://{self.socket}",
            f"--containerd={containerd.socket}",
            f"--data-root={self.folder}/root",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--cgroup-parent=/{self.cgroups.name}/docker",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--storage-driver={'overlay2' if containerd.snapshotter == 'overlayfs' else 'vfs'}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--oom-score-adjust=0",  # less is not allowed without CAP_SYS_RESOURCE
            "--live-restore",
        ]
        if containerd.unified:  # it has a mount namespace of its own, in which a network is to be seen by its name
            command = ["nsenter", f"--target={containerd.pid}", "--mount", "--cgroup", *command]
        self._daemon = Daemon("dockerd", command, self.folder / "dockerd.log", self._has_image)

    @property
    def log(self) -> str:
        return self._daemon.log.read_text(errors="replace")

    def start(self) -> None:
        """Start, or start again."""
        self._daemon.start()

    def kill(self) -> None:
        """SIGKILL; its containers go on."""
        self._daemon.end(signal.SIGKILL)

    def ensure(self) -> None:
        """Start it if a test has left it ended, and wait until it has found its containerd again."""
        if not self._daemon.running:
            self.start()
        components = "{{range .Server.Components}}{{.Name}} {{end}}"
        until(
            lambda: "containerd" in self.docker("version", f"--format={components}"), "dockerd asks its containerd", 30
        )

    def docker(self, *arguments: str, within: float = 30.0) -> str:
        """Docker's own command line; returns what it prints. ``DockerError`` if it fails."""
        command = [self._client, "--host", f"unix://{self.socket}", *arguments]
        environment = {**os.environ, "DOCKER_CONFIG": str(self.folder / "client")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=within, env=environment)
        if done.returncode != 0:
            raise DockerError(f"{done.stderr}{done.stdout}".strip())
        return done.stdout

    def run(self, name: str, command: Command = TICK, network: str = "none") -> DockerContainer:
        """Run a container, without a network or on the node's (``host``)."""
        folder = self.folder / "ticks" / name
        folder.mkdir(parents=True)
        identity = self.docker(
            "run",
            "--detach",
            f"--network={network}",
            f"--name={name}",
            f"--volume={folder}:/ticks",
            archives.WORKLOAD,
            *command,
        )
        made = DockerContainer(self, name, identity.strip(), folder)
        self.containers.append(made)
        return made

    def clear(self) -> None:
        """Remove the containers that are left."""
        for container in list(self.containers):
            container.remove()

    def _has_image(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            if archives.WORKLOAD not in self.docker("images", "--format={{.Repository}}:{{.Tag}}").split():
                self.docker("load", f"--input={self.containerd.archive}")
        except DockerError:
            return False  # the socket is there before dockerd serves
        return True

    def close(self) -> None:
        """End it with all its containers, and remove everything that it made; before its containerd is closed."""
        self._daemon.end(signal.SIGKILL)
        end_processes_with(f"{self.folder}/")
        self.cgroups.end("/docker")
        remove_folder(self.folder)


class DockerError(Exception):
    """What docker says when it fails."""
