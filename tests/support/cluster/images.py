"""The container images of freeze-proxy, built on bases of Debian's packages in a dockerd of the tests' own."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.image import bases
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.dockerd import Dockerd
from tests.support.needs import need

TARGETS = ("sidecar", "daemon", "webhook")


class Images:
    """The images of all targets, in a dockerd of the tests' own. ``archive`` has them, too."""

    def __init__(self, dockerd: Dockerd, folder: Path) -> None:
        self.dockerd = dockerd
        self.archive = folder / "images.tar"
        bases.make(dockerd, folder)
        command = [f"{bases.ROOT}/scripts/image", "--python", sys.executable, "--save", str(self.archive)]
        command += ["--builder", bases.BUILDER, "--runtime", bases.RUNTIME, "--name", "freeze-proxy.test", "--tag", "1"]
        environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{dockerd.socket}",
            "DOCKER_CONFIG": str(dockerd.folder / "client"),
        }
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    @staticmethod
    def name(target: str) -> str:
        return f"freeze-proxy.test-{target}:1"

    def inspect(self, target: str) -> Any:
        return json.loads(self.dockerd.docker("image", "inspect", self.name(target)))[0]

    def files(self, target: str) -> list[tarfile.TarInfo]:
        """What is in the image's file system."""
        identity = self.dockerd.docker("create", self.name(target)).strip()
        archive = self.archive.with_name(f"{target}.tar")
        try:
            self.dockerd.docker("export", f"--output={archive}", identity)
            with tarfile.open(archive) as tar:
                return tar.getmembers()
        finally:
            archive.unlink(missing_ok=True)
            self.dockerd.docker("rm", identity)


@contextmanager
def built(folder: Path) -> Iterator[Images]:
    """All of them, in a dockerd on a containerd, for as long as this lasts."""
    version = sys.version_info[:2]
    need(
        version == (3, 11),
        "The images are tested on Debian 12's Python 3.11, and what they depend on is fetched for this Python.",
    )
    containerd = Containerd()
    try:
        containerd.start()
        dockerd = Dockerd(containerd)
        try:
            dockerd.start()
            yield Images(dockerd, folder)
        finally:
            dockerd.close()
    finally:
        containerd.close()
