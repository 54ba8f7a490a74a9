"""``freeze-proxy doctor``: checks whether a daemon with these settings would work on this node, and says what to do.

What can be tried is tried: a process of its own, in a cgroup of its own, is frozen and thawed, and removed with it.
"""

import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial

from freeze_proxy.ambient.obstacles import obstacle, tried
from freeze_proxy.daemon import cri, places
from freeze_proxy.daemon.settings import Settings
from freeze_proxy.freezers import FreezeError, Freezer, cgroup
from freeze_proxy.freezers.places import CGROUP2, CPU, FREEZER, Mount, mounts_in, standing
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address

_TRIES = 20
"""How often a freeze and a thaw are tried."""
_PATIENCE = 2.0
"""Seconds for one of them."""
_BUSY = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\nwhile True: pass"
"""Busy, for one that sleeps is frozen where it is; and not for long, should all else fail. The image has no shell."""
_V2_FREEZES_SINCE = (5, 2)
"""The kernel that brought ``cgroup.freeze``."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``works``: ``None`` where that is no question. ``needed``: without it, no daemon.

    ``advice`` is a sentence where something does not work.
    """

    what: str
    found: str
    works: bool | None = None
    needed: bool = True
    advice: str = ""


def run(settings: Settings, as_json: bool = False) -> int:
    """Check everything and print it; returns 0 if all that is needed works, otherwise 1."""
    findings = asyncio.run(examine(settings))
    healthy = all(finding.works is not False or not finding.needed for finding in findings)
    if as_json:
        print(json.dumps({"works": healthy, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(findings, healthy)
    return 0 if healthy else 1


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which a reader wants them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounted = mounts_in(file.read())
    findings = [_rights(), _kernel(mounted), _hierarchies(mounted), _driver(mounted)]
    by_cgroup = _freezing(mounted)
    asked, name = await _runtime(settings)
    # In `auto`, what the one way cannot do, the other does.
    by_runtime = settings.freezer not in ("auto", "cgroup") or (settings.freezer == "auto" and bool(name))
    findings += [
        Finding(by_cgroup.what, by_cgroup.found, by_cgroup.works, not by_runtime, by_cgroup.advice),
        _throttling(mounted),
        _ambient(settings.ambient),
        *asked,
        _way(settings.freezer, bool(by_cgroup.works), name),
        _state(settings.state_dir),
        *await _ports(settings.listen, settings.health_listen),
        await _api_server(settings),
    ]
    return findings


# The kernel and its cgroups.


def _rights() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", "root", True)
    return Finding("user", f"UID {os.geteuid()}", False, advice="Run it as root: containers belong to other users.")


def _kernel(mounted: list[Mount]) -> Finding:
    release = platform.release()
    if any(FREEZER in mount.holds for mount in mounted):
        return Finding("kernel", release, True)
    works = kernel(release) >= _V2_FREEZES_SINCE
    return Finding("kernel", release, works, advice="" if works else "cgroup v2 freezes from Linux 5.2 on: update it.")


def kernel(release: str) -> tuple[int, int]:
    """The first two numbers of a kernel's release; zeros for what is none."""
    parts = [*release.replace("-", ".").split("."), "", ""]
    major, minor = (int(part) if part.isdecimal() else 0 for part in parts[:2])
    return major, minor


def layout(mounted: list[Mount]) -> str:
    """``v1``, ``hybrid``, ``v2``, or nothing where no hierarchy is mounted."""
    v1 = any(CGROUP2 not in mount.holds and FREEZER in mount.holds for mount in mounted)
    v2 = any(CGROUP2 in mount.holds for mount in mounted)
    return "hybrid" if v1 and v2 else "v1" if v1 else "v2" if v2 else ""


_LAYOUTS = {
    "v1": "v1, by the freezer controller",
    "hybrid": "hybrid: v1 with the freezer controller, and v2 beside it; containers freeze by v1, which runtimes read",
    "v2": "v2, by cgroup.freeze",
}


def _hierarchies(mounted: list[Mount]) -> Finding:
    kind = layout(mounted)
    if kind:
        return Finding("cgroups", _LAYOUTS[kind], True)
    advice = "Mount the node's /sys/fs/cgroup into the daemon's container."
    return Finding("cgroups", "none are mounted here", False, advice=advice)


def _points(mounted: list[Mount], hierarchy: str) -> list[str]:
    return [mount.point for mount in mounted if hierarchy in mount.holds]


_PODS = {"kubepods.slice": "systemd", "kubepods": "cgroupfs", "kubelet.slice": "systemd", "kubelet": "cgroupfs"}
"""The kubelet's topmost cgroup, at the root or, in kind, one below it; it tells the driver."""


def _driver(mounted: list[Mount]) -> Finding:
    for hierarchy in (FREEZER, CGROUP2):
        for point in _points(mounted, hierarchy):
            for name, driver in _PODS.items():
                if os.path.isdir(os.path.join(point, name)):
                    return Finding("cgroup driver", f"{driver} ({os.path.join(point, name)})")
    return Finding("cgroup driver", "no kubelet's cgroups here; either one will do")


# Trying it.


@contextmanager
def _subject(hierarchy: str) -> Iterator[str]:
    """A cgroup with one process, below the one that this is in; both removed at the end. Raises ``FreezeError``."""
    parent = standing(hierarchy)
    if parent is None:
        raise FreezeError("This process does not see its own cgroup: mount the node's /sys/fs/cgroup, writable.")
    path = os.path.join(parent, f"freeze-proxy-doctor-{os.getpid()}")
    try:
        os.mkdir(path)
    except OSError as error:
        raise FreezeError(
            f"No cgroup can be made in {parent}: {error.strerror}. Run it as root and, in a container, with the node's "
            "/sys/fs/cgroup mounted writable."
        ) from error
    process = None
    try:
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BUSY], stdin=subprocess.DEVNULL)
        try:
            with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(process.pid))
        except OSError as error:
            raise FreezeError(f"No process can be moved to {path}: {error.strerror}.") from error
        yield path
    finally:
        if process is not None:
            cgroup.kill(path)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        cgroup.remove(path)


def _freezing(mounted: list[Mount]) -> Finding:
    hierarchy = FREEZER if layout(mounted) in ("v1", "hybrid") else CGROUP2
    what = "freezing by cgroup"
    reason = places.unwritable()
    if reason:
        return Finding(what, "cannot be written", False, advice=reason)
    try:
        with _subject(hierarchy) as path:
            freezer: Freezer = cgroup.Cgroup1Freezer(path) if hierarchy == FREEZER else cgroup.Cgroup2Freezer(path)
            try:
                freezes, thaws = _tried(freezer)
            finally:
                freezer.thaw()
                freezer.close()
    except FreezeError as error:
        return Finding(what, "does not work", False, advice=str(error))
    found = (
        f"tried in {os.path.dirname(path)}: frozen in {statistics.median(freezes) * 1e3:.2f} ms, "
        f"thawed in {statistics.median(thaws) * 1e3:.2f} ms"
    )
    return Finding(what, found, True)


def _tried(freezer: Freezer) -> tuple[list[float], list[float]]:
    freezes, thaws = [], []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        standing = freezer.freeze()
        while not standing:
            if time.perf_counter() > begun + _PATIENCE:
                raise FreezeError(f"{freezer.where} does not stand still within {_PATIENCE:g} s of being frozen.")
            time.sleep(0.0001)
            standing = freezer.frozen()
        frozen = time.perf_counter()
        freezer.thaw()
        thaws.append(time.perf_counter() - frozen)
        freezes.append(frozen - begun)
        if freezer.still():
            raise FreezeError(f"{freezer.where} stays frozen though it has been thawed: is a cgroup above it frozen?")
    return freezes, thaws


def _throttling(mounted: list[Mount]) -> Finding:
    what = "cpu controller, for the mode throttle"
    advice = "Enable the cpu controller for containers; the mode freeze does without."
    if _points(mounted, CPU):
        try:
            with _subject(CPU) as path:
                freezer = cgroup.ThrottleFreezer(path)
                try:
                    freezer.freeze()
                    freezer.thaw()
                finally:
                    freezer.close()
        except FreezeError as error:
            return Finding(what, "does not work", False, False, str(error))
        return Finding(what, "v1, tried", True, False)
    for point in _points(mounted, CGROUP2):
        with suppress(OSError), open(os.path.join(point, "cgroup.subtree_control"), encoding="ascii") as file:
            if "cpu" in file.read().split():
                return Finding(what, f"v2, enabled in {point}", True, False)
    return Finding(what, "none", False, False, advice)


# The runtime and its containers.


def _ambient(needed: bool) -> Finding:
    what = "ambient, without relay and sidecar"
    reason = obstacle()
    if reason is None:
        try:
            return Finding(what, f"tried: a packet is noticed in {tried() * 1e3:.2f} ms", True, needed)
        except FreezeError as error:
            reason = str(error)
    needs = "It needs Linux 5.8, cgroup v2, and CAP_BPF with CAP_NET_ADMIN or CAP_SYS_ADMIN; the relay does without."
    return Finding(what, "does not work", False, needed, f"{reason} {needs}")


async def _runtime(settings: Settings) -> tuple[list[Finding], str]:
    what = "container runtime"
    runtime = cri.Runtime(settings.runtime_socket)
    there = [path for path in cri.SOCKETS if os.path.exists(path)]
    sockets = Finding("runtime sockets", ", ".join(there) or "none at the usual places")
    try:
        try:
            name, version = await runtime.version()
        except cri.RuntimeAway as reason:
            return [sockets, Finding(what, "does not answer", False, advice=str(reason))], ""
        found = f"{name} {version} at {runtime.identity()[1]}, by CRI v1"
        return [sockets, Finding(what, found, True), await _containers(runtime)], name
    finally:
        await runtime.close()


async def _containers(runtime: cri.Runtime) -> Finding:
    """Whether those that the runtime tells of are found among the processes and cgroups that are in sight."""
    what = "containers"
    try:
        pods = await runtime.everybody()
    except cri.RuntimeAway as reason:
        return Finding(what, "cannot be listed", False, advice=str(reason))
    containers = [container for pod in pods for container in pod.containers]
    if not containers:
        return Finding(what, f"none, in {_counted(len(pods), 'pod')}")
    seen = [container for container in containers if places.holds(container.pid, container.id)]
    writable, why = 0, ""
    for container in seen:
        try:
            places.by_cgroup(container.id, container.pid, "freeze").close()
            writable += 1
        except FreezeError as error:
            why = str(error)
    found = (
        f"{len(containers)} in {_counted(len(pods), 'pod')}; "
        f"processes found of {len(seen)}, cgroups writable of {writable}"
    )
    if not seen:
        why = "The node's processes are out of sight: give the daemon's pod hostPID: true."
    return Finding(what, found, bool(seen), advice=why if writable < len(containers) else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _way(wanted: str, by_cgroup: bool, runtime: str) -> Finding:
    what = f"how containers will be frozen (--freezer {wanted})"
    if wanted in ("auto", "cgroup") and by_cgroup:
        return Finding(what, "by writing their cgroups", True)
    if wanted == "cgroup":
        return Finding(what, "not at all", False, advice="See freezing by cgroup.")
    kind = places.kind_of(runtime) if wanted == "auto" else wanted
    if kind is None:
        return Finding(what, "not at all", False, advice="See freezing by cgroup and container runtime.")
    if kind in ("containerd", "crio") and places.kind_of(runtime) == kind:
        return Finding(what, f"by asking {runtime}, which takes milliseconds", True)
    socket_path = places.USUAL[kind]
    if os.access(socket_path, os.W_OK):
        return Finding(what, f"by asking {kind} at {socket_path}, which takes milliseconds", True)
    return Finding(
        what, "not at all", False, advice=f"{socket_path} is not there or cannot be used: is {kind} running?"
    )


# What the daemon itself needs.


def _state(path: str) -> Finding:
    what = "state folder"
    parent = path
    while not os.path.isdir(parent) and parent != os.path.dirname(parent):
        parent = os.path.dirname(parent)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        advice = f"Make {path} writable for the daemon, or name another folder with --state-dir."
        return Finding(what, f"{parent}: {error.strerror}", False, advice=advice)
    return Finding(what, path if parent == path else f"{path}, can be made in {parent}", True)


async def _ports(control: Address, health: Address) -> list[Finding]:
    running = await asyncio.to_thread(_healthy, health)
    return [
        _port("port for pods", control, "--listen", running),
        _port("port for health and metrics", health, "--health-listen", running),
    ]


def _port(what: str, address: Address, option: str, running: bool) -> Finding:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        if running:
            return Finding(what, f"{written(address)}: the daemon is running", True)
        return Finding(
            what, f"{written(address)}: {error.strerror}", False, advice=f"Choose another address with {option}."
        )
    return Finding(what, f"{written(address)} is free", True)


def _healthy(address: Address) -> bool:
    """Whether a daemon answers at this address."""
    try:
        with socket.create_connection(address, timeout=1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n")
            heard = b""
            while len(heard) < 4096 and (data := connection.recv(4096)):
                heard += data
    except OSError:
        return False
    return heard.startswith(b"HTTP/1.1 200") and heard.endswith(b'{"status": "ok"}')


async def _api_server(settings: Settings) -> Finding:
    """Whether tokens can be reviewed: the API server is asked what it would allow us."""
    from lightkube import AsyncClient
    from lightkube.models.authorization_v1 import (
        NonResourceAttributes,
        ResourceAttributes,
        SelfSubjectAccessReviewSpec,
    )
    from lightkube.resources.authorization_v1 import SelfSubjectAccessReview

    from freeze_proxy.apiserver import ApiServer, NotConfigured, Unreachable

    what = "API server"
    if settings.kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        found = "not checked: this does not run in a pod, and no --kubeconfig is given"
        return Finding(what, found, None, False)
    try:
        server = ApiServer(settings.kubeconfig, settings.context)
    except NotConfigured as reason:
        return Finding(what, "not configured", False, advice=str(reason))
    if settings.identity == "jwks":
        path = NonResourceAttributes(path="/openid/v1/jwks", verb="get")
        wanted = {"get /openid/v1/jwks": SelfSubjectAccessReviewSpec(nonResourceAttributes=path)}
    else:
        reviews = ResourceAttributes(group="authentication.k8s.io", resource="tokenreviews", verb="create")
        wanted = {"create tokenreviews": SelfSubjectAccessReviewSpec(resourceAttributes=reviews)}
    if settings.ambient:
        for resource in ("pods", "namespaces"):
            for verb in ("list", "watch"):
                attributes = ResourceAttributes(group="", resource=resource, verb=verb)
                wanted[f"{verb} {resource}"] = SelfSubjectAccessReviewSpec(resourceAttributes=attributes)
    client = AsyncClient(config=server.config, trust_env=False, transport=server.transport())

    async def allowed(spec: SelfSubjectAccessReviewSpec) -> bool:
        answer = await client.create(SelfSubjectAccessReview(spec=spec))
        return answer.status is not None and answer.status.allowed

    grants = "create selfsubjectaccessreviews"
    try:
        for grant, spec in wanted.items():
            if not await server.call(partial(allowed, spec), "say what the daemon may do", grants):
                advice = f"Grant the daemon's service account the permission to {grant}."
                return Finding(what, f"{server.address}; we may not {grant}", False, advice=advice)
    except Unreachable as reason:
        return Finding(what, f"{server.address} does not answer", False, advice=str(reason))
    finally:
        await client.close()
    return Finding(what, f"{server.address}; we may {', '.join(wanted)}", True)


# For people to read.


def _print(findings: list[Finding], healthy: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("what", "found", "works"):
        table.add_column(column)
    for finding in findings:
        works = (
            Text("–") if finding.works is None else Text("yes", "green") if finding.works else Text("no", "bold red")
        )
        found = Text(finding.found)
        if finding.advice:
            found.append(f"\n→ {finding.advice}", "yellow")
        table.add_row(Text(finding.what), found, works)
    console.print(table)
    console.print(
        Text("\nThe daemon will work here." if healthy else "\nThe daemon will not work here; see what is marked no.")
    )
