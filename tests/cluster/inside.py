"""The first process of the node: it has namespaces of its own, sets them up, and runs the tests in them.

``python -m tests.cluster.inside FOLDER COMMAND…``, started by ``unshare`` with a mount, a network and a PID namespace
that are new. So nothing of the machine is written to: what the node has in /run, /var/lib and /var/log is in FOLDER,
the kubelet's sysctls are files, and addresses, routes and firewall rules are the namespace's. When this process ends,
the kernel ends all others of the namespace.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.cluster.cgroups import Cgroups

NODE_ADDRESS = "10.99.0.1"
FOLDERS = {"/run": "run", "/var/lib": "lib", "/var/log": "logs/node"}
"""What of the machine is covered, and by which of our own folders."""
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What a kubelet would set, and everybody on the machine would get."""


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _cover(folder: Path) -> None:
    """Lay folders of the test's own over those of the machine that programs of a node write to."""
    for place, name in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        _call("mount", "--bind", folder / name, place)
    for name in SYSCTLS:
        setting = Path("/proc/sys", name)
        copy = folder / "sysctls" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(setting.read_text())
        _call("mount", "--bind", copy, setting)
    # etcd writes every change to disk before it answers, and nobody needs them tomorrow.
    (folder / "etcd").mkdir()
    _call("mount", "-t", "tmpfs", "etcd", folder / "etcd")
    # As systemd makes it at the boot of a node; it is shared with nobody outside.
    _call("mount", "--make-rshared", "/")


def _connect() -> None:
    """The loopback, and an address for the node on a link that goes nowhere."""
    for line in (
        "link set lo up",
        "link add node0 type veth peer name nowhere",
        f"addr add {NODE_ADDRESS}/24 dev node0",
        "link set node0 up",
        "link set nowhere up",
        "route add default via 10.99.0.254",
    ):
        _call("ip", *line.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _end_all(cgroup: str) -> None:
    """Kill all other processes. What is frozen dies when it is thawed, and not before."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    Cgroups(cgroup).end()


def main(folder: Path, command: list[str]) -> int:
    """Run the command; its exit code. All that is left of the others by then is killed."""
    _cover(folder)
    _connect()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    while True:  # the first process of a PID namespace inherits the orphans
        pid, status = os.wait()
        if pid == process.pid:
            _end_all(os.environ["CLUSTER_CGROUP"])
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
