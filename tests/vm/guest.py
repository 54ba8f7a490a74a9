"""What the virtual machine's systemd starts: the tests, and then their results onto a disk."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.vm.rootfs import RESULTS_DISK

ORDERS = "vm-orders.json"
"""A file that is handed in besides the checkout: options of ``pytest``, its ``environment``, ``within`` so many
seconds; or ``shell``."""
RESULTS = "RESULTS"
"""The variable of the folder whose files come out."""
CODE = "exit-code"
"""The file that tells how the tests have ended; without it they have not."""
_PATIENCE = 30


def main() -> None:
    """Run them."""
    print("The machine is up.", flush=True)
    orders = json.loads(Path(ORDERS).read_text())
    # A node of a cluster has its loopback, and so do the sandboxes of pods.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if orders.get("shell"):
        os.execvp("bash", ["bash", "--login"])
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        environment = {**os.environ, **orders["environment"], RESULTS: folder}
        command = [sys.executable, "-m", "pytest", f"--junitxml={results / 'junit.xml'}", *orders["pytest"]]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        (results / CODE).write_text(str(_ended(process, orders["within"])))
        with tarfile.open(RESULTS_DISK, "w:") as tar:
            for file in sorted(results.iterdir()):
                tar.add(file, file.name)


def _ended(process: "subprocess.Popen[bytes]", within: float) -> int:
    """Its exit code. When its time is up it is interrupted, so that it tells what it has done until then."""
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        print("The time is up.", flush=True)
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


if __name__ == "__main__":
    main()
