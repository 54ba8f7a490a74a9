"""The images of the cluster, made here and now: no registry is asked. They are kept beside the programs."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from freeze_proxy import __version__
from tests.cluster import programs
from tests.image import bases
from tests.support.cluster import archives
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.dockerd import Dockerd

ROOT = bases.ROOT
PAUSE = archives.PAUSE
PYTHON = bases.RUNTIME
REGISTRY = "freeze-proxy.test"
OURS = tuple(f"freeze-proxy-{part}:{__version__}" for part in ("daemon", "webhook", "sidecar"))
_DAY = 86400
_NOBODY = "65532:65532"


def image(program: str) -> str:
    """The name of the image with one of Knative's programs, or with the tests' server."""
    return f"{REGISTRY}/{program}:1"


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _write(path: Path, files: Mapping[str, Path], entrypoints: Mapping[str, Sequence[str]]) -> None:
    """Write images that share one layer with these files, in the form that ``docker save`` gives them."""
    with tempfile.TemporaryFile() as layer:
        with tarfile.open(fileobj=layer, mode="w") as tar:
            for name, file in files.items():
                _add(tar, name, file.read_bytes(), 0o755)
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        manifest = []
        with tarfile.open(path, "w") as tar:
            entry = tarfile.TarInfo(f"{digest}/layer.tar")
            entry.size = layer.seek(0, io.SEEK_END)
            layer.seek(0)
            tar.addfile(entry, layer)
            for name, entrypoint in entrypoints.items():
                config = json.dumps(
                    {
                        "architecture": "amd64",
                        "os": "linux",
                        "config": {"Entrypoint": entrypoint, "User": _NOBODY, "WorkingDir": "/"},
                        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                        "history": [{"created": "1970-01-01T00:00:00Z"}],
                    }
                ).encode()
                named = f"{hashlib.sha256(config).hexdigest()}.json"
                _add(tar, named, config)
                manifest.append({"Config": named, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]})
            _add(tar, "manifest.json", json.dumps(manifest).encode())


@contextlib.contextmanager
def _dockerd() -> Iterator[Dockerd]:
    containerd = Containerd()
    try:
        containerd.start()
        dockerd = Dockerd(containerd)
        try:
            dockerd.start()
            yield dockerd
        finally:
            dockerd.close()
    finally:
        containerd.close()


def _build_ours(archive: Path) -> None:
    """Build them as a user would, by scripts/image, on bases of Debian's packages."""
    with _dockerd() as dockerd, tempfile.TemporaryDirectory() as folder:
        bases.make(dockerd, Path(folder))
        command = [f"{ROOT}/scripts/image", "--python", sys.executable]
        command += ["--builder", bases.BUILDER, "--runtime", bases.RUNTIME]
        host = f"unix://{dockerd.socket}"
        environment = {**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": str(dockerd.folder / "client")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        if done.returncode != 0:
            raise programs.Missing(f"The images cannot be built: {done.stdout}{done.stderr}")
        dockerd.docker("save", f"--output={archive}", *OURS, PYTHON, within=60)


def _kept(name: str, sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """An archive that is made once from these sources; those of another day go."""
    archive = programs.cache() / f"{name}-{programs.digest(*sources)}.tar"
    if not archive.exists():
        unfinished = archive.with_suffix(f".{os.getpid()}")
        try:
            make(unfinished)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        for old in programs.cache().glob(f"{name}-*.tar"):
            if old.stat().st_mtime < time.time() - _DAY:  # younger ones may be another checkout's
                old.unlink(missing_ok=True)
        unfinished.rename(archive)
    return archive


def ours(say: Callable[[str], None]) -> Path:
    """The archive with freeze-proxy's three images, and the Python that the example runs on."""

    def make(archive: Path) -> None:
        say("Building freeze-proxy's images.")
        _build_ours(archive)

    sources = [ROOT / "pyproject.toml", ROOT / "Dockerfile", *sorted((ROOT / "src").rglob("*.py"))]
    sources += [ROOT / "scripts/image", ROOT / "scripts/image_contents.py", Path(bases.__file__)]
    return _kept("images", sources, make)


def knative(built: Path) -> Path:
    """The archive with Knative's images and that of the tests' server, of the programs in this folder."""
    names = (*programs.KNATIVE, programs.SERVER)

    def make(archive: Path) -> None:
        files = {f"ko-app/{name}": built / name for name in names}
        _write(archive, files, {image(name): [f"/ko-app/{name}"] for name in names})

    return _kept("knative", [Path(__file__), *(built / name for name in names)], make)


def pause(archive: Path) -> None:
    """Write the archive with what holds a pod's namespaces open."""
    archives.write(archive)
