"""``make cluster-test``: make what a cluster is made of, run the tests in namespaces of their own, leave nothing.

What is on the machine afterwards: the programs and images in the cache, the results, and the logs if something failed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster import images, programs
from tests.support.cluster.cgroups import Cgroups

ROOT = images.ROOT
LOGS = ROOT / "build" / "cluster-logs"
NAME = "freeze-proxy-cluster"
_BEGAN = time.monotonic()
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def say(text: str) -> None:
    """A line of progress, with the time since the start."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)


class Ended(Exception):
    """Somebody wants us to end."""


def _end(number: int, _frame: object) -> None:
    raise Ended(signal.Signals(number).name)


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _check() -> None:
    if os.geteuid() != 0:
        raise programs.Missing("A node is made of namespaces and cgroups: run make cluster-test as root.")
    done = subprocess.run([ROOT / "scripts/setup-system", "cluster"])
    if done.returncode != 0:
        raise programs.Missing("Programs are missing that the cluster consists of; see above.")


def _environment(folder: Path, cgroup: str) -> dict[str, str]:
    kubernetes = programs.kubernetes(say)
    knative = programs.knative(say)
    ours = images.ours(say)
    images.pause(folder / "pause.tar")
    return {
        **os.environ,
        "PATH": f"{kubernetes}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "CLUSTER_FOLDER": str(folder),
        "CLUSTER_CGROUP": cgroup,
        "CLUSTER_IMAGES": os.pathsep.join(map(str, (folder / "pause.tar", images.knative(knative), ours))),
        "CLUSTER_SERVING": str(programs.source("knative", "knative.dev/serving")),
        "CLUSTER_NETWORKING": str(programs.source("knative", "knative.dev/networking")),
        "CLUSTER_CACHING": str(programs.source("knative", "knative.dev/caching")),
        "CLUSTER_VERSIONS": " ".join(
            (
                f"Kubernetes {programs.version('kubernetes', 'k8s.io/kubernetes')}",
                f"Knative {programs.version('knative', 'knative.dev/serving')}",
            )
        ),
        "CLUSTER_BEGAN": str(_BEGAN),
    }


def _sweep() -> None:
    """Remove what a run that was killed has left."""
    for cgroup in {path.name for path in Path("/sys/fs/cgroup").glob(f"*/{NAME}-*")}:
        if not Path("/proc", cgroup.rpartition("-")[2]).exists():
            Cgroups(cgroup).close()
    for folder in Path(tempfile.gettempdir()).glob(f"{NAME}-*"):
        if not Path("/proc", folder.name.split("-")[3]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def run(arguments: list[str]) -> int:
    """All of it; the exit code of pytest."""
    _check()
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-{os.getpid()}-"))
    cgroups = Cgroups(f"{NAME}-{os.getpid()}")
    process: subprocess.Popen[bytes] | None = None
    code = 1
    try:
        environment = _environment(folder, cgroups.name)
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = [sys.executable, "-m", "tests.cluster.inside", str(folder)]
        chosen = [each for each in arguments if (ROOT / each.partition("::")[0]).exists()]
        tests = [sys.executable, "-m", "pytest", *([] if chosen else ["tests/cluster"]), *arguments]
        say("Into namespaces of our own.")
        process = subprocess.Popen(
            [*unshare, *inside, *tests], cwd=ROOT, env=environment, start_new_session=True, preexec_fn=_die_with_us
        )
        code = process.wait()
    except Ended as ended:
        say(f"{ended}: cleaning up.")
        code = 130
    finally:
        if process is not None and process.poll() is None:
            process.kill()  # and with it, by --kill-child, the first process of the namespace
        # What is frozen cannot die; so the namespace may wait for it.
        cgroups.close()
        if process is not None:
            process.wait(10)
        if code not in (0, 130):
            shutil.rmtree(LOGS, ignore_errors=True)
            shutil.copytree(folder / "logs", LOGS, symlinks=True) if (folder / "logs").exists() else None
            say(f"What the components said is in {LOGS.relative_to(ROOT)}/.")
        shutil.rmtree(folder)
    say("Done." if code == 0 else "Failed.")
    return code


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        sys.exit(run(sys.argv[1:]))
    except programs.Missing as missing:
        sys.exit(f"cluster-test: {missing}")
    except Ended:
        sys.exit(130)
