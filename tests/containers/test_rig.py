"""The rig itself: that real containers run on it as on a node, and that it leaves nothing behind."""

import signal

import grpc
import httpx

from tests.support.cluster import cgroups
from tests.support.cluster.containerd import RUNTIMES, Containerd
from tests.support.cluster.crio_stand_in import CrioStandIn
from tests.support.cluster.dockerd import Dockerd
from tests.support.cluster.kubelet import Kubelet
from tests.support.cluster.messages import EXITED, MESSAGES, RUNNING
from tests.support.cluster.programs import mounts_below, processes_with
from tests.support.wait import until


def test_a_pod_comes_up(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container", "queue-proxy"], runtime)
    for container in pod.containers.values():
        container.await_ticks()
        assert container.running
        assert not container.frozen
        until(lambda container=container: container.printed == ["started"], "its log arrives")  # type: ignore[misc]
    assert pod["user-container"].cgroup != pod["queue-proxy"].cgroup


def test_each_pod_runs_on_the_runtime_that_was_asked_for(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container"], runtime)
    for name in RUNTIMES:
        has = (kubelet.containerd.folder / name / "k8s.io" / pod["user-container"].id).exists()
        assert has == (name == runtime)


def test_a_container_is_placed_as_a_kubelet_places_it(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container"], runtime)
    container = pod["user-container"]
    path = kubelet.containerd.cgroups.of_container(pod.uid, container.id)
    mounted = cgroups.hierarchies()
    for name, place in cgroups.places(container.pid).items():
        # The cgroup2 of a hybrid node is the one place where runtimes differ.
        if name or "freezer" not in mounted:
            inside = "/container" if (kubelet.containerd.cgroups.driver, runtime) == ("systemd", "crun") else ""
            assert str(place) == f"{mounted[name]}{path}{inside}"


def test_commands_run_in_it(kubelet: Kubelet, runtime: str) -> None:
    container = kubelet.pod(["user-container"], runtime)["user-container"]
    assert container.execute("sh", "-c", "echo out; echo error >&2; exit 3") == (3, b"out\n", b"error\n")
    assert container.stats().memory.working_set_bytes.value > 0


def test_a_restart_gives_another_container_of_the_same_name(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container", "queue-proxy"], runtime)
    first, other = pod["user-container"], pod["queue-proxy"]
    second = pod.restart("user-container")
    second.await_ticks()
    assert second is pod["user-container"]
    assert (second.id != first.id, second.pid != first.pid, second.attempt) == (True, True, 1)
    assert (first.state, second.running, other.running) == (EXITED, True, True)
    assert not first.alive


def test_a_container_that_is_killed_has_ended(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container"], runtime)
    pod.kill("user-container")
    pod["user-container"].await_exit()
    assert pod["user-container"].status().status.exit_code == 128 + signal.SIGKILL


def test_a_deleted_pod_ends_in_its_own_time(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container"], runtime)
    container = pod["user-container"]
    container.await_ticks()
    container.stop(grace=10)
    assert container.status().status.exit_code == 0
    assert container.printed == ["started", "terminated"]


def test_a_deleted_pod_leaves_nothing(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container", "queue-proxy"], runtime)
    pod.restart("user-container")
    pids = [container.pid for container in pod.containers.values()]
    groups = kubelet.containerd.cgroups
    assert groups.below(groups.pod_name(pod.uid))
    pod.delete(grace=5)
    until(lambda: not processes_with(pod.id), "its shim has ended")
    assert not any(map(cgroups.lives, pids))
    assert not groups.below(groups.pod_name(pod.uid))
    assert not [mount for mount in mounts_below(kubelet.containerd.folder) if pod.id in mount]
    assert not kubelet.containerd.ctr("tasks", "list", "--quiet").strip()


def test_pods_outlive_containerd(kubelet: Kubelet, runtime: str) -> None:
    container = kubelet.pod(["user-container"], runtime)["user-container"]
    container.await_ticks()
    kubelet.containerd.kill()
    container.await_ticks()
    kubelet.containerd.start()
    assert container.running
    assert container.execute("echo", "here").out == b"here\n"
    container.await_ticks()


def test_the_kernels_word_is_read_in_either_hierarchy(kubelet: Kubelet) -> None:
    container = kubelet.pod(["user-container"])["user-container"]
    container.await_ticks()
    places = {name: place for name, place in cgroups.places(container.pid).items() if container.id in str(place)}
    assert {"", "freezer"} & set(places)
    for name, control, freeze, thaw in (
        ("freezer", "freezer.state", "FROZEN", "THAWED"),
        ("", "cgroup.freeze", "1", "0"),
    ):
        if name in places:
            (places[name] / control).write_text(freeze)
            container.await_frozen()
            assert container.stands_still()
            (places[name] / control).write_text(thaw)
            container.await_awake()
            container.await_ticks()


def test_a_container_is_frozen_and_thawed_for_a_test(kubelet: Kubelet, runtime: str) -> None:
    pod = kubelet.pod(["user-container", "queue-proxy"], runtime)
    container, other = pod["user-container"], pod["queue-proxy"]
    container.await_ticks()
    container.freeze_cgroup()
    assert (container.frozen, other.frozen) == (True, False)
    assert container.stands_still()
    other.await_ticks()
    container.thaw_cgroup()
    container.await_ticks()
    assert not container.frozen


def test_dockerd_runs_a_container(dockerd: Dockerd) -> None:
    container = dockerd.run("ticker")
    container.await_ticks()
    assert (container.status, container.frozen, container.printed) == ("running", False, ["started"])
    assert container.id in str(container.cgroup)
    dockerd.docker("pause", container.id)
    assert (container.status, container.frozen) == ("paused", True)
    dockerd.docker("unpause", container.id)
    container.await_ticks()


def test_containers_outlive_dockerd(dockerd: Dockerd) -> None:
    container = dockerd.run("survivor")
    dockerd.kill()
    container.await_ticks()
    dockerd.start()
    assert container.status == "running"
    container.await_ticks()


def test_the_crio_stand_in_pauses_as_crio_does(kubelet: Kubelet, crio_stand_in: CrioStandIn, runtime: str) -> None:
    container = kubelet.pod(["user-container"], runtime)["user-container"]
    container.await_ticks()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(crio_stand_in.socket)), base_url="http://crio") as crio:
        assert crio.get("/info").json()["cgroup_driver"] == "cgroupfs"
        assert crio.get(f"/containers/{container.id}").json()["pid"] == container.pid
        answers = []
        for verb in ("unpause", "pause", "pause"):
            answer = crio.get(f"/{verb}/{container.id}")
            answers.append((answer.status_code, answer.text))
        assert answers == [
            (409, "container is not in paused state, now is running\n"),
            (200, "200 OK"),
            (409, "container is not in running or created state, now is paused\n"),
        ]
        assert container.frozen
        assert container.stands_still()
        assert crio.get(f"/unpause/{container.id}").status_code == 200
        container.await_ticks()
        container.kill()
        container.await_exit()
        answer = crio.get(f"/pause/{container.id}")
        assert answer.text == "container is not in running or created state, now is stopped\n"
        assert crio.get("/pause/nobody").text == "can't find the container with id nobody\n"
        assert [crio.get("/pause/nobody").status_code, crio.get("/elsewhere").status_code] == [404, 404]


def test_the_crio_stand_in_speaks_cri_on_the_same_socket(kubelet: Kubelet, crio_stand_in: CrioStandIn) -> None:
    container = kubelet.pod(["user-container"])["user-container"]
    with grpc.insecure_channel(f"unix://{crio_stand_in.socket}") as channel:
        version = channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=10)
        assert b"cri-o" in version
        request = MESSAGES["ContainerStatusRequest"](container_id=container.id).SerializeToString()
        answer = channel.unary_unary("/runtime.v1.RuntimeService/ContainerStatus")(request, timeout=10)
        assert MESSAGES["ContainerStatusResponse"].FromString(answer).status.state == RUNNING


def test_a_closed_node_leaves_nothing() -> None:
    """Even with a frozen pod and containers of both kinds on it, and with containerd killed."""
    containerd = Containerd()
    try:
        containerd.start()
        pod = Kubelet(containerd).pod()
        pod["user-container"].await_ticks()
        dockerd = Dockerd(containerd)
        try:
            dockerd.start()
            docker = dockerd.run("ticker")
            pod["user-container"].freeze_cgroup()
            containerd.kill()
        finally:
            dockerd.close()
        sockets = containerd.shim_sockets()
        pids = [docker.pid, *(container.pid for container in pod.containers.values())]
    finally:
        containerd.close()
    assert not any(map(cgroups.lives, pids))
    assert not processes_with(str(containerd.folder))
    assert not mounts_below(containerd.folder)
    assert not containerd.folder.exists()
    assert not containerd.cgroups.paths()
    assert len(sockets) == 2
    assert not [socket for socket in sockets if socket.exists()]
