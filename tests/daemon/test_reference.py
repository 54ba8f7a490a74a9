"""What is written about the daemon agrees with what it is: options, metrics, events, statuses."""

import ast
import re
from pathlib import Path

import freeze_proxy
from scripts import reference
from tests.support.daemons import Daemon

SOURCE = Path(freeze_proxy.__file__).parent
ANSWERING = [SOURCE / "control" / "server.py", SOURCE / "daemon" / "service.py"]


def page() -> str:
    return reference.PAGE.read_text()


def first_column(page: str, section: str) -> list[str]:
    """Of the tables in a section, the first cell of each row."""
    text = re.split(r"^## ", page, flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(section + "\n")]
    return [line.split("|")[1].strip() for line in found.splitlines() if line.startswith("| ")]


def test_the_options_are_those_of_the_command() -> None:
    assert reference.written(page(), reference.OPTIONS, reference.options()) == page(), "run scripts.reference"


def test_the_metrics_are_those_of_a_daemon_that_runs(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(reference.KUBECONFIG)
    with Daemon(tmp_path, kubeconfig, tmp_path / "nobody.sock") as daemon:
        status, text = daemon.ask("/metrics")
    assert status == 200
    assert reference.written(page(), reference.METRICS, reference.metrics(text)) == page(), "run scripts.reference"


def test_what_the_log_tells_is_listed() -> None:
    """Every event by a constant text; those that come from elsewhere have none."""
    told = set()
    for path in [*(SOURCE / "daemon").rglob("*.py"), SOURCE / "control" / "server.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
                told |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    listed = first_column(page(), "The log")
    assert told
    assert set(listed) == told | {"event"}


def test_each_status_is_explained() -> None:
    text = "".join(path.read_text() for path in ANSWERING)
    used = set(re.findall(r"(?:_Wrong|error|_refuse|_trouble = )\(?\(?(?:self\._trouble or \()?\s*(\d{3})\b", text))
    assert used >= {"403", "409", "429", "431", "500", "504"}
    told = {
        status for cell in first_column(page(), "The control protocol") for status in re.findall(r"\b\d{3}\b", cell)
    }
    assert told == used | {"200"}


def test_what_was_seen_of_frozen_containers_becomes_a_table() -> None:
    told = {
        "date": "2026-01-02",
        "versions": {"containerd": "1", "runc": "2", "crun": "3", "systemctl": "4", "linux": "5"},
        "seen": {"exec": {"runc": "refused", "crun": "hangs"}, "kill": {"runc": "ends", "crun": "ends"}},
    }
    rows = reference.frozen(told).splitlines()
    assert rows[:4] == [
        "| what | runc | crun |",
        "|---|---|---|",
        "| exec | refused | hangs |",
        "| kill | ends | the same |",
    ]
    assert "systemd 4, Linux 5" in rows[-1]
    assert "2026-01-02" in rows[-1]
    page = reference.FROZEN.read_text()
    assert reference.written(page, reference.ON_CGROUP2, "") != page, "run make vm-test and scripts.reference frozen"
