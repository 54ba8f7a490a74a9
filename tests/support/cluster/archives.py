"""Container images made here and now, of nothing but Debian's static busybox: no registry is asked."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.needs import need, need_program

PAUSE = "freeze-proxy.test/pause:1"
WORKLOAD = "freeze-proxy.test/workload:1"

_SETTLE = 1_000_000
"""Seconds for which the pause container sleeps: for ever."""


def _busybox() -> Path:
    path = Path(need_program("busybox", "busybox-static"))
    need(b"/lib64/ld-linux" not in path.read_bytes(), f"{path} is not static (Debian package busybox-static).")
    return path


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, content: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
    tar.addfile(entry, io.BytesIO(content))


def _layer() -> bytes:
    """A file system with busybox, its applets, and the folders that runtimes mount on."""
    busybox = _busybox()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True, timeout=10).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "dev", "etc", "proc", "sys", "run", "ticks"):
            _add(tar, folder, tarfile.DIRTYPE, 0o755)
        _add(tar, "tmp", tarfile.DIRTYPE, 0o1777)
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
    return out.getvalue()


def write(path: Path) -> None:
    """Write both images into one archive as ``docker save`` makes it; containerd and dockerd both read that."""
    layer = _layer()
    digest = hashlib.sha256(layer).hexdigest()
    commands: dict[str, Sequence[str]] = {PAUSE: ["/bin/sleep", str(_SETTLE)], WORKLOAD: ["/bin/sh"]}
    manifest = []
    with tarfile.open(path, "w") as tar:
        _add(tar, f"{digest}/layer.tar", tarfile.REGTYPE, 0o644, layer)
        for name, command in commands.items():
            config = json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "created": "1970-01-01T00:00:00Z",
                    "config": {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"},
                    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                    "history": [{"created": "1970-01-01T00:00:00Z"}],
                }
            ).encode()
            file = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(tar, file, tarfile.REGTYPE, 0o644, config)
            manifest.append({"Config": file, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]})
        _add(tar, "manifest.json", tarfile.REGTYPE, 0o644, json.dumps(manifest).encode())
