"""A server in a real pod, with the sidecar's own image before it and a daemon on the node: as ``Running`` has it for
``freeze-proxy run``, so that the same tests are made of both."""

import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.api_server import ApiServer
from tests.support.cluster import cgroups
from tests.support.cluster.images import Images
from tests.support.cluster.kubelet import Container, Kubelet, Made
from tests.support.daemons import Daemon
from tests.support.node import Node
from tests.support.running import Event
from tests.support.wait import PATIENCE, until

ROOT = Path(__file__).parents[2]
SERVER, SIDECAR, QUEUE_PROXY = "user-container", "freeze-proxy", "queue-proxy"
PORT, DATA, ADMIN = 8080, 9999, 9998
NONCE = "a-nonce-of-the-tests"
TOKEN = "/var/run/secrets/freeze-proxy"
IMAGE = Images.name("sidecar")

_SETTINGS = {
    "--grace": "GRACE",
    "--mode": "MODE",
    "--breathe": "BREATHE",
    "--idle-stream": "IDLE_STREAM",
    "--thaw-timeout": "THAW_TIMEOUT",
}
"""What ``run`` calls its settings, and a sidecar its own."""
_EVENTS = ("frozen", "thawed")


def the_nodes_files(*others: Path) -> dict[str, str]:
    """What a container needs to run the node's own programs and our tests' servers."""
    wanted = [*map(Path, ("/usr", "/bin", "/lib", "/lib64", "/etc", sys.base_prefix, sys.prefix)), ROOT, *others]
    return {str(place): str(place.resolve()) for place in wanted if place.exists()}


def server(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> Made:
    """A container that runs this, with the node's programs and a folder of the test's; it listens on ``PORT``."""
    told = {"PORT": str(PORT), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PATH": "/usr/sbin:/usr/bin:/bin"}
    return Made(
        [str(word) for word in command],
        environment={**told, **(environment or {})},
        mounts=the_nodes_files(),
        writable={str(folder): str(folder)},
    )


class Rig:
    """A node with pods that have networks of their own, and its daemon."""

    def __init__(self, images: Images, node: Node, daemon: Daemon) -> None:
        self.images = images
        self.node = node
        self.daemon = daemon
        self._numbers = 0

    def run(
        self, tmp_path: Path, command: Sequence[str | Path], *options: str, environment: Mapping[str, str] | None = None
    ) -> "InPod":
        """``freeze-proxy run``, as it were, to be used in a ``with``."""
        told: dict[str, str] = {}
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option == "--ready-path":
                told["READINESS_PROBE"] = json.dumps({"httpGet": {"path": value, "port": PORT}, "periodSeconds": 0})
            else:
                told[_SETTINGS[option]] = value
        return InPod(self, {SERVER: server(command, tmp_path, environment)}, told)

    def sidecar(self, pod_folder: Path, told: Mapping[str, str]) -> Made:
        """A container with the sidecar, as the webhook writes it into a pod; ``told``: what differs."""
        settings = {
            "TARGET": f"127.0.0.1:{PORT}",
            "LISTEN": f"0.0.0.0:{DATA}",  # for clients on the node; in a cluster queue-proxy is in the pod
            "ADMIN": f":{ADMIN}",
            "DAEMON": f"{self.daemon.host}:{self.daemon.port}",
            "TOKEN_FILE": f"{TOKEN}/token",
            "READINESS_PROBE": json.dumps({"tcpSocket": {"port": PORT}, "periodSeconds": 0}),
            "DRAIN_QUIET": "20ms",
            "NONCE": NONCE,
            "LOG_LEVEL": "debug",
        }
        environment = {f"FREEZE_PROXY_{name}": value for name, value in {**settings, **told}.items()}
        return Made(image=IMAGE, environment=environment, mounts={TOKEN: str(pod_folder)}, confined=True)

    def folder(self) -> Path:
        """For the token of one pod."""
        self._numbers += 1
        made = self.node.folder / f"token-{self._numbers}"
        made.mkdir()
        made.chmod(0o755)
        return made


class InPod:
    """A pod with these containers and the sidecar behind them, to be used in a ``with``: until all is deleted.

    It has what ``Running`` has, as far as tests ask for it. ``late``: the sidecar is started by the test.
    """

    def __init__(
        self,
        rig: Rig,
        containers: Mapping[str, Made],
        told: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        late: bool = False,
    ) -> None:
        self.rig = rig
        self.events: list[Event] = []
        self.other_lines: list[str] = []
        self.token = rig.folder() / "token"
        self._told = dict(told or {})
        self._containers = containers
        self._labels = labels
        self._late = late
        self._news = threading.Condition()
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, name="log of a sidecar", daemon=True)
        self._report: Event = {}

    def __enter__(self) -> Self:
        self.pod = self.rig.node.kubelet.pod(self._containers, labels=self._labels, network=True)
        try:
            self.host = self.pod.ip
            self.port = DATA
            if "POD_IP" in self._told:
                self._told["POD_IP"] = self.host
            if not self._late:
                self.rotate()
                self.start()
                until(lambda: self.ask("/ready")[0] == 200, "the server is ready", 10, 0.01)
        except BaseException:
            self._show()
            self.pod.delete()
            raise
        return self

    def _show(self) -> None:
        """What has been said, for whoever looks into a failure."""
        print("/ready:", self.ask("/ready"), file=sys.stderr)
        for container in self.pod.containers.values():
            print(f"{container.name}:", *container.printed[-40:], sep="\n", file=sys.stderr)

    def rotate(self) -> None:
        """A new token, as the kubelet puts one in the place of another."""
        self.put(self.rig.node.token(self.pod))

    def put(self, token: str) -> None:
        """This one."""
        new = self.token.with_suffix(".new")
        new.write_text(token)
        new.chmod(0o644)
        new.rename(self.token)

    def start(self) -> Container:
        """Start the sidecar, or start it again."""
        made = self.rig.sidecar(self.token.parent, self._told)
        self._began = time.monotonic()
        container = self.pod.start(SIDECAR, made)
        if self._told.get("LOG_LEVEL", "debug") == "debug" and not self._reader.is_alive():
            self._reader.start()
        return container

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._report and SIDECAR in self.pod.containers and kind is None:
                self.end()
        finally:
            self._over.set()
            if self._reader.is_alive():
                self._reader.join(PATIENCE)
            if kind is not None:
                self._show()
            self.pod.delete()

    # Its parts.

    @property
    def address(self) -> str:
        """Where clients come in."""
        return f"{self.host}:{self.port}"

    @property
    def freezer(self) -> str:
        return "throttle" if self._told.get("MODE") == "throttle" else "pod"

    @property
    def server(self) -> Container:
        return self.pod[SERVER]

    @property
    def sidecar(self) -> Container:
        return self.pod[SIDECAR]

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def where(self) -> str:
        return str(self.server.cgroup)

    # Words.

    def log(self) -> list[dict[str, Any]]:
        """What the sidecar has said, the current one."""
        return [json.loads(line) for line in self.sidecar.printed]

    def said(self, part: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if part in line["message"]]

    def _read(self) -> None:
        """Its log becomes events, as those of ``run`` are."""
        seen = 0
        path = self.sidecar.log
        while not self._over.wait(0.004):
            if self.sidecar.log != path:
                seen, path = 0, self.sidecar.log
            try:
                data = path.read_bytes()[seen:]
            except FileNotFoundError:
                continue
            data = data[: data.rfind(b"\n") + 1]
            seen += len(data)
            found = [self._event(json.loads(line.split(b" ", 3)[3])) for line in data.splitlines()]
            if any(found):
                with self._news:
                    self.events += [event for event in found if event is not None]
                    self._news.notify_all()

    @staticmethod
    def _event(line: dict[str, Any]) -> Event | None:
        if line["message"] not in _EVENTS:
            return None
        at = time.monotonic() - (time.time() - datetime.fromisoformat(line["time"]).timestamp())
        if line["message"] == "frozen":
            at += 0.001  # what the time was cut by
        else:
            at -= line["took_ms"] / 1e3  # when that was ordered
        event: Event = {"event": line["message"], "monotonic": at}
        for name, value in line.items():
            if name.endswith("_ms"):
                event[f"{name[:-3]}_us"] = None if value is None else value * 1000
        return event

    def mark(self) -> int:
        with self._news:
            return len(self.events)

    def await_event(self, name: str, since: int = 0, within: float = PATIENCE) -> Event:
        deadline = time.monotonic() + within
        with self._news:
            while True:
                for event in self.events[since:]:
                    if event["event"] == name:
                        return event
                left = deadline - time.monotonic()
                assert left > 0, f"No event {name!r} within {within} s; {self.events[-3:]}"
                self._news.wait(min(left, 0.2))

    def count(self, name: str) -> int:
        with self._news:
            return sum(event["event"] == name for event in self.events)

    def stdout(self) -> bytes:
        return "".join(f"{line}\n" for line in self.server.printed).encode()

    # The admin port.

    def ask(self, path: str, timeout: float = 5.0) -> tuple[int, str]:
        """What the sidecar answers; 0 where it does not."""
        client = http.client.HTTPConnection(self.host, ADMIN, timeout=timeout)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            client.close()

    def counted(self, line: str) -> float:
        """The number of this line in its metrics."""
        text = self.ask("/metrics")[1]
        found = [each.rpartition(" ") for each in text.splitlines()]
        return next(float(value) for name, _, value in found if name == f"freeze_proxy_{line}")

    # The kernel's word.

    def processes(self) -> list[int]:
        return cgroups.processes_in([self.server.cgroup])

    def is_frozen(self) -> bool:
        if self._told.get("MODE") == "throttle":
            quota = cgroups.places(self.pid)["cpu"] / "cpu.cfs_quota_us"
            return quota.read_text() != "-1\n" if quota.exists() else not self._max().startswith("max")
        return self.server.frozen

    def _max(self) -> str:
        return (cgroups.places(self.pid)[""] / "cpu.max").read_text()

    def await_frozen(self, within: float = PATIENCE) -> None:
        until(self.is_frozen, "the kernel says that the server is frozen", within, every=0.002)

    def await_awake(self, within: float = PATIENCE) -> None:
        until(lambda: not self.is_frozen(), "the kernel says that the server runs", within, every=0.002)

    def cpu_seconds(self) -> float:
        places = cgroups.places(self.pid)
        if "cpuacct" in places:
            return int((places["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        stat = dict(line.split() for line in (places[""] / "cpu.stat").read_text().splitlines())
        return int(stat["usage_usec"]) / 1e6

    def relay_memory(self) -> int:
        status = Path(f"/proc/{self.sidecar.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    # The end.

    def end(self) -> Event:
        """SIGTERM to the sidecar, which leaves with 0; returns what it has counted, in the words of ``run``."""
        if self._report:
            return self._report
        frozen, wall = self.counted("frozen_seconds_total"), time.monotonic() - self._began
        self._report = {
            "freezer": self.freezer,
            "requests": self.counted("requests_total"),
            "freezes": self.counted("freezes_total"),
            "refused": self.counted("refused_total"),
            "failures": self.counted('failed_orders_total{order="freeze"}')
            + self.counted('failed_orders_total{order="thaw"}'),
            "thaw": {"count": self.counted("wait_seconds_count")},
            "share_frozen": frozen / wall,
        }
        self.sidecar.kill(signal.SIGTERM)
        self.sidecar.await_exit()
        assert self.sidecar.status().status.exit_code == 0, self.log()[-5:]
        assert not self.server.frozen
        return self._report


def _not_starved(ours: cgroups.Cgroups) -> None:
    """All pods together weigh as much as one process outside of cgroups; on a machine that is busy that is too little
    for probes that have a second."""
    place = cgroups.hierarchies().get("cpu")
    if place is not None:
        (place / ours.name).mkdir(exist_ok=True)
        (place / ours.name / "cpu.shares").write_text("262144")


@contextmanager
def rig(images: Images, folder: Path, *options: str) -> Iterator[Rig]:
    """The node, and a daemon with these options that pods reach at the node's own address."""
    containerd = images.dockerd.containerd
    containerd.ctr("images", "import", images.archive)
    _not_starved(containerd.cgroups)
    containerd.network.up()
    with ApiServer(folder / "api-server") as api_server:
        kubelet = Kubelet(containerd)
        try:
            node = Node(folder, containerd, kubelet, api_server)
            with node.daemon(*options, host=containerd.network.node) as daemon:
                yield Rig(images, node, daemon)
            node.check_logs()
        finally:
            kubelet.close()
