"""The programs of a cluster: Kubernetes' and Knative's are built from Go modules once, the rest is Debian's.

Two modules name the versions, since both want others of what they depend on: ``kubernetes/go.mod`` and
``knative/go.mod``. What was built is kept outside the checkout, by a hash of what it was built from.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
KNATIVE = ("activator", "autoscaler", "controller", "queue", "webhook")
SERVER = "server"
"""The server that the tests speak to, ``knative/server``: it needs no module that Knative does not need."""
_VERSION = {"kubernetes": "k8s.io/component-base/version.gitVersion"}


class Missing(Exception):
    """A program that cannot be had, in a sentence for whom runs the tests."""


def cache() -> Path:
    """The folder for what outlives a checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "freeze-proxy" / "cluster"


def _go(module: Path, *arguments: str) -> str:
    go = shutil.which("go")
    if go is None:
        raise Missing("Go is not installed: the tests build Kubernetes and Knative. See https://go.dev/doc/install.")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    command = [go, *arguments]
    done = subprocess.run(command, cwd=module, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command[:2])} in {module} failed; what it said is above.")
    return done.stdout


def digest(*files: Path) -> str:
    """A short hash of what is in these files, and of their names."""
    hashed = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        hashed.update(f"{file.name} {len(content)}\n".encode() + content)
    return hashed.hexdigest()[:16]


def version(module: str, of: str) -> str:
    """The version of a required module, as ``v1.34.4``."""
    return _go(HERE / module, "list", "-m", "-f={{.Version}}", of).strip()


def source(module: str, of: str) -> Path:
    """The folder in which Go keeps the sources of a required module; they are fetched if they are not there."""
    return Path(json.loads(_go(HERE / module, "mod", "download", "-json", of))["Dir"])


def _build(module: str, packages: list[str], say: Callable[[str], None]) -> Path:
    """The folder with the programs of these packages."""
    folder = HERE / module
    sources = [folder / "go.mod", folder / "go.sum", *sorted(folder.glob("*/*.go"))]
    kept = cache() / f"{module}-{digest(*sources)}"
    names = [package.rpartition("/")[2] for package in packages]
    if all((kept / name).exists() for name in names):
        return kept
    say(f"Building {', '.join(names)}: minutes, once.")
    cache().mkdir(parents=True, exist_ok=True)
    # Renamed when complete: a build that was interrupted leaves nothing that would be taken for one.
    unfinished = tempfile.mkdtemp(dir=cache(), prefix="building-")
    try:
        flags = "-s -w"
        if module in _VERSION:
            flags += f" -X {_VERSION[module]}={version(module, 'k8s.io/kubernetes')}"
        _go(folder, "build", "-ldflags", flags, "-o", f"{unfinished}/", *packages)
        Path(unfinished).chmod(0o755)
        shutil.rmtree(kept, ignore_errors=True)
        Path(unfinished).rename(kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kept


def kubernetes(say: Callable[[str], None]) -> Path:
    """The folder with Kubernetes' programs."""
    return _build("kubernetes", [f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES], say)


def knative(say: Callable[[str], None]) -> Path:
    """The folder with Knative's programs and the tests' server."""
    return _build("knative", [*(f"knative.dev/serving/cmd/{name}" for name in KNATIVE), f"./{SERVER}"], say)


if __name__ == "__main__":
    try:
        print(kubernetes(print), knative(print))
    except Missing as error:
        sys.exit(str(error))
