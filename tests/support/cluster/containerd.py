"""A containerd of the test's own, with runc and crun."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import grpc

from tests.support.cluster import archives
from tests.support.cluster.cgroups import Cgroups, driver, hierarchies
from tests.support.cluster.messages import MESSAGES
from tests.support.cluster.network import PodNetwork
from tests.support.cluster.programs import Daemon, end_processes_with, remove_folder
from tests.support.needs import need_program, need_root
from tests.support.wait import FACTOR, until

RUNTIMES = ("runc", "crun")

_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE nobody may lower a score; with it nothing is lost here.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/cni/bin"
conf_dir = "{folder}/cni/conf"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
"""

_RUNTIME = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
BinaryName = "{program}"
Root = "{folder}/{name}"
SystemdCgroup = {systemd}
"""

_UNIFIED = """
mkdir -p {own} && echo $$ > {own}/cgroup.procs && exec unshare --mount --cgroup sh -c '
mount --make-rprivate / && umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"
' sh "$@"
"""
"""What is started so on a hybrid machine takes it for one with cgroup2 alone. The root that it sees is the test's own
cgroup, in which no controller is enabled: containers are placed and frozen, but not limited."""

_UNLIMITED = """#!/bin/sh
# A container's limits are left out: here no controller could hold it to them.
bundle=
for word; do [ "$before" = --bundle ] && bundle=$word; before=$word; done
[ -z "$bundle" ] || sed -i 's/"cpu":{{[^}}]*}}/"cpu":{{}}/; s/"devices":\\[{{"allow"[^]]*\\]/"devices":[]/' \\
    "$bundle/config.json"
exec {program} "$@"
"""

_CRUN = """#!/bin/sh
# crun refuses a hybrid node if its cgroup2 has controllers of its own, though it would use none: so it is shown none.
exec unshare --mount sh -c 'mount --bind {empty} {controllers} && exec {program} "$@"' crun "$@"
"""


def _hybrid() -> bool:
    return "" in hierarchies() and len(hierarchies()) > 1


def _runtime(name: str, folder: Path, unified: bool) -> str:
    """What containerd is to start as this runtime."""
    program = need_program(name, name)
    controllers = Path("/sys/fs/cgroup/unified/cgroup.controllers")
    if unified and _hybrid():
        script = folder / f"{name}-without-limits"
        script.write_text(_UNLIMITED.format(program=program))
        script.chmod(0o755)
        return str(script)
    if name != "crun" or not controllers.exists() or not controllers.read_text().strip():
        return program
    empty, script = folder / "empty", folder / "crun-on-hybrid"
    empty.touch()
    script.write_text(_CRUN.format(empty=empty, controllers=controllers, program=program))
    script.chmod(0o755)
    return str(script)


def _snapshotter(folder: Path) -> str:
    """overlayfs, unless the folder is on one itself: it cannot be laid over another."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], check=True, capture_output=True, text=True, timeout=10)
    return "native" if "overlay" in kind.stdout else "overlayfs"


def _cgroups(word: str) -> Cgroups:
    """Those of one containerd, by the driver that is usual here."""
    if driver() == "systemd":
        return Cgroups(f"freezeproxytest{os.getpid()}{word}", "systemd")
    return Cgroups(f"freeze-proxy-test-{os.getpid()}-{word}")


class Containerd:
    """Runs from ``start`` to ``close``; may be ended in between, and started again on the same state.

    ``socket`` is where it serves, ``folder`` all that it has, ``cgroups`` where its containers belong: with ``unified``
    in cgroup2 alone, as on most nodes. ``network`` is that of pods which have one of their own.
    """

    namespace = "k8s.io"
    """Where CRI keeps its containers."""

    def __init__(self, unified: bool = False) -> None:
        need_root()
        self.unified = unified
        program = need_program("containerd", "containerd")
        need_program("containerd-shim-runc-v2", "containerd")
        need_program("ctr", "containerd")
        # Not below pytest's folder: a socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="freeze-proxy-"))
        try:
            self.cgroups = _cgroups(self.folder.name.rpartition("-")[2])
            self.socket = self.folder / "containerd.sock"
            self.channel = grpc.insecure_channel(
                f"unix://{self.socket}",
                options=[
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.min_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 200),
                ],
            )
            self.network = PodNetwork(self.folder)
            config = self.folder / "config.toml"
            self.snapshotter = _snapshotter(self.folder)
            text = _CONFIG.format(folder=self.folder, pause=archives.PAUSE, snapshotter=self.snapshotter)
            self.programs = {name: _runtime(name, self.folder, unified) for name in RUNTIMES}
            for name, runs in self.programs.items():
                text += _RUNTIME.format(
                    name=name,
                    program=runs,
                    folder=self.folder,
                    systemd=str(self.cgroups.driver == "systemd").lower(),
                )
            config.write_text(text)
            self.archive = self.folder / "images.tar"
            archives.write(self.archive)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        command = [program, "--config", str(config)]
        if unified and _hybrid():
            script = _UNIFIED.format(own=hierarchies()[""] / self.cgroups.name)
            command = ["sh", "-c", script, "sh", *command]
        self._daemon = Daemon("containerd", command, self.folder / "containerd.log", self._has_images)

    @property
    def pid(self) -> int:
        return self._daemon.pid

    @property
    def log(self) -> str:
        return self._daemon.log.read_text(errors="replace")

    def start(self) -> None:
        """Start, or start again; the images are there when this returns."""
        self._daemon.start()

    def kill(self) -> None:
        """SIGKILL; its containers go on."""
        self._daemon.end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; its containers go on."""
        self._daemon.end()

    def ensure(self) -> None:
        """Start it if a test has left it ended."""
        if not self._daemon.running:
            self.start()

    def call(self, method: str, service: str = "RuntimeService", within: float = 30.0, **fields: Any) -> Any:
        """A CRI call, by the name of its method, with the fields of its request; ``grpc.RpcError`` if it fails."""
        invoke = self.channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=MESSAGES[f"{method}Response"].FromString,
        )
        return invoke(MESSAGES[f"{method}Request"](**fields), timeout=within * FACTOR, wait_for_ready=True)

    def ctr(self, *arguments: str | Path) -> str:
        """containerd's own command line; returns what it prints."""
        command = ["ctr", "--address", self.socket, "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30 * FACTOR)
        assert done.returncode == 0, f"ctr {' '.join(map(str, arguments))}: {done.stderr.strip()}"
        return done.stdout

    def _has_images(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            found = [self._has_image(name) for name in (archives.PAUSE, archives.WORKLOAD)]
        except grpc.RpcError:
            return False  # the socket is there before CRI is
        if not any(found):
            self.ctr("images", "import", "--all-platforms", self.archive)
        return all(found)  # CRI hears of an import a moment later

    def _has_image(self, name: str) -> bool:
        answer = self.call("ImageStatus", "ImageService", within=2, image={"image": name})
        return bool(answer.image.id)

    def shim_sockets(self) -> list[Path]:
        """Where its shims listen, which is in a folder that all containerds of a machine share."""
        addresses = self.folder.glob("state/io.containerd.runtime.v2.task/*/*/address")
        return sorted({Path(file.read_text().removeprefix("unix://")) for file in addresses})

    def close(self) -> None:
        """End it with all its containers, and remove everything that it made."""
        self.channel.close()
        self._daemon.end(signal.SIGKILL)
        sockets = self.shim_sockets()
        end_processes_with(str(self.socket))  # the shims; containers no longer have anybody to restart them
        self.cgroups.close()
        for socket in sockets:
            with contextlib.suppress(FileNotFoundError):
                socket.unlink()
        until(lambda: not self.cgroups.paths(), "the cgroups are gone")
        self.network.down()
        remove_folder(self.folder)
