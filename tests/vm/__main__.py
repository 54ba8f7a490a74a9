"""``python -m tests.vm``: the tests of the node in a virtual machine. ``make vm-test`` sets up what that needs."""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from tests.vm import DIES_WITH_US, ROOT, guest, selection
from tests.vm.machine import PROGRAM, Machine, TimeIsUp
from tests.vm.rootfs import RootFs

OUT = ROOT / "build" / "vm-test"
"""Where the results go."""
SLOWER = "10"
"""How much longer tests wait in there; see ``PATIENCE_FACTOR`` in ``tests/support/wait.py``."""
TEST_TIMEOUT = 300
"""Seconds for one test."""
_BOOT = 90
"""Seconds for the way from QEMU's start to the tests' and from their end to QEMU's."""


def main() -> int:
    """Boot, test, switch off; returns pytest's exit code."""
    told = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _check_machine()
    root = RootFs()
    root.ensure()
    with tempfile.TemporaryFile() as disk, tempfile.TemporaryFile() as results:
        if told.shell:
            _hand_in(disk, {"shell": True})
            with Machine(root, disk, results, person=True) as machine:
                machine.wait()
            return 0
        orders = {"pytest": _pytest(told.pytest), "environment": {"PATIENCE_FACTOR": SLOWER}, "within": told.within}
        _hand_in(disk, orders)
        with Machine(root, disk, results) as machine:
            try:
                _show(machine, told.within + _BOOT)
            except TimeIsUp:
                print(f"The machine has not ended within {told.within + _BOOT:.0f} s; it has been switched off.")
                return 1
        return _results(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--within", type=float, default=1200.0, metavar="SECONDS", help="after which the tests end")
    parser.add_argument("--shell", action="store_true", help="no tests but a shell in there; it is left with its end")
    parser.add_argument("pytest", nargs="*", help="tests and options of pytest's instead of the selection; after --")
    return parser.parse_args()


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise SystemExit("Making the virtual machine's file system needs root.")
    programs = (PROGRAM, "debootstrap", "mke2fs", "git", "unshare", DIES_WITH_US[0])
    if missing := [name for name in programs if shutil.which(name) is None]:
        raise SystemExit(f"Not installed here: {', '.join(missing)}. scripts/setup-system vm installs them on Debian.")


def _pytest(chosen: Sequence[str]) -> list[str]:
    """pytest's arguments in there."""
    options = ["-v", "--color=no", "--durations=10", "-p", "no:cacheprovider", "-p", "tests.vm.telling"]
    options += [f"--timeout={TEST_TIMEOUT}"]
    return [*options, *(chosen or selection.arguments())]


def _hand_in(disk: IO[bytes], orders: dict[str, object]) -> None:
    """Write an archive of the checkout as it stands, but for what git ignores, with the orders.

    Of what is ignored, bytecode is handed in, too: what this Python and its pytest have made, those in there can use if
    they are of the same versions, and need not make it ten times slower.
    """
    subprocess.run([sys.executable, "-m", "compileall", "-q", "src", "tests"], cwd=ROOT, check=True)
    subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *selection.CHOSEN],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with tarfile.open(fileobj=disk, mode="w") as tar:
        for path in (ROOT / name for name in listed.split("\0") if name):
            if path.exists():  # it may have been deleted, and git not yet told
                tar.add(path, path.relative_to(ROOT), recursive=False)
            if path.suffix == ".py":
                for made in (path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"):
                    tar.add(made, made.relative_to(ROOT))
        data = json.dumps(orders).encode()
        entry = tarfile.TarInfo(guest.ORDERS)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    disk.flush()


def _show(machine: Machine, within: float) -> None:
    """Print what the machine prints, each line with the seconds since its start, and keep it."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    begun = time.monotonic()
    with (OUT / "console.log").open("w") as log:
        for line in machine.console(within):
            text = f"{time.monotonic() - begun:5.0f} s  {line}"
            print(text, flush=True)
            log.write(text + "\n")


def _results(disk: IO[bytes]) -> int:
    """Unpack what the machine has handed out; returns the tests' exit code."""
    disk.seek(0)
    try:
        with tarfile.open(fileobj=disk) as tar:
            for entry in tar:
                if entry.isfile() and "/" not in entry.name:
                    file = tar.extractfile(entry)
                    assert file is not None
                    (OUT / entry.name).write_bytes(file.read())
        code = int((OUT / guest.CODE).read_text())
    except (tarfile.ReadError, FileNotFoundError):
        raise SystemExit("The machine has ended without results; what it printed last says why.") from None
    print(f"Results are in {OUT.relative_to(ROOT)}: {', '.join(sorted(each.name for each in OUT.iterdir()))}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
