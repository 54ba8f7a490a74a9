"""Where the daemon's settings come from, and what is said where they cannot be."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.support.daemons import ROOT, Daemon
from tests.support.needs import need_root
from tests.support.ports import LOOPBACK


def tried(*options: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was said of a daemon that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "freeze_proxy", "daemon", *options],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return done.returncode, " ".join(said.split())


@pytest.fixture
def usual(tmp_path: Path, api_server: ApiServer) -> list[str]:
    return [
        *("--listen", f"{LOOPBACK}:0", "--health-listen", f"{LOOPBACK}:0", "--state-dir", str(tmp_path / "state")),
        *("--kubeconfig", str(api_server.kubeconfig()), "--runtime-socket", str(tmp_path / "none.sock")),
    ]


def started(tmp_path: Path, api_server: ApiServer, *options: str) -> Daemon:
    return Daemon(tmp_path / "daemon", api_server.kubeconfig(), tmp_path / "none.sock", *options)


def test_a_command_line_goes_before_the_environment_and_that_before_a_file(
    tmp_path: Path, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        # Each source names a port that another has; the one that counts says whether the daemon starts.
        file = tmp_path / "settings.toml"
        file.write_text(f'health-listen = "{LOOPBACK}:{taken.getsockname()[1]}"\nidentity = "jwks"\n')
        base = ["--listen", f"{LOOPBACK}:0", "--state-dir", str(tmp_path / "state"), "--config", str(file)]
        base += ["--kubeconfig", str(api_server.kubeconfig())]
        code, said = tried(*base)
        assert code == 125
        assert "--health-listen" in said
        monkeypatch.setenv("FREEZE_PROXY_IDENTITY", "tokenreview")
        with started(tmp_path, api_server, "--config", str(file)) as daemon:  # names a port of its own
            assert daemon.events("the daemon has started")[0]["identity"] == "tokenreview"
        with started(tmp_path, api_server, "--config", str(file), "--identity", "jwks") as daemon:
            assert daemon.events("the daemon has started")[-1]["identity"] == "jwks"


def test_a_file_named_by_the_environment(tmp_path: Path, usual: list[str]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('grace = "1s"\n')
    code, said = tried(*usual, environment={"FREEZE_PROXY_CONFIG": str(file)})
    assert code == 2
    assert f"{file} has settings that do not exist: grace" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("listne = 1", "has settings that do not exist: listne"),
        ('freezer = "magic"', "is not one of 'auto', 'cgroup'"),
        ('freeze-timeout = "soon"', "soon"),
        ("freeze-timeout = -1", "-1"),
        ("listen = [", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, usual: list[str], content: str, words: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content)
    options = usual[2:] if content.startswith("listen ") else usual
    code, said = tried(*options, "--config", str(file))
    assert code == 2
    assert words in said


def test_a_file_that_is_not_there(usual: list[str]) -> None:
    code, said = tried(*usual, "--config", "/nowhere/settings.toml")
    assert code == 2
    assert "/nowhere/settings.toml cannot be read" in said


def test_a_wrong_value_in_the_environment(usual: list[str]) -> None:
    code, said = tried(*usual, environment={"FREEZE_PROXY_CLAIM_TIMEOUT": "soon"})
    assert code == 2
    assert "--claim-timeout" in said


@pytest.mark.parametrize("option", ["--listen", "--health-listen"])
def test_a_port_that_is_taken(usual: list[str], option: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        code, said = tried(*usual, option, f"{LOOPBACK}:{port}")
    assert code == 125
    assert f"freeze-proxy: {LOOPBACK}:{port} cannot be listened on: Address already in use. Choose another" in said
    assert option in said


def test_a_state_dir_that_cannot_be(tmp_path: Path, usual: list[str]) -> None:
    (tmp_path / "file").touch()
    code, said = tried(*usual, "--state-dir", str(tmp_path / "file" / "state"))
    assert code == 125
    assert f"cannot be written down in {tmp_path}/file/state: Not a directory." in said


def test_a_state_dir_of_somebody_else(tmp_path: Path, usual: list[str]) -> None:
    need_root()
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    code, said = tried(*usual, "--state-dir", str(folder))
    assert code == 125
    assert "belongs to another user" in said


@pytest.mark.parametrize("content", [None, "]", "{}"])
def test_a_kubeconfig_that_is_of_no_use(tmp_path: Path, usual: list[str], content: str | None) -> None:
    file = tmp_path / "kubeconfig"
    if content is not None:
        file.write_text(content)
    code, said = tried(*usual, "--kubeconfig", str(file))
    assert code == 125
    assert str(file) in said


def test_health_readiness_and_metrics(tmp_path: Path, api_server: ApiServer) -> None:
    with started(tmp_path, api_server) as daemon:
        assert daemon.ask("/healthz") == (200, '{"status": "ok"}\n')
        status, told = daemon.ask("/readyz")
        assert status == 503
        assert str(tmp_path / "none.sock") in json.loads(told)["why"][0]
        status, text = daemon.ask("/metrics")
        assert status == 200
        for name in ("frozen", "leases", "pods", "connections", "thawed_total", "review_seconds_bucket"):
            assert f"freeze_proxy_{name}" in text
        for name in ("order_seconds_bucket", "token_hits_total", "process_resident_memory_bytes"):
            assert name in text
        assert daemon.ask("/else")[0] == 404
        assert daemon.ask("/metrics", "POST")[0] == 405
        assert daemon.end() == 0
