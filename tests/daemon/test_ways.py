"""Which freezer a container gets: by its cgroup, or by its runtime."""

from collections.abc import Callable

import pytest

from freeze_proxy.daemon import places
from freeze_proxy.daemon.places import Ways, kind_of
from freeze_proxy.freezers import FreezeError, Freezer, Gone
from freeze_proxy.freezers import containerd as containerd_module
from freeze_proxy.freezers import crio as crio_module
from freeze_proxy.freezers import docker as docker_module

ID = "a" * 64


class Made(Freezer):
    """Tells of what it was made."""

    def __init__(self, kind: str, *made_of: str) -> None:
        self.kind = kind
        self.made_of = made_of


@pytest.fixture(autouse=True)
def makers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtimes' freezers tell of what they are made, the process is the container's, the cgroup can be written."""

    def maker(kind: str) -> Callable[..., Made]:
        return lambda *made_of: Made(kind, *made_of)

    monkeypatch.setattr(containerd_module, "ContainerdFreezer", maker("containerd"))
    monkeypatch.setattr(docker_module, "DockerFreezer", maker("docker"))
    monkeypatch.setattr(crio_module, "CrioFreezer", maker("crio"))
    monkeypatch.setattr(places, "holds", lambda _pid, _id: True)
    monkeypatch.setattr(places, "by_cgroup", lambda id, _pid, mode: Made("cgroup", id, mode))


def fail(monkeypatch: pytest.MonkeyPatch, error: FreezeError) -> None:
    def by_cgroup(id: str, pid: int, mode: str) -> Freezer:
        raise error

    monkeypatch.setattr(places, "by_cgroup", by_cgroup)


def chosen(kind: str, name: str, socket: str = "/cri.sock", mode: str = "freeze") -> tuple[str, ...]:
    freezer = Ways(kind, lambda: (name, socket))(ID, 7, mode)
    assert isinstance(freezer, Made)
    return (freezer.kind, *freezer.made_of)


@pytest.mark.parametrize("kind", ["auto", "cgroup"])
def test_the_cgroup_is_the_first_choice(kind: str) -> None:
    assert chosen(kind, "containerd") == ("cgroup", ID, "freeze")


@pytest.mark.parametrize("kind", places.KINDS)
def test_throttling_is_always_by_the_cgroup(kind: str) -> None:
    assert chosen(kind, "containerd", mode="throttle") == ("cgroup", ID, "throttle")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("containerd", ("containerd", "/cri.sock", "k8s.io", ID)),
        ("cri-o", ("crio", "/cri.sock", ID)),
        # cri-dockerd's socket is not Docker's.
        ("docker", ("docker", "/run/docker.sock", ID)),
    ],
)
def test_where_it_cannot_be_written_the_runtime_is_asked(
    name: str, made: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, FreezeError("It cannot be written."))
    assert chosen("auto", name) == made
    with pytest.raises(FreezeError, match="cannot be written"):
        chosen("cgroup", name)


def test_a_runtime_that_nobody_knows_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, FreezeError("It cannot be written."))
    for name in ("frakti", ""):
        with pytest.raises(FreezeError, match=r"It cannot be written\. The runtime .*cannot be asked"):
            chosen("auto", name)


def test_a_container_that_is_gone_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, Gone("It is gone."))
    with pytest.raises(Gone):
        chosen("auto", "containerd")


def test_a_process_that_is_not_the_container_s_is_left_alone_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "holds", lambda _pid, _id: False)
    for kind in ("containerd", "docker", "crio"):
        with pytest.raises(Gone):
            chosen(kind, "containerd")


def test_a_way_that_is_asked_for_is_taken_at_its_own_socket() -> None:
    assert chosen("containerd", "containerd") == ("containerd", "/cri.sock", "k8s.io", ID)
    assert chosen("containerd", "docker") == ("containerd", "/run/containerd/containerd.sock", "k8s.io", ID)
    assert chosen("crio", "") == ("crio", "/run/crio/crio.sock", ID)
    freezer = Ways("docker", lambda: ("docker", "/cri.sock"), {"docker": "/elsewhere.sock"})(ID, 7, "freeze")
    assert isinstance(freezer, Made)
    assert freezer.made_of == ("/elsewhere.sock", ID)


def test_kinds() -> None:
    assert [kind_of(name) for name in ("containerd", "cri-o", "docker", "rkt")] == [
        "containerd",
        "crio",
        "docker",
        None,
    ]
