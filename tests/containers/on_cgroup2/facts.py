"""What was seen in the machine: ``scripts.reference`` writes it into docs/frozen-containers.md."""

import json
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

from tests.support.cluster.containerd import RUNTIMES
from tests.vm.guest import RESULTS

NAME = "frozen.json"


class Facts:
    """In ``frozen.json``: a text by row and runtime, and versions. Written anew with each: a run may be interrupted."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, str]] = {}
        self._versions = {name: _version(name, "--version") for name in ("containerd", *RUNTIMES, "systemctl")}
        self._versions["linux"] = platform.release().partition("-")[0]

    def see(self, row: str, runtime: str, text: str) -> None:
        """One cell of the table."""
        self._seen.setdefault(row, {})[runtime] = text
        if folder := os.environ.get(RESULTS):
            told = {"date": str(date.today()), "versions": self._versions, "seen": self._seen}
            Path(folder, NAME).write_text(json.dumps(told, indent=4, ensure_ascii=False) + "\n")


def _version(*command: str) -> str:
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"\d+(\.\d+)*", said)
    assert found is not None, said
    return found[0]
