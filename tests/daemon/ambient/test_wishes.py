"""Who wants to be frozen without a sidecar, and how, from what the API server tells."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightkube.resources.core_v1 import Pod

from freeze_proxy.annotations import PREFIX
from freeze_proxy.daemon.ambient import wishes
from freeze_proxy.daemon.ambient.wishes import ATTACH, Unfit, Wish

AMBIENT = {ATTACH: "ambient"}


def pod(annotations: dict[str, str] | None = None, **changes: Any) -> Pod:
    containers = changes.pop("containers", [{"name": "user-container"}, {"name": "queue-proxy"}])
    names = [each["name"] for each in containers]
    facts: dict[str, Any] = {
        "metadata": {"uid": "u", "name": "p", "namespace": "n", "annotations": annotations or {}},
        "spec": {"containers": containers},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": name,
                    "image": "",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "started": True,
                    "containerID": f"containerd://{name}-id",
                }
                for name in names
            ],
        },
    }
    for part, change in changes.items():
        facts[part] |= change
    made = Pod.from_dict(facts)
    assert isinstance(made, Pod)
    return made


def wish(*arguments: Any, defaults: dict[str, str] | None = None, **changes: Any) -> Wish:
    return wishes.read(pod(*arguments, **changes), defaults or {}, {"istio-proxy"})


@pytest.mark.parametrize(
    ("one", "labels", "asked"),
    [
        (pod(AMBIENT), {}, True),
        (pod(), {}, False),
        (pod(), AMBIENT, True),
        (pod({ATTACH: "sidecar"}), AMBIENT, False),
        (pod(AMBIENT, metadata={"labels": {PREFIX + "injected": "true"}, "annotations": AMBIENT}), {}, False),
        (pod(AMBIENT, containers=[{"name": "web"}, {"name": "freeze-proxy"}]), {}, False),
        (pod(AMBIENT, spec={"initContainers": [{"name": "freeze-proxy"}]}), {}, False),
        (pod(AMBIENT, status={"phase": "Succeeded"}), {}, False),
        (pod(AMBIENT, status={"phase": "Failed"}), {}, False),
        (Pod(), AMBIENT, False),
    ],
)
def test_who_asks(one: Pod, labels: dict[str, str], asked: bool) -> None:
    assert wishes.asks(one, labels) is asked


def test_a_plain_wish() -> None:
    found = wish(AMBIENT)
    assert (found.uid, str(found), found.mode) == ("u", "n/p", "freeze")
    assert (found.containers, found.ids) == (("user-container",), ("user-container-id",))
    assert (found.ready, found.proven_by_request, found.ending, found.any_socket) == (True, False, False, False)
    assert (found.queue_proxy, found.ip) == (True, "10.0.0.1")


def test_all_that_can_be_set() -> None:
    said = {"grace": "2s", "thaw-timeout": "1s", "breathe": "30s/50ms", "idle-stream": "1m", "mode": "throttle"}
    found = wish(AMBIENT | {PREFIX + name: value for name, value in said.items()} | {PREFIX + "wake-on": "any"})
    assert (found.gate.grace, found.gate.thaw_timeout) == (2.0, 1.0)
    assert (found.gate.breathe, found.gate.idle_stream) == ((30.0, 0.05), 60.0)
    assert (found.mode, found.gate.mode, found.any_socket) == ("throttle", "throttle", True)


def test_the_clusters_defaults_hold_where_the_pod_says_nothing_and_they_can_be_understood() -> None:
    found = wish(AMBIENT | {PREFIX + "grace": "2s"}, defaults={"grace": "9s", "breathe": "60s/1s", "mode": "wrong"})
    assert (found.gate.grace, found.gate.breathe, found.mode) == (2.0, (60.0, 1.0), "freeze")


@pytest.mark.parametrize(
    ("status", "spec", "ready"),
    [
        ({"conditions": [{"type": "Ready", "status": "False"}]}, {}, False),
        ({"conditions": []}, {}, False),
        ({"containerStatuses": []}, {}, False),
        ({"conditions": [{"type": "ContainersReady", "status": "True"}]}, {}, False),
    ],
)
def test_what_is_not_ready(status: dict[str, Any], spec: dict[str, Any], ready: bool) -> None:
    assert wish(AMBIENT, status=status, spec=spec).ready is ready


def test_one_that_has_not_started_is_not_ready() -> None:
    one = pod(AMBIENT)
    assert one.status
    assert one.status.containerStatuses
    one.status.containerStatuses[0].started = False
    assert not wishes.read(one, {}, ()).ready


@pytest.mark.parametrize(
    ("probes", "proven_by_request"),
    [
        ({"startupProbe": {"httpGet": {"port": 8080}}}, True),
        ({"livenessProbe": {"exec": {"command": ["true"]}}}, True),
        ({"readinessProbe": {"exec": {"command": ["true"]}}}, True),
        ({"readinessProbe": {"httpGet": {"port": 8080}}}, False),
    ],
)
def test_whose_first_request_is_waited_for(probes: dict[str, Any], proven_by_request: bool) -> None:
    found = wish(AMBIENT, containers=[{"name": "web", **probes}, {"name": "queue-proxy"}])
    assert found.proven_by_request is proven_by_request


def test_which_containers() -> None:
    three = [{"name": "web"}, {"name": "cache"}, {"name": "istio-proxy"}, {"name": "queue-proxy"}]
    assert wish(AMBIENT, containers=three).containers == ("web", "cache")
    assert wish(AMBIENT | {PREFIX + "containers": "cache"}, containers=three).containers == ("cache",)
    assert wish(AMBIENT, containers=three, defaults={"containers": "web,other"}).containers == ("web",)
    assert not wish(AMBIENT, containers=[{"name": "web"}]).queue_proxy


@pytest.mark.parametrize(
    "one",
    [
        pod(AMBIENT, spec={"hostNetwork": True}),
        pod(AMBIENT | {PREFIX + "grace": "soon"}),
        pod(AMBIENT | {PREFIX + "containers": "other"}),
        pod(AMBIENT, containers=[{"name": "queue-proxy"}]),
    ],
)
def test_who_cannot_be_served(one: Pod) -> None:
    with pytest.raises(Unfit):
        wishes.read(one, {}, ())


@given(st.dictionaries(st.sampled_from(["mode", "grace", "breathe", "containers", "wake-on", "x"]), st.text()))
def test_any_annotation_is_understood_or_refused(said: dict[str, str]) -> None:
    try:
        wish(AMBIENT | {PREFIX + name: value for name, value in said.items()})
    except Unfit:
        pass
