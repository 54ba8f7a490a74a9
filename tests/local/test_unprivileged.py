"""Without root: by SIGSTOP, and the start line says why; or, where a cgroup was asked for, not at all."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from freeze_proxy.freezers import cgroup
from tests.support.needs import need, need_program, need_root
from tests.support.proxies import HIERARCHIES, SERVER, Proxies, Proxy, need_freezer
from tests.support.running import process_state
from tests.support.wait import until

NOBODY = "65534"
PACKAGES = ("freeze_proxy", "click", "rich", "pygments", "markdown_it", "mdurl")


class Nobody:
    """A user without any rights, an interpreter that they may run, and a copy of what it is to import."""

    def __init__(self, place: Path) -> None:
        self._place = place
        setpriv = [need_program("setpriv", "util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        # What setpriv itself executes, it executes with its capabilities.
        self.become = [*setpriv, "sh", "-c", 'exec "$@"', "sh"]
        place.chmod(0o755)
        for name in PACKAGES:
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(SERVER[-1], place)
        pythons = [os.path.realpath(sys.executable), "/usr/bin/python3"]
        works = [python for python in pythons if self._works(python)]
        need(bool(works), "There is no Python 3.11 here that everybody may run.")
        self.python = works[0]
        self.server = [self.python, "-I", "-S", str(place / "server.py")]

    def _works(self, python: str) -> bool:
        program = "import sys; sys.exit(sys.version_info < (3, 11))"
        return subprocess.run([*self.become, python, "-c", program], stderr=subprocess.DEVNULL).returncode == 0

    def start(self, proxies: Proxies, *arguments: str, wrap: Sequence[str] = ()) -> Proxy:
        """freeze-proxy as this user."""
        return proxies.start(
            *arguments,
            wrap=[*wrap, *self.become],
            python=self.python,
            cwd=self._place,
            environment={"PYTHONPATH": str(self._place)},
        )


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    need_root()
    place = Path(tempfile.mkdtemp(prefix="freeze-proxy-test-"))
    try:
        yield Nobody(place)
    finally:
        shutil.rmtree(place)


def test_auto_falls_back_to_the_process_tree_and_says_why(proxies: Proxies, nobody: Nobody) -> None:
    proxy = nobody.start(proxies, "run", "--listen", "127.0.0.1:0", "--grace", "20ms", *nobody.server)
    assert proxy.start["freezer"] == "process"
    assert "No cgroup can be made in " in proxy.start["message"]
    assert ": Permission denied; run as root, or in a delegated cgroup (systemd-run" in proxy.start["message"]
    until(lambda: process_state(proxy.server) == "T", "it is stopped")
    assert proxy.get() == b"/"
    until(lambda: process_state(proxy.server) == "T", "it is stopped again")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    proxy.assert_nothing_left()


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup1"])
def test_a_cgroup_that_is_asked_for(proxies: Proxies, nobody: Nobody, kind: str) -> None:
    need_freezer(kind)
    proxy = nobody.start(proxies, "run", "--listen", "127.0.0.1:0", "--freezer", kind, *nobody.server)
    assert proxy.wait() == 125
    assert proxy.sentence() == (
        f"No cgroup can be made in {cgroup.place(HIERARCHIES[kind])}: Permission denied; run as root, or in a "
        "delegated cgroup (systemd-run --user --scope -p Delegate=yes …)."
    )
    proxy.assert_nothing_left()


def test_a_delegated_cgroup(proxies: Proxies, nobody: Nobody) -> None:
    """As systemd delegates one: the directory and its cgroup.procs belong to the user."""
    need_freezer("cgroup2")
    parent = cgroup.place("cgroup2")
    assert parent is not None
    own = Path(parent, f"freeze-proxy-test-{os.getpid()}-delegated")
    own.mkdir()
    try:
        for path in (own, own / "cgroup.procs", own / "cgroup.subtree_control", own / "cgroup.threads"):
            os.chown(path, int(NOBODY), int(NOBODY))
        join = ["sh", "-c", f'echo 0 > {own}/cgroup.procs; exec "$@"', "sh"]
        arguments = ["run", "--listen", "127.0.0.1:0", "--grace", "20ms", *nobody.server]
        proxy = nobody.start(proxies, *arguments, wrap=join)
        assert proxy.start["freezer"] == "cgroup2"
        assert Path(proxy.where).parent == own
        proxy.await_frozen()
        assert proxy.get() == b"/"
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 143
        assert [path for path in own.iterdir() if path.is_dir()] == []
    finally:
        proxies.close()
        assert cgroup.remove(str(own))


def test_a_port_for_root(proxies: Proxies, nobody: Nobody) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    need(first > 81, "Every port is for everybody here.")
    proxy = nobody.start(proxies, "run", "--listen", "127.0.0.1:81", *nobody.server)
    assert proxy.wait() == 125
    assert proxy.sentence() == "127.0.0.1:81 cannot be listened on by this user: ports below 1024 are for root."


def test_a_report_that_may_not_be_written(proxies: Proxies, nobody: Nobody) -> None:
    report = ["--report", "/freeze-proxy-test.json"]
    proxy = nobody.start(proxies, "run", "--listen", "127.0.0.1:0", *report, *nobody.server)
    assert proxy.wait() == 125
    assert (
        proxy.sentence() == "The report /freeze-proxy-test.json cannot be written: it cannot be written by this user."
    )


def test_somebody_elses_process(proxies: Proxies, nobody: Nobody) -> None:
    with subprocess.Popen(SERVER, env={**os.environ, "PORT": "0"}, stdout=subprocess.DEVNULL) as process:
        try:
            proxy = nobody.start(
                proxies, "attach", "--listen", "127.0.0.1:0", "--pid", str(process.pid), "--target", "127.0.0.1:1"
            )
            assert proxy.wait() == 125
            assert proxy.sentence() == (
                f"Process {process.pid} (python) belongs to another user and cannot be stopped; "
                "run freeze-proxy as root or as that user."
            )
        finally:
            process.kill()
