"""Who imports whom: only downwards, and the relay so little that it fits into a few MiB."""

import logging.config
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import freeze_proxy

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(freeze_proxy.__file__).resolve().parents[1]

RELAY = {
    "freeze_proxy",
    "freeze_proxy.gate",
    "freeze_proxy.keeper",
    "freeze_proxy.loop",
    "freeze_proxy.observe",
    "freeze_proxy.observe.http1",
    "freeze_proxy.observe.http2",
    "freeze_proxy.observe.tally",
    "freeze_proxy.relay",
    "freeze_proxy.connection",
    "freeze_proxy.tcp",
}
CLIENT = {
    "freeze_proxy.control",
    "freeze_proxy.control.client",
    "freeze_proxy.control.messages",
    "freeze_proxy.control.names",
    "freeze_proxy.control.token",
    "freeze_proxy.plain_json",
}
SIDECAR = {"freeze_proxy.settings", "freeze_proxy.sidecar"} | {
    f"freeze_proxy.sidecar.{name}"
    for name in ("admin", "app", "config", "drain", "health", "listeners", "log", "numbers", "probes", "probing")
}
LITTLE = {"_socket", "select", "errno", "time", "_heapq"}
"""All of the standard library that the relay loads, beyond what an interpreter has loaded when it starts."""


def loaded_by(module: str) -> set[str]:
    """The modules that a bare interpreter has loaded after importing this one, and had not before."""
    script = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); "
        f"import {module}; print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", script, str(SOURCE)]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split())


def test_imports_point_down(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As the contracts in pyproject.toml have it; a new module must be given its floor there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.config, "dictConfig", lambda _config: None)  # it would silence every logger there is
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_the_relay_loads_little() -> None:
    loaded = loaded_by("freeze_proxy.relay")
    assert {name for name in loaded if name.startswith("freeze_proxy")} == RELAY
    assert loaded - RELAY <= LITTLE


def test_the_client_of_the_daemon_loads_hardly_more() -> None:
    loaded = loaded_by("freeze_proxy.control.client")
    assert {name for name in loaded if name.startswith("freeze_proxy")} <= RELAY | CLIENT
    assert loaded - RELAY - CLIENT <= LITTLE


def test_a_sidecar_loads_hardly_more_again() -> None:
    loaded = loaded_by("freeze_proxy.sidecar.app")
    assert {name for name in loaded if name.startswith("freeze_proxy")} <= RELAY | CLIENT | SIDECAR
    assert loaded - RELAY - CLIENT - SIDECAR <= LITTLE | {"_operator"}


@pytest.mark.parametrize(
    ("module", "ours"),
    [
        ("freeze_proxy.control.messages", {"freeze_proxy", "freeze_proxy.control", "freeze_proxy.control.messages"}),
        ("freeze_proxy.gate", {"freeze_proxy", "freeze_proxy.gate"}),
        ("freeze_proxy.observe", {name for name in RELAY if "observe" in name} | {"freeze_proxy"}),
    ],
)
def test_the_pure_parts_load_nothing_but_themselves(module: str, ours: set[str]) -> None:
    assert loaded_by(module) == ours


@pytest.mark.parametrize(
    "name", ["gate.py", "observe/__init__.py", "observe/http1.py", "observe/http2.py", "control/messages.py"]
)
def test_the_pure_parts_read_no_clock_and_do_no_io(name: str) -> None:
    """They import nothing of the standard library, not even what every interpreter has loaded anyway."""
    for line in (SOURCE / "freeze_proxy" / name).read_text().splitlines():
        words = line.split()
        if words[:1] in (["import"], ["from"]):
            assert words[1].startswith("freeze_proxy."), line


def test_one_machine_needs_no_library_of_the_cluster() -> None:
    """What speaks to runtimes is loaded when the first is asked."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, freeze_proxy.local; print(*sys.modules)"],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout.split()  # fmt: skip
    assert not {"httpx2", "grpclib", "google.protobuf", "lightkube", "prometheus_client", "asyncio"}.intersection(
        loaded
    )


def test_a_module_that_loads_more_would_be_noticed() -> None:
    assert "logging" in loaded_by("logging")
    assert loaded_by("logging") - LITTLE
