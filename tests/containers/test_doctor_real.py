"""The doctor on a node with a container runtime and pods."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.cluster import cgroups
from tests.support.cluster.kubelet import Kubelet
from tests.support.needs import need, need_program
from tests.support.ports import LOOPBACK, free_port


def doctor(socket: Path, state: Path, *options: str, prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Its exit code and findings."""
    done = subprocess.run(
        [
            *(*prefix, sys.executable, "-m", "freeze_proxy", "doctor", "--json"),
            *("--runtime-socket", str(socket), "--state-dir", str(state)),
            *("--listen", f"{LOOPBACK}:{free_port()}", "--health-listen", f"{LOOPBACK}:{free_port()}", *options),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["works"] == (done.returncode == 0)
    return done.returncode, {check["what"].partition(" (")[0]: check for check in said["checks"]}


def test_a_node_where_all_works(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.pod(["user-container", "queue-proxy"])
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state")
    assert code == 0, found
    assert found["container runtime"]["found"].startswith("containerd ")
    assert found["containers"]["found"] == "2 in 1 pod; processes found of 2, cgroups writable of 2"
    assert found["how containers will be frozen"]["found"] == "by writing their cgroups"


def test_a_node_without_pods(kubelet: Kubelet, tmp_path: Path) -> None:
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state")
    assert code == 0, found
    assert found["containers"]["found"] == "none, in 0 pods"
    assert found["containers"]["works"] is None


def test_in_a_cgroup_namespace_of_its_own(kubelet: Kubelet, tmp_path: Path) -> None:
    """As in the daemon's container, on cgroup v2 above all."""
    kubelet.pod(["user-container"])
    script = ""
    for place in dict.fromkeys(cgroups.hierarchies().values()):
        if "cpuset" not in place.name:  # a new cpuset has no CPU to run on
            box = place / kubelet.containerd.cgroups.name / "kubepods" / "the-daemon-s"
            box.mkdir(parents=True)
            script += f"echo $$ >{box}/cgroup.procs\n"
    prefix = ("sh", "-ec", script + 'exec unshare --cgroup "$@"', need_program("unshare", "util-linux"))
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state", prefix=prefix)
    assert code == 0, found
    assert "/kubepods/the-daemon-s" in found["freezing by cgroup"]["found"]
    assert found["containers"]["found"] == "1 in 1 pod; processes found of 1, cgroups writable of 1"
    assert found["cpu controller, for the mode throttle"]["works"]


def test_cgroups_that_are_read_only(kubelet: Kubelet, tmp_path: Path) -> None:
    """As for a container without the node's /sys/fs/cgroup."""
    kubelet.pod(["user-container"])
    mounts = [str(place) for place in cgroups.hierarchies().values()]
    script = "".join(f"mount -o remount,bind,ro {place}\n" for place in dict.fromkeys(mounts)) + 'exec "$@"'
    prefix = (need_program("unshare", "util-linux"), "--mount", "sh", "-ec", script, "sh")
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state", prefix=prefix)
    assert code == 0, found
    assert found["freezing by cgroup"]["works"] is False
    assert "writable" in found["freezing by cgroup"]["advice"]
    assert found["how containers will be frozen"]["found"] == "by asking containerd, which takes milliseconds"
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state", "--freezer", "cgroup", prefix=prefix)
    assert code == 1
    assert found["how containers will be frozen"]["works"] is False


def test_processes_that_are_out_of_sight(kubelet: Kubelet, tmp_path: Path) -> None:
    """As without hostPID."""
    need(Path("/proc/self/ns/pid").exists(), "This kernel has no PID namespaces.")
    kubelet.pod(["user-container"])
    prefix = (need_program("unshare", "util-linux"), "--pid", "--fork", "--mount-proc")
    code, found = doctor(kubelet.containerd.socket, tmp_path / "state", prefix=prefix)
    assert code == 1
    assert "hostPID: true" in found["containers"]["advice"]
