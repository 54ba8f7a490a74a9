"""Finding cgroups for real: hierarchies of this machine, and daemons in cgroup namespaces of their own."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeze_proxy.freezers import FreezeError, Gone
from freeze_proxy.freezers.places import CGROUP2, FREEZER, by_cgroup, directory, frozen_by_runtime, holds
from tests.support.cluster import cgroups
from tests.support.needs import need, need_program
from tests.support.wait import until

ID = "3f1c9a5b7d2e4f60819a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70"
ROOT = Path(__file__).parents[2]

BOX = "kubepods/daemon/box"
"""Where the daemon is, in most of these tests."""

ASK = """
import json, sys
from freeze_proxy.freezers import FreezeError
from freeze_proxy.freezers.places import directory, standing
hierarchy, pid, id = sys.argv[1:]
try:
    found = directory(hierarchy, int(pid), id) if int(pid) else standing(hierarchy)
    print(json.dumps({"found": found, "kind": ""}))
except FreezeError as error:
    print(json.dumps({"found": str(error), "kind": type(error).__name__}))
"""


class Tree:
    """Cgroups of the test's own in one hierarchy, with a sleeping process in each that is asked for."""

    def __init__(self, hierarchy: str) -> None:
        mounted = cgroups.hierarchies()
        name = "" if hierarchy == CGROUP2 else hierarchy
        need(name in mounted, f"This machine has no hierarchy {hierarchy}.")
        self.hierarchy = hierarchy
        self.groups = cgroups.Cgroups(f"freeze-proxy-places-{os.getpid()}")
        self.root = mounted[name]
        self.top = self.root / self.groups.name
        self.top.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    def made(self, path: str) -> Path:
        place = self.top / path
        place.mkdir(parents=True, exist_ok=True)
        return place

    def sleeper(self, path: str) -> int:
        """The PID of a process in this cgroup."""
        place = self.made(path)
        process = subprocess.Popen(["sleep", "600"])
        self.processes.append(process)
        (place / "cgroup.procs").write_text(str(process.pid))
        return process.pid

    def ask(self, box: str, before: str, pid: int, id: str = ID) -> tuple[str, str]:
        """What a process in the cgroup ``box`` and a namespace of its own finds, after it has mounted something.

        For the process 0 it looks for itself.
        """
        box_procs = self.made(box) / "cgroup.procs"
        script = f'echo $$ >{box_procs}\nexec unshare --cgroup --mount sh -e -c "$0" "$@"\n'
        inner = textwrap.dedent(before) + f'\nexec {sys.executable} -c "$0" "$@"\n'
        command = ["sh", "-e", "-c", script, inner, ASK, self.hierarchy, str(pid), id]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return answer["found"], answer["kind"]

    @property
    def mount(self) -> str:
        """The command that mounts this hierarchy as the namespace has it, without a place."""
        return "mount -t cgroup2 none" if self.hierarchy == CGROUP2 else f"mount -t cgroup -o {self.hierarchy} none"

    @property
    def own_view(self) -> str:
        """The command that lays over the hierarchy the part that a container is shown: its own cgroup (see ``BOX``)."""
        return f"mount --bind {self.top}/{BOX} {self.root}"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(10)
        self.groups.close()


@pytest.fixture(params=[FREEZER, CGROUP2])
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    need_program("unshare", "util-linux")
    made = Tree(request.param)
    try:
        yield made
    finally:
        made.close()


POD = "kubepods/burstable/pod1"


def test_the_container_s_own_cgroup_is_found(tree: Tree) -> None:
    pid = tree.sleeper(f"{POD}/{ID}")
    assert directory(tree.hierarchy, pid, ID) == str(tree.top / POD / ID)
    assert holds(pid, ID)


def test_cgroups_inside_of_it_lead_to_it(tree: Tree) -> None:
    pid = tree.sleeper(f"{POD}/crio-{ID}.scope/container/deeper")
    assert directory(tree.hierarchy, pid, ID) == str(tree.top / POD / f"crio-{ID}.scope")


def frozen_at(tree: Tree, pid: int) -> str:
    freezer = by_cgroup(ID, pid, "freeze", "cgroup1" if tree.hierarchy == FREEZER else "cgroup2")
    freezer.close()
    return freezer.where


def test_crun_s_cgroup_inside_of_systemd_s_scope_is_frozen_in_place_of_the_scope(tree: Tree) -> None:
    """On cgroup2, where crun looks at no other. The container may have more of them inside."""
    scope = f"{POD}/crio-{ID}.scope"
    for inside in ("container", "container/init.scope"):
        pid = tree.sleeper(f"{scope}/{inside}")
        assert frozen_at(tree, pid) == str(tree.top / scope / ("" if tree.hierarchy == FREEZER else "container"))
        assert frozen_by_runtime(tree.hierarchy, pid, ID) == frozen_at(tree, pid)


@pytest.mark.parametrize(
    ("main", "other"),
    [
        ("crio-{}.scope/container", "crio-{}.scope/beside"),
        ("crio-{}.scope/container", "crio-{}.scope"),
        ("crio-{}.scope/containers", None),
        ("crio-{}.scope/deeper/container", None),
        ("crio-{}.scope", "crio-{}.scope/container"),
        ("{}/container", None),
    ],
)
def test_no_cgroup_that_a_container_makes_is_taken_for_crun_s(tree: Tree, main: str, other: str | None) -> None:
    """What is frozen must hold all of the container."""
    pid = tree.sleeper(f"{POD}/{main.format(ID)}")
    if other is not None:
        tree.sleeper(f"{POD}/{other.format(ID)}")
    assert frozen_at(tree, pid) == str(tree.top / POD / main.format(ID).partition("/")[0])


def test_a_process_of_somebody_else_is_not_the_container_s(tree: Tree) -> None:
    """As when the container has ended and its PID is used again."""
    pid = tree.sleeper(f"{POD}/{'b' * 64}")
    with pytest.raises(Gone, match="no longer, or never was"):
        directory(tree.hierarchy, pid, ID)
    assert not holds(pid, ID)
    tree.processes[0].kill()
    tree.processes[0].wait(10)
    with pytest.raises(Gone, match="no process"):
        directory(tree.hierarchy, pid, ID)
    assert not holds(pid, ID)


def test_the_daemon_never_freezes_itself(tree: Tree) -> None:
    """It is in the container that it is asked to freeze, or in a cgroup inside of that."""
    for path in (f"{POD}/{ID}", f"{POD}/{ID}/inside"):
        place = tree.made(path)
        script = f'echo $$ >{place}/cgroup.procs; exec {sys.executable} -c "$0" {tree.hierarchy} $$ {ID}'
        done = subprocess.run(
            ["sh", "-ec", script, ASK],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
        )  # fmt: skip
        assert "would freeze with it" in json.loads(done.stdout)["found"], done.stderr


def test_a_daemon_in_a_namespace_of_its_own_finds_what_is_beside_and_above(tree: Tree) -> None:
    """With the host's hierarchy as it was mounted before: paths in /proc begin with /.. and leave out names."""
    for path in (f"{POD}/{ID}", f"other/pod2/{ID}", f"kubepods/daemon/{ID}"):
        pid = tree.sleeper(path)
        assert tree.ask(BOX, "", pid) == (str(tree.top / path), "")


def test_a_bind_mount_of_the_host_s_hierarchy_elsewhere_will_do(tree: Tree, tmp_path: Path) -> None:
    """The usual place shows the daemon's own cgroup alone, as runtimes mount it into a container."""
    pid = tree.sleeper(f"{POD}/{ID}")
    before = f"mount --bind {tree.root} {tmp_path}\n{tree.own_view}"
    assert tree.ask(BOX, before, pid) == (f"{tmp_path}/{tree.groups.name}/{POD}/{ID}", "")


def test_a_part_of_the_host_s_hierarchy_will_do_if_the_container_is_in_it(tree: Tree, tmp_path: Path) -> None:
    inside, outside = tree.sleeper(f"{POD}/{ID}"), tree.sleeper(f"other/{ID}")
    before = f"mount --bind {tree.top}/kubepods {tmp_path}\n{tree.own_view}"
    assert tree.ask(BOX, before, inside) == (f"{tmp_path}/burstable/pod1/{ID}", "")
    found, kind = tree.ask(BOX, before, outside)
    assert kind == "FreezeError"
    assert "out of sight" in found


def test_a_daemon_in_a_namespace_of_its_own_knows_where_it_is(tree: Tree, tmp_path: Path) -> None:
    assert tree.ask(BOX, "", 0) == (str(tree.top / BOX), "")
    assert tree.ask(BOX, f"mount --bind {tree.root} {tmp_path}", 0)[0] in (
        f"{tmp_path}/{tree.groups.name}/{BOX}",
        str(tree.top / BOX),
    )
    assert tree.ask(BOX, tree.own_view, 0) == (str(tree.root), "")


def test_without_the_host_s_hierarchy_a_sentence_says_what_to_mount(tree: Tree) -> None:
    pid = tree.sleeper(f"{POD}/{ID}")
    found, kind = tree.ask(BOX, tree.own_view, pid)
    assert kind == "FreezeError"
    assert "out of sight" in found
    assert "mount the node's /sys/fs/cgroup into it" in found


def test_a_node_that_is_a_container_itself(tree: Tree, tmp_path: Path) -> None:
    """As kind has it: the node is in a namespace of its own, and the daemon in one inside of that."""
    pid = tree.sleeper(f"node/kubelet.slice/{POD}/cri-containerd-{ID}.scope")
    box = tree.made("node/kubelet.slice/kubepods/daemon/box") / "cgroup.procs"
    before = f"""
        {tree.mount} {tmp_path}
        echo $$ >{box}
        exec unshare --cgroup --mount {sys.executable} -c "$0" "$@"
    """
    found, kind = tree.ask("node", before, pid)
    assert kind == ""
    # The node's own mount, or the host's one below it: both are the container's cgroup.
    assert found in (
        f"{tmp_path}/kubelet.slice/{POD}/cri-containerd-{ID}.scope",
        f"{tree.top}/node/kubelet.slice/{POD}/cri-containerd-{ID}.scope",
    )


def test_on_a_hybrid_node_the_freezer_of_v1_is_taken() -> None:
    mounted = cgroups.hierarchies()
    need("freezer" in mounted and "" in mounted, "This machine is no hybrid of cgroup v1 and v2.")
    first = Tree(FREEZER)
    try:
        second = Tree(CGROUP2)
        try:
            pid = second.sleeper(f"{POD}/{ID}")
            freezer = by_cgroup(ID, pid, "freeze")
            assert freezer.kind == "cgroup2"
            freezer.close()
            (first.made(f"{POD}/{ID}") / "cgroup.procs").write_text(str(pid))
            freezer = by_cgroup(ID, pid, "freeze")
            assert freezer.kind == "cgroup1"
            assert freezer.freeze() or until(freezer.frozen, "it is frozen")
            assert cgroups.frozen(pid)
            freezer.thaw()
            assert not cgroups.frozen(pid)
            freezer.close()
        finally:
            second.close()
    finally:
        first.close()


def test_throttling_writes_the_hierarchy_that_has_the_cpu_controller() -> None:
    tree = Tree("cpu")
    try:
        pid = tree.sleeper(f"{POD}/{ID}")
        freezer = by_cgroup(ID, pid, "throttle")
        assert freezer.where == str(tree.top / POD / ID)
        assert freezer.freeze()
        assert (tree.top / POD / ID / "cpu.cfs_quota_us").read_text() == "1000\n"
        freezer.thaw()
        assert (tree.top / POD / ID / "cpu.cfs_quota_us").read_text() == "-1\n"
        freezer.close()
        with pytest.raises(FreezeError, match="no cgroup of its own"):
            by_cgroup(ID, pid, "freeze")
    finally:
        tree.close()
