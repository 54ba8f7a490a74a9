"""Whether this process can do it on this machine: tried, not guessed.

What it needs: Linux 5.8 or later (the ring, and CAP_BPF), a cgroup v2 hierarchy, and CAP_BPF with CAP_NET_ADMIN, or
CAP_SYS_ADMIN in their place.
"""

import os
import select
import socket
import subprocess
import sys
import time

from freeze_proxy.ambient.assembly import Program, r0
from freeze_proxy.ambient.bpf import INGRESS, BpfError, LoadedProgram
from freeze_proxy.ambient.ring import Ring
from freeze_proxy.ambient.watcher import Watcher
from freeze_proxy.freezers import FreezeError, cgroup

_PATIENCE = 5.0
_LISTENER = """
import os, socket, sys
with open(sys.argv[1], "w") as file:
    file.write("0")
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


def obstacle() -> str | None:
    """A sentence that says what is in the way, or ``None``. Quick, and changes nothing."""
    place = cgroup.place("cgroup2")
    if place is None:
        return "There is no cgroup v2 hierarchy on this machine."
    if not os.access(os.path.join(place, "cgroup.procs"), os.W_OK):
        return f"No cgroup can be made in {place}: run freeze-proxy as root."
    try:
        Ring(os.sysconf("SC_PAGESIZE")).close()
        passing = Program()
        passing.set(r0, "=", 1)
        passing.exit()
        LoadedProgram(passing.code(), INGRESS, "freeze_try").close()
    except BpfError as error:
        return str(error)
    return None


def tried() -> float:
    """Seconds from a packet until it is noticed, for a process in a cgroup of its own. Raises ``FreezeError``."""
    path = cgroup.create("cgroup2", f"freeze-proxy-try-{os.getpid()}")
    watcher = watch = listener = None
    try:
        watcher = Watcher()
        files = os.path.join(path, "cgroup.procs")
        listener = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LISTENER, files], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert listener.stdout is not None
        said = listener.stdout.readline()
        if not said:
            raise FreezeError(f"No process could be moved into the cgroup {path}.")
        port = int(said)
        watch = watcher.watch(path, (port,), lambda _record: None, observe=True)
        watch.arm()
        poll = select.poll()
        poll.register(watcher.fd, select.POLLIN)
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE):
            if not poll.poll(_PATIENCE * 1e3):
                raise FreezeError("A packet for a process of a cgroup was not noticed.")
            return time.perf_counter() - begun
    finally:
        if watch is not None:
            watch.close()
        if watcher is not None:
            watcher.close()
        if listener is not None:
            listener.kill()
            listener.communicate()
        cgroup.remove(path)
