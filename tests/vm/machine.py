"""A virtual machine that runs once: QEMU's software emulation, a root file system, and two disks to hand something in
and out.

What is written to the root file system is forgotten, the other disks are files without a name, and QEMU ends with who
has started it: whatever happens, nothing is left.
"""

import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

from tests.vm import DIES_WITH_US
from tests.vm.rootfs import CONSOLE, DISK, UNIT, RootFs

PROGRAM = "qemu-system-x86_64"
CPU = "Nehalem"
"""The oldest that has all that Debian's programs may use: what is newer, as wide registers, is slow to emulate."""
MEMORY = 2048
"""MiB."""
_ROOM = 32 << 20
"""Bytes for results."""
_KERNEL = (
    *(f"root={DISK}", "rw", f"console={CONSOLE.removeprefix('/dev/')}", "quiet", "loglevel=3", "panic=-1"),
    # Nothing in there is to be guarded against the rest of it: a third of the time of a system call.
    *("mitigations=off", "lsm=landlock", "audit=0", "init_on_alloc=0", "transparent_hugepage=always"),
    # QEMU's is as good as the host's; the kernel would take a clock instead that is eight times slower.
    *("clocksource=tsc", "tsc=reliable"),
    *("systemd.unified_cgroup_hierarchy=1", f"systemd.unit={UNIT}", "systemd.show_status=no"),
)


class TimeIsUp(Exception):
    """The machine has not ended within its time."""


class Machine:
    """To be used in a ``with``."""

    def __init__(self, root: RootFs, handed_in: IO[bytes], results: IO[bytes], person: bool = False) -> None:
        """``handed_in``: its second disk. ``results``: an empty file, its third. ``person``: has this terminal."""
        # A disk is made of whole blocks.
        handed_in.truncate(-(-handed_in.seek(0, os.SEEK_END) // 4096) * 4096)
        results.truncate(_ROOM)
        self._disks = [handed_in, results]
        drives = [f"file={root.image},snapshot=on,cache=unsafe"]
        drives += [f"file=/dev/fd/{disk.fileno()},file.locking=off" for disk in self._disks]
        self._command = [
            *DIES_WITH_US,
            *(PROGRAM, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", CPU),
            *("-smp", "2", "-m", str(MEMORY), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(root.kernel), "-append", " ".join(_KERNEL)),
            *("-serial", "mon:stdio" if person else "stdio", "-device", "nvme,id=disks,serial=disks"),
        ]
        for number, drive in enumerate(drives, 1):
            self._command += ["-drive", f"id=disk{number},if=none,format=raw,{drive}"]
            self._command += ["-device", f"nvme-ns,bus=disks,drive=disk{number},nsid={number}"]
        self._person = person
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        mute = None if self._person else subprocess.DEVNULL
        self._process = subprocess.Popen(
            self._command,
            stdin=mute,
            stdout=None if self._person else subprocess.PIPE,
            pass_fds=[disk.fileno() for disk in self._disks],
        )
        return self

    def wait(self) -> None:
        """Until the machine is switched off."""
        assert self._process is not None
        self._process.wait()

    def console(self, within: float) -> Iterator[str]:
        """The lines that it prints, as they come, until it is switched off; ``TimeIsUp`` after so many seconds."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + within
        fd, rest = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeIsUp
                data = os.read(fd, 1 << 16)
                *lines, rest = (rest + data).replace(b"\r", b"").split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
                if not data:
                    break
        self._process.wait(10)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
