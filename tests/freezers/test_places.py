"""Where a container's own cgroup is, read from what kernels say: real paths of real nodes, and any other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.freezers.places import CGROUP2, Mount, across, below, mounts_in, own, paths_in

ID = "3f1c9a5b7d2e4f60819a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70"
OTHER = "a" * 64
POD = "0b7e5a1c-6c55-4f0e-9a57-1d5e8c0f3a11"
SLICE = f"kubepods-burstable-pod{POD.replace('-', '_')}.slice"

OWN = {
    "containerd, systemd driver": f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/cri-containerd-{ID}.scope",
    "CRI-O, systemd driver": f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/crio-{ID}.scope",
    "Docker, systemd driver": f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/docker-{ID}.scope",
    "guaranteed pod": f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{ID}.scope",
    "containerd, cgroupfs driver": f"/kubepods/besteffort/pod{POD}/{ID}",
    "CRI-O, cgroupfs driver": f"/kubepods/burstable/pod{POD}/crio-{ID}",
    "kubelet by systemd, runtime not": f"/system.slice/{SLICE}:cri-containerd:{ID}",
    "kind": f"/kubelet.slice/kubelet-kubepods.slice/kubelet-{SLICE}/cri-containerd-{ID}.scope",
    "kind, seen from its host": f"/docker/{OTHER}/kubelet/kubepods/burstable/pod{POD}/{ID}",
    "seen from a private namespace": f"/../../../burstable/pod{POD}/{ID}",
}


@pytest.mark.parametrize("path", OWN.values(), ids=OWN.keys())
def test_the_container_s_own_cgroup_is_known_by_its_id(path: str) -> None:
    assert own(path, ID) == path


@pytest.mark.parametrize("inside", ["container", "system.slice/app.service", f"cri-containerd-{ID}.scope", OTHER])
@pytest.mark.parametrize("path", OWN.values(), ids=OWN.keys())
def test_cgroups_that_a_container_makes_inside_its_own_are_frozen_with_it(path: str, inside: str) -> None:
    assert own(f"{path}/{inside}", ID) == path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/..",
        "/kubepods",
        f"/kubepods/burstable/pod{POD}",
        f"/kubepods.slice/kubepods-burstable.slice/{SLICE}",
        f"/kubepods/burstable/pod{POD}/{OTHER}",
        f"/kubepods/burstable/pod{POD}/{ID}0",
        f"/kubepods/burstable/pod{POD}/0{ID}",
        f"/kubepods/burstable/pod{POD}/{ID[:-1]}",
        f"/kubepods/burstable/pod{POD}/{ID} (deleted)",
    ],
)
def test_no_other_cgroup_is_a_container_s_own(path: str) -> None:
    assert own(path, ID) is None


names = st.sampled_from(
    [ID, OTHER, f"crio-{ID}.scope", f"pod{POD}", "..", "kubepods", "a b", "x", f"{ID}-x", f"x:{ID}"]
)


@given(st.lists(names, max_size=7))
def test_own_is_always_the_uppermost_with_the_id_and_nothing_else(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    found = own(path, ID)
    carrying = [part for part in parts if part.removesuffix(".scope").endswith(ID)]
    if found is None:
        assert not carrying
    else:
        assert (path + "/").startswith(found + "/")
        assert found.rpartition("/")[2] == carrying[0]
        assert own(found.rpartition("/")[0], ID) is None


# Paths as the kernel writes them for readers in different cgroup namespaces.

trees = st.lists(st.sampled_from("abc"), max_size=5).map(tuple)


def seen(target: tuple[str, ...], root: tuple[str, ...]) -> str:
    """A cgroup's path as it reads from a namespace's root (cgroup_namespaces(7))."""
    common = 0
    while common < min(len(target), len(root)) and target[common] == root[common]:
        common += 1
    return "/" + "/".join([".."] * (len(root) - common) + list(target[common:]))


def reading(target: tuple[str, ...], mounted: tuple[str, ...]) -> str:
    return "/" + "/".join(target[len(mounted) :])


@given(trees, trees, trees, trees)
def test_a_path_in_a_mount_is_right_or_not_known(
    mounted: tuple[str, ...], namespace: tuple[str, ...], inside: tuple[str, ...], target: tuple[str, ...]
) -> None:
    """The daemon's namespace and the target are anywhere; the mounted part may hold both, one or neither."""
    path, self_path = seen(target, namespace), seen((*namespace, *inside), namespace)
    truth = reading(target, mounted) if target[: len(mounted)] == mounted else None
    assert below(path, seen(mounted, namespace)) in (truth, None)
    standing = (*namespace, *inside)
    if standing[: len(mounted)] == mounted and truth is not None:
        # Found by looking, it can always be told, if the namespace's root is inside of what is mounted.
        answer = across(path, self_path, reading(standing, mounted))
        assert answer == truth or (answer is None and len(namespace) < len(mounted))


@given(trees, trees, trees, trees)
def test_a_path_is_right_or_not_known_for_one_that_was_moved_out_of_its_namespace(
    mounted: tuple[str, ...], namespace: tuple[str, ...], standing: tuple[str, ...], target: tuple[str, ...]
) -> None:
    standing, target = (*mounted, *standing), (*mounted, *target)
    namespace = (*mounted, *namespace)
    answer = across(seen(target, namespace), seen(standing, namespace), reading(standing, mounted))
    assert answer in (reading(target, mounted), None)


def test_a_daemon_in_a_pod_finds_its_neighbours_though_their_common_names_are_left_out() -> None:
    assert across(f"/../../burstable/pod1/{ID}", "/", "/kubepods/pod2/daemon") == f"/kubepods/burstable/pod1/{ID}"
    assert across(f"/../{ID}", "/", "/kubepods/pod2/daemon") == f"/kubepods/pod2/{ID}"
    assert across(f"/../{ID}", "/init", "/kubepods/pod2/daemon/init") == f"/kubepods/pod2/{ID}"


HYBRID = """\
24 30 0:22 / /sys rw,nosuid - sysfs sysfs rw
31 24 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
34 31 0:30 / /sys/fs/cgroup/freezer rw,nosuid shared:12 - cgroup cgroup rw,freezer
"""


def test_hierarchies_are_found_where_they_are_mounted() -> None:
    found = mounts_in(HYBRID)
    by_point = {mount.point: mount for mount in found}
    assert by_point["/sys/fs/cgroup/unified"] == Mount(frozenset({CGROUP2}), "/sys/fs/cgroup/unified", "/")
    assert {"cpu", "cpuacct"} <= by_point["/sys/fs/cgroup/cpu,cpuacct"].holds
    assert "freezer" in by_point["/sys/fs/cgroup/freezer"].holds


def test_what_a_later_mount_hides_is_not_found() -> None:
    hidden = HYBRID + "99 24 0:50 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert mounts_in(hidden) == [Mount(frozenset({CGROUP2}), "/sys/fs/cgroup", "/../..")]
    assert mounts_in(HYBRID + "99 24 0:50 / /sys rw - sysfs sysfs rw\n") == []
    assert len(mounts_in(HYBRID + "99 24 0:50 / /sys/fs/cgroup/free rw - tmpfs tmpfs rw\n")) == 3
    assert len(mounts_in(HYBRID + "20 1 0:1 / / rw - ext4 /dev/root rw\n")) == 3


def test_mount_points_with_spaces_and_letters_are_read() -> None:
    line = "34 31 0:30 /a\\040b /mnt/the\\040tree\\134ä rw - cgroup2 none rw\n"
    assert mounts_in(line) == [Mount(frozenset({CGROUP2}), "/mnt/the tree\\ä", "/a b")]


def test_the_paths_of_a_process_by_hierarchy() -> None:
    text = "12:cpu,cpuacct:/kube/x\n9:name=systemd:/\n3:freezer:/a:b\n0::/kubepods.slice/y\n"
    assert paths_in(text) == {
        "cpu": "/kube/x",
        "cpuacct": "/kube/x",
        "name=systemd": "/",
        "freezer": "/a:b",
        CGROUP2: "/kubepods.slice/y",
    }
