"""The container images: what is in them, and that they run as confined as a cluster can ask for."""

import http.client
import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from freeze_proxy import __version__
from tests.image.bases import ROOT
from tests.support.api_server import ApiServer
from tests.support.cluster.dockerd import DockerError
from tests.support.cluster.images import TARGETS, Images
from tests.support.cluster.kubelet import Kubelet
from tests.support.needs import need_program
from tests.support.node import Node
from tests.support.ports import answers, free_port
from tests.support.wait import until

CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host")
SHELLS = {"sh", "bash", "dash", "ash", "busybox", "zsh", "env", "perl", "ld.so"}
START_GOAL = 0.040
"""Seconds from the start of the process until the data port listens."""

# The modules of freeze_proxy that are there once these have been imported, as the sidecar does it: without site.
_LOADED = """
import sys
place, *names = sys.argv[1:]
sys.path.insert(0, place)
for name in names:
    __import__(name)
print(*[name for name in sys.modules if name.partition(".")[0] == "freeze_proxy"])
"""


def loaded_with(*names: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-B", "-c", _LOADED, str(ROOT / "src"), *names]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.split())


def ours(files: list[tarfile.TarInfo]) -> set[str]:
    """The modules of freeze_proxy in an image."""
    paths = [file.name.removeprefix("opt/freeze-proxy/") for file in files if "/freeze_proxy/" in file.name]
    return {path[:-4].removesuffix("/__init__").replace("/", ".") for path in paths if path.endswith(".pyc")}


def settings(**given: str) -> list[str]:
    return [f"FREEZE_PROXY_{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize("target", TARGETS)
def test_only_bytecode_and_no_shell(images: Images, target: str) -> None:
    files = [file for file in images.files(target) if not file.isdir()]
    assert not SHELLS & {Path(file.name).name for file in files}
    assert [file.name for file in files if re.search(r"(^|/)s?bin/", file.name) and "python" not in file.name] == []
    in_place = [file.name for file in files if file.name.startswith("opt/freeze-proxy/")]
    assert "opt/freeze-proxy/__main__.pyc" in in_place
    assert "opt/freeze-proxy/LICENSE" in in_place
    assert [name for name in in_place if name.endswith(".py") or "__pycache__" in name] == []
    assert not [file.name for file in files if file.name.startswith(("build", "files"))]
    # What the base's Python imports at each start, whatever is run.
    assert "usr/lib/python3.11/encodings/__pycache__/utf_8.cpython-311.opt-2.pyc" in {file.name for file in files}


def test_the_sidecar_has_what_it_imports_and_nothing_else(images: Images) -> None:
    there = ours(images.files("sidecar"))
    at_the_start = loaded_with("freeze_proxy.sidecar.app")
    assert at_the_start <= there
    later = there - at_the_start
    assert all(name.startswith("freeze_proxy.sidecar.") for name in later), later
    assert loaded_with("freeze_proxy.sidecar.app", *later) == there


def test_all_is_in_the_daemons(images: Images) -> None:
    sources = (ROOT / "src").rglob("*.py")
    names = {".".join(file.relative_to(ROOT / "src").with_suffix("").parts) for file in sources}
    assert ours(images.files("daemon")) == {name.removesuffix(".__init__") for name in names}
    assert images.inspect("daemon")["RootFS"] == images.inspect("webhook")["RootFS"]


def test_who_they_run_as(images: Images) -> None:
    configs = {target: images.inspect(target)["Config"] for target in TARGETS}
    users = {target: config["User"] for target, config in configs.items()}
    assert users == {"sidecar": "65532:65532", "webhook": "65532:65532", "daemon": "0:0"}
    assert {target: config["Cmd"] or [] for target, config in configs.items()} == {
        "sidecar": [],
        "webhook": ["webhook"],
        "daemon": ["daemon"],
    }
    for config in configs.values():
        assert not [line for line in config["Env"] or () if "pip" in line.lower() or "proxy" in line.lower()]


def test_the_archive_has_all(images: Images) -> None:
    with tarfile.open(images.archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        manifest = json.load(file)
    assert sorted(tag for image in manifest for tag in image["RepoTags"]) == sorted(map(images.name, TARGETS))


def run(images: Images, target: str, *arguments: str, environment: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run an image to its end: exit code, what it printed, and what it complained about."""
    host = f"--host=unix://{images.dockerd.socket}"
    given = [f"--env={each}" for each in environment]
    command = ["docker", host, "run", "--rm", *CONFINED, *given, images.name(target), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_a_wrong_setting_is_one_sentence(images: Images) -> None:
    wrong = settings(TARGET="127.0.0.1:8080", MODE="off", GRACE="soon")
    code, out, error = run(images, "sidecar", environment=tuple(wrong))
    assert (code, out) == (2, "")
    assert len(error.splitlines()) == 1
    assert "FREEZE_PROXY_GRACE" in error
    assert "Traceback" not in error


def test_the_daemons_command_line(images: Images) -> None:
    assert run(images, "daemon", "--version")[:2] == (0, f"freeze-proxy, version {__version__}\n")
    code, out, _ = run(images, "daemon", "daemon", "--help")
    assert code == 0
    assert "Freeze the containers of the pod that asks" in out  # a docstring
    code, out, error = run(images, "daemon", "doctor", "--json")
    assert (code, error) == (1, "")  # it sees no runtime, and may write no cgroup
    assert json.loads(out)


@pytest.fixture
def node(images: Images, tmp_path: Path) -> Iterator[Node]:
    """The node that the images' containerd makes."""
    with ApiServer(tmp_path / "api-server") as server:
        kubelet = Kubelet(images.dockerd.containerd)
        try:
            made = Node(tmp_path, images.dockerd.containerd, kubelet, server)
            yield made
            made.check_logs()
        finally:
            kubelet.close()


def test_the_daemon_freezes_pods_without_any_capability(images: Images, node: Node) -> None:
    seen = [
        "/sys/fs/cgroup:/sys/fs/cgroup",
        *(f"{folder}:{folder}" for folder in (node.folder, node.containerd.folder)),
    ]
    words = ["docker", f"--host=unix://{images.dockerd.socket}", "run", "--rm", *CONFINED, "--pid=host"]
    words += [*(f"--volume={each}" for each in seen), images.name("daemon")]
    # In the place of this Python, -m and freeze_proxy.
    prefix = ("sh", "-c", f'shift 3; exec {shlex.join(words)} "$@"', "--")
    pod, token = node.pod("user-container", "queue-proxy")
    with node.daemon(prefix=prefix) as daemon:
        with daemon.control() as control:
            answer = control.call("/freeze", token)
            assert answer.status == 200, daemon.log()
            assert pod["user-container"].frozen
            pod["queue-proxy"].await_ticks()
            assert control.call("/thaw", token).status == 200
            pod["user-container"].await_ticks()
        assert "freeze_proxy" in daemon.ask("/metrics")[1]
        assert daemon.end() == 0


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def server() -> Iterator[int]:
    """A server to stand before; its port."""
    with HTTPServer(("127.0.0.1", 0), Hello) as made:
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made.server_port
        finally:
            made.shutdown()
            thread.join()


class Sidecar:
    """A container with the sidecar."""

    def __init__(self, images: Images, target: int) -> None:
        self._docker = images.dockerd.docker
        self.listen = free_port()
        self.environment = settings(
            TARGET=f"127.0.0.1:{target}",
            MODE="off",
            LISTEN=f"127.0.0.1:{self.listen}",
            ADMIN=f"127.0.0.1:{free_port()}",
            DRAIN_QUIET="10ms",
        )
        given = [f"--env={each}" for each in self.environment]
        self._id = self._docker("run", "--detach", *CONFINED, *given, images.name("sidecar")).strip()
        self.pid = int(self._docker("inspect", "--format={{.State.Pid}}", self._id))

    def answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.listen, timeout=5)
            connection.request("GET", "/")
            return connection.getresponse().read() == b"hello\n"
        except ConnectionRefusedError:
            running = self._docker("inspect", "--format={{.State.Running}}", self._id).strip()
            assert running == "true", self._docker("logs", self._id)
            return False

    def end(self) -> int:
        """Tell it to leave; its exit code."""
        self._docker("kill", f"--signal={signal.SIGTERM}", self._id)
        return int(self._docker("wait", self._id))

    def execute(self, *command: str) -> None:
        self._docker("exec", self._id, *command)

    def remove(self) -> None:
        self._docker("rm", "--force", self._id)


@pytest.fixture
def sidecar(images: Images) -> Iterator[Sidecar]:
    """One that stands before a server, and answers."""
    with server() as port:
        made = Sidecar(images, port)
        try:
            until(made.answers, "the sidecar answers")
            yield made
        finally:
            made.remove()


def test_the_sidecar_runs_confined(sidecar: Sidecar) -> None:
    status = dict(line.split(":\t") for line in Path(f"/proc/{sidecar.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["65532"] * 4
    assert status["Gid"].split() == ["65532"] * 4
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")] == [0] * 5
    assert status["NoNewPrivs"] == "1"
    mounts = Path(f"/proc/{sidecar.pid}/mountinfo").read_text().splitlines()
    assert [line.split()[5].split(",")[0] for line in mounts if line.split()[4] == "/"] == ["ro"]
    with pytest.raises(DockerError, match="executable file not found"):
        sidecar.execute("sh", "-c", "exit 0")
    assert sidecar.end() == 0


def test_how_long_it_takes_to_listen(sidecar: Sidecar, images: Images) -> None:
    """From the start of the process in the image, without the container's own start."""
    chroot = need_program("chroot", "coreutils")
    entry = images.inspect("sidecar")["Config"]["Entrypoint"]
    inside = [chroot, "--userspec=65532:65532", f"/proc/{sidecar.pid}/root"]
    took = []
    for _ in range(10):
        port = free_port()
        other = settings(LISTEN=f"127.0.0.1:{port}", ADMIN=f"127.0.0.1:{free_port()}")
        environment = dict(each.split("=", 1) for each in (*sidecar.environment, *other))
        began = time.perf_counter()
        process = subprocess.Popen([*inside, *entry], env=environment)
        try:
            until(partial(answers, port), "it listens", every=0.0002)
            took.append(time.perf_counter() - began)
        finally:
            process.kill()
            process.wait()
    print(f"start until it listens: median {statistics.median(took) * 1e3:.1f} ms, least {min(took) * 1e3:.1f} ms")
    assert min(took) <= START_GOAL, took
