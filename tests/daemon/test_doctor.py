"""The doctor on this machine, which has no container runtime of its own; with runtimes: tests/containers."""

import asyncio
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freeze_proxy import apiserver  # noqa: F401 - nobody can import from a home of root
from freeze_proxy.daemon import places, reviews  # noqa: F401 - the same
from freeze_proxy.daemon.doctor import Finding, examine, kernel, layout
from freeze_proxy.daemon.settings import Settings
from freeze_proxy.freezers.places import mounts_in
from tests.support.api_server import ApiServer
from tests.support.cluster import cgroups
from tests.support.needs import need, need_root
from tests.support.ports import LOOPBACK, free_port

V1 = "34 31 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
V2 = "32 31 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
SYSTEMD = "33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        listen=(LOOPBACK, free_port()),
        health_listen=(LOOPBACK, free_port()),
        runtime_socket=str(tmp_path / "none.sock"),
        state_dir=str(tmp_path / "state"),
    )


def found(settings: Settings) -> dict[str, Finding]:
    """The findings by what they are about, its first words."""
    return {finding.what.partition(",")[0].partition(" (")[0]: finding for finding in asyncio.run(examine(settings))}


def command(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [
        *("--runtime-socket", settings.runtime_socket, "--state-dir", settings.state_dir),
        *("--listen", f"{LOOPBACK}:{settings.listen[1]}", "--health-listen", f"{LOOPBACK}:{settings.health_listen[1]}"),
        *options,
    ]
    return subprocess.run(
        [sys.executable, "-m", "freeze_proxy", "doctor", *arguments], capture_output=True, text=True, timeout=30
    )


# Pure.


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("6.18.44-fc-v669", (6, 18)),
        ("5.15.0-1051-azure", (5, 15)),
        ("5.2", (5, 2)),
        ("4.18.0-553.el8_10.x86_64", (4, 18)),
        ("5-custom", (5, 0)),
        ("", (0, 0)),
        ("strange.kernel", (0, 0)),
    ],
)
def test_kernel_releases(release: str, numbers: tuple[int, int]) -> None:
    assert kernel(release) == numbers


@pytest.mark.parametrize(
    ("mounts", "name"),
    [(V1, "v1"), (V1 + V2, "hybrid"), (V2, "v2"), (V2 + SYSTEMD, "v2"), (SYSTEMD, ""), ("", "")],
)
def test_layouts(mounts: str, name: str) -> None:
    assert layout(mounts_in(mounts)) == name


# On this machine.


def test_freezing_is_tried_for_real_and_leaves_nothing_behind(settings: Settings) -> None:
    need_root()
    need(bool(cgroups.hierarchies()), "There is no cgroup hierarchy here.")
    seen = found(settings)
    assert seen["user"].works
    assert seen["kernel"].works
    assert seen["cgroups"].works
    assert seen["freezing by cgroup"].works
    assert "frozen in 0." in seen["freezing by cgroup"].found
    for place in cgroups.hierarchies().values():
        assert not list(place.glob("freeze-proxy-doctor-*"))
    assert not Path(settings.state_dir).exists()


def test_without_a_runtime_it_says_so_and_leaves_with_1(settings: Settings) -> None:
    done = command(settings, "--json")
    assert done.returncode == 1, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert not said["works"]
    checks = {check["what"]: check for check in said["checks"]}
    assert checks["container runtime"]["works"] is False
    assert settings.runtime_socket in checks["container runtime"]["advice"]
    assert "--runtime-socket" in checks["container runtime"]["advice"]
    assert "containers" not in checks


def test_for_people_it_prints_a_table(settings: Settings) -> None:
    done = command(settings)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["what", "found", "works"]
    assert any(line.startswith("container runtime") and line.rstrip().endswith("no") for line in lines)
    assert "→" in done.stdout
    assert lines[-1] == "The daemon will not work here; see what is marked no."
    assert not done.stderr


def test_it_takes_the_daemon_s_settings_from_a_file(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('state-dir = "/proc/nowhere"\nexclude = ["a", "b"]\nnode-name = "n"\n')
    done = subprocess.run(
        [sys.executable, "-m", "freeze_proxy", "doctor", "--json", "--config", file],
        capture_output=True,
        text=True,
        timeout=30,
    )
    checks = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["state folder"]["works"] is False
    assert "/proc/nowhere" in checks["state folder"]["advice"]


def test_somebody_without_rights_is_told_what_they_lack(settings: Settings, tmp_path: Path) -> None:
    need_root()
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            facts = {what: [each.works, each.advice] for what, each in found(settings).items()}
            os.write(write, json.dumps(facts).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        facts = json.load(pipe)
    os.waitpid(child, 0)
    for what in ("user", "freezing by cgroup"):
        assert facts[what][0] is False
        assert "root" in facts[what][1]
    assert facts["state folder"][0] is False
    assert str(tmp_path) in facts["state folder"][1]


def test_a_port_that_is_taken(settings: Settings) -> None:
    with socket.create_server(settings.listen):
        seen = found(settings)
    assert seen["port for pods"].works is False
    assert "--listen" in seen["port for pods"].advice
    assert seen["port for health and metrics"].works
    assert found(settings)["port for pods"].works


@pytest.fixture
def healthy(settings: Settings) -> Iterator[None]:
    """Something that answers as a daemon's health port does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status": "ok"}'
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(settings.health_listen, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.usefixtures("healthy")
def test_ports_that_the_daemon_itself_has_taken(settings: Settings) -> None:
    with socket.create_server(settings.listen):
        seen = found(settings)
    assert seen["port for pods"].works
    assert "the daemon is running" in seen["port for pods"].found
    assert seen["port for health and metrics"].works


# The API server.


def with_api(settings: Settings, kubeconfig: Path, identity: str = "tokenreview") -> Settings:
    return Settings(
        listen=settings.listen,
        health_listen=settings.health_listen,
        runtime_socket=settings.runtime_socket,
        state_dir=settings.state_dir,
        kubeconfig=str(kubeconfig),
        identity=identity,
    )


def test_the_api_server_is_left_alone_where_none_is_configured(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    finding = found(settings)["API server"]
    assert finding.works is None
    assert not finding.needed


def test_what_the_api_server_would_allow(settings: Settings, api_server: ApiServer) -> None:
    finding = found(with_api(settings, api_server.kubeconfig()))["API server"]
    assert finding.works
    assert "create tokenreviews" in finding.found
    assert api_server.wanted["resourceAttributes"]["resource"] == "tokenreviews"
    assert found(with_api(settings, api_server.kubeconfig(), "jwks"))["API server"].works
    assert api_server.wanted["nonResourceAttributes"] == {"path": "/openid/v1/jwks", "verb": "get"}
    assert not api_server.reviews


def test_what_the_api_server_would_not_allow(settings: Settings, api_server: ApiServer) -> None:
    api_server.granted = False
    finding = found(with_api(settings, api_server.kubeconfig()))["API server"]
    assert finding.works is False
    assert "permission to create tokenreviews" in finding.advice


def test_what_ambient_needs_besides(settings: Settings, api_server: ApiServer) -> None:
    with_it = replace(with_api(settings, api_server.kubeconfig()), ambient=True)
    made = found(with_it)
    assert made["ambient"].needed
    for grant in ("create tokenreviews", "list pods", "watch pods", "list namespaces", "watch namespaces"):
        assert grant in made["API server"].found
    assert not found(replace(with_it, ambient=False))["ambient"].needed


def test_an_api_server_that_does_not_answer(settings: Settings, api_server: ApiServer) -> None:
    api_server.vanish()
    finding = found(with_api(settings, api_server.kubeconfig()))["API server"]
    assert finding.works is False
    assert api_server.address in finding.advice


def test_a_kubeconfig_that_is_none(settings: Settings, tmp_path: Path) -> None:
    finding = found(with_api(settings, tmp_path / "none"))["API server"]
    assert finding.works is False
    assert str(tmp_path / "none") in finding.advice


def test_what_is_asked_of_a_runtime_needs_no_cgroup(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which failures matter depends on how containers are to be frozen."""
    monkeypatch.setattr(places, "unwritable", lambda: "Nothing can be written.")
    for freezer, needed in (("cgroup", True), ("auto", True), ("containerd", False)):
        given = Settings(state_dir=settings.state_dir, runtime_socket=settings.runtime_socket, freezer=freezer)
        finding = found(given)["freezing by cgroup"]
        assert (finding.works, finding.needed) == (False, needed)
        assert finding.advice == "Nothing can be written."
