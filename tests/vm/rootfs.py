"""The virtual machine's root file system: Debian by debootstrap, with systemd, containerd, runc and crun, a kernel, and
what the tests import from Python's index.

It is made once and kept in the user's cache, in a folder named by a hash of all that goes into it. Nothing of the
checkout is in there: that is handed in at each start.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.vm import DIES_WITH_US, ROOT

RELEASE = "bookworm"
PYTHON = "3.11"
"""That release's."""

DEBIAN = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "linux-image-cloud-amd64"),
    *("containerd", "runc", "crun", "busybox-static", "python3", "iproute2", "procps"),
)
PYTHON_PACKAGES = ("grpcio", "h11", "h2", "httpx", "hypothesis", "pytest", "pytest-timeout", "websockets")
"""Of those in the extra ``dev``, the ones that tests of the node import; besides what freeze-proxy itself needs."""
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
"""What wheels may ask of a machine for that release of Debian to be one."""

CHECKOUT = "/checkout"
"""Where the machine has the checkout, and so freeze-proxy."""
PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"

DISK, CHECKOUT_DISK, RESULTS_DISK = "/dev/nvme0n1", "/dev/nvme0n2", "/dev/nvme0n3"
"""NVMe and ext4 are in Debian's kernel itself and need no module, so that there need be no initial file system."""
CONSOLE = "/dev/ttyS0"
UNIT = "freeze-proxy-tests.service"

_UNIT = f"""\
[Unit]
Description=The tests of freeze-proxy's checkout
Requires=dbus.service
After=dbus.service
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate

[Service]
Type=oneshot
Delegate=yes
ExecStart=/bin/mkdir -p {CHECKOUT}
ExecStart=/bin/tar --extract --no-same-owner --file {CHECKOUT_DISK} --directory {CHECKOUT}
ExecStart=/bin/sh -c 'cd {CHECKOUT} && exec python3 -m tests.vm.guest'
StandardInput=tty
StandardOutput=tty
TTYPath={CONSOLE}
Environment=HOME=/root TERM=dumb PYTHONUNBUFFERED=1
"""

_IMPORTS = "import grpc, hypothesis\n\ndef test():\n    pass\n"

# What a machine without a person, a network and a memory of its last run can do without.
_MASKED = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-kernel.socket"),
    *("systemd-udevd-control.socket", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-random-seed.service", "systemd-update-utmp.service", "systemd-journal-flush.service"),
    *("systemd-ask-password-console.path", "systemd-sysusers.service", "systemd-modules-load.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "modprobe@.service", "systemd-hwdb-update.service"),
)
_ROOM = 2 << 30
"""Bytes that are free on the disk; what is not written takes no space."""


def _requirements() -> list[str]:
    """Of freeze-proxy, and of its tests on a node, with the versions that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [line for line in extras["dev"] if _name(line) in PYTHON_PACKAGES]
    assert sorted(map(_name, wanted)) == sorted(PYTHON_PACKAGES), "The extra dev no longer has them all."
    return [*project["dependencies"], *extras["cluster"], *wanted]


def _name(requirement: str) -> str:
    return next(requirement[:at] for at, sign in enumerate(requirement + " ") if sign in "[<>=!~; ")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freeze-proxy"


class RootFs:
    """``image`` is the disk, ``kernel`` what boots from it."""

    def __init__(self) -> None:
        recipe = Path(__file__).read_bytes() + "\n".join(_requirements()).encode()
        self.folder = _cache() / f"vm-{hashlib.sha256(recipe).hexdigest()[:16]}"
        self.image = self.folder / "root.ext4"
        self.kernel = self.folder / "vmlinuz"

    def ensure(self) -> None:
        """Make it unless it is there. Only one process makes it, and what a killed one has left is removed."""
        cache = self.folder.parent
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "vm.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in cache.glob("vm-making-*"):
                shutil.rmtree(left)
            if not self.folder.exists():
                with tempfile.TemporaryDirectory(dir=cache, prefix="vm-making-") as making:
                    self._make(Path(making))
            os.utime(self.folder)
            self._forget(cache)

    def _make(self, making: Path) -> None:
        root, done = making / "root", making / "done"
        done.mkdir()
        with _step(f"debootstrap of {RELEASE}, three minutes or so"):
            # In namespaces of its own, so that nothing stays mounted or goes on, however we end.
            alone = [*DIES_WITH_US, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            _run(*alone, "debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN)}", RELEASE, root)
        with _step("packages of Python's"):
            where = ["--target", str(root / PACKAGES), "--no-compile", "--only-binary=:all:"]
            where += ["--python-version", PYTHON, *(f"--platform={each}" for each in PLATFORMS)]
            _run(
                sys.executable,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
                *where,
                *_requirements(),
            )
            (root / PACKAGES / "freeze-proxy.pth").write_text(f"{CHECKOUT}/src\n")
            _run("chroot", root, "python3", "-m", "compileall", "-q", f"/{PACKAGES}")
            # pytest compiles its plugins in a way of its own when they are first imported.
            (root / "test_imports.py").write_text(_IMPORTS)
            _run("chroot", root, "python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "/test_imports.py")
            (root / "test_imports.py").unlink()
        with _step("disk"):
            (kernel,) = (root / "boot").glob("vmlinuz-*")
            shutil.copy(kernel, done / self.kernel.name)
            _furnish(root)
            _thin_out(root)
            size = sum(file.lstat().st_size for file in root.rglob("*")) + _ROOM
            _run(
                "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, done / self.image.name, f"{size >> 20}M"
            )
        done.rename(self.folder)

    def _forget(self, cache: Path) -> None:
        """Those that nobody has used for a month."""
        for other in cache.glob("vm-????????????????"):
            if other.stat().st_mtime < time.time() - 30 * 86400:
                shutil.rmtree(other)


def _furnish(root: Path) -> None:
    units = root / "etc/systemd/system"
    (units / UNIT).write_text(_UNIT)
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "etc/hostname").write_text("node\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost node\n::1 localhost\n")
    (root / "etc/machine-id").write_text("f" * 32 + "\n")


def _thin_out(root: Path) -> None:
    for folder in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man", "boot"):
        shutil.rmtree(root / folder)


def _run(*command: str | Path) -> None:
    """Run it; what it says is seen if it fails."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\nThe root file system cannot be made: {command[0]} has failed.")


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"Making the root file system: {what} …", flush=True)
    begun = time.monotonic()
    yield
    print(f"    {time.monotonic() - begun:.0f} s", flush=True)
