"""What a daemon with ``--ambient`` makes of the reports of a real queue-proxy."""

import json
import subprocess
import sys

from tests.cluster import programs, reports


def test_nothing_is_in_flight_when_it_says_so_and_it_says_so_soon() -> None:
    queue = programs.knative(print) / "queue"
    script = f"ip link set lo up && exec {sys.executable} -m tests.cluster.reports {queue}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    looks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert any(busy for _, busy, _ in looks), looks
    assert not any(busy and idle for _, busy, idle in looks), looks
    for began, takes in reports.REQUESTS:
        # Three reports, a look after each, and the turns of a machine that is busy.
        assert any(idle for at, _, idle in looks if began + takes < at <= began + takes + 3.9), looks
