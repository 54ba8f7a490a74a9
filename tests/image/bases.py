"""Base images made here and now, of Debian's own packages: no registry of images is asked.

The runtime base is what a distroless image is: Python and the libraries that it loads, and nothing that could be a
shell. The builder base is the same with pip. Packages are kept in ``build/`` between runs.
"""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pip

from tests.support.cluster.dockerd import Dockerd
from tests.support.needs import need, need_program

ROOT = Path(__file__).resolve().parent.parent.parent
RUNTIME = "freeze-proxy.test/python:1"
BUILDER = "freeze-proxy.test/python-with-pip:1"

_PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libbz2-1.0",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "liblzma5",
    "libssl3",
    "libuuid1",
    "zlib1g",
)
_KEPT = ROOT / "build" / "debian"
_UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/applications", "usr/share/pixmaps")


def _packages() -> list[Path]:
    """The packages, fetched unless they have been before."""
    need_program("dpkg-deb", "dpkg")
    apt = need_program("apt-get", "apt")
    _KEPT.mkdir(parents=True, exist_ok=True)

    def found() -> list[Path]:
        return [file for name in _PACKAGES for file in sorted(_KEPT.glob(f"{name}_*.deb"))[-1:]]

    def fetch() -> bool:
        lacking = [name for name in _PACKAGES if not list(_KEPT.glob(f"{name}_*.deb"))]
        command = [apt, "-qq", "-o", "APT::Sandbox::User=root", "download", *lacking]
        return not lacking or subprocess.run(command, cwd=_KEPT, capture_output=True, timeout=60).returncode == 0

    if not fetch():  # the lists may be of another day, or none
        subprocess.run([apt, "-qq", "update"], capture_output=True, timeout=60)
        need(fetch(), f"Debian's packages of Python 3.11 cannot be fetched: apt-get download {' '.join(_PACKAGES)}.")
    return found()


def _unpack(root: Path) -> None:
    for package in _packages():
        subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=30)
    for name in _UNNEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    os.symlink("python3.11", root / "usr/bin/python3")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    # What ldconfig would make: without it the loader looks in the folders of its own for every library.
    subprocess.run(["ldconfig", "-r", root], check=True, timeout=30, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})


def make(dockerd: Dockerd, folder: Path) -> None:
    """Make both images and give them to this dockerd."""
    root, archive = folder / "root", folder / "root.tar"
    root.mkdir()
    _unpack(root)
    for name in (RUNTIME, BUILDER):
        if name == BUILDER:
            to = root / "usr/local/lib/python3.11/dist-packages/pip"
            shutil.copytree(Path(pip.__file__).parent, to, ignore=shutil.ignore_patterns("__pycache__"))
        with tarfile.open(archive, "w") as tar:
            tar.add(root, ".")
        dockerd.docker("import", str(archive), name)
        archive.unlink()
    shutil.rmtree(root)
