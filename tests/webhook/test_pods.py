"""What holds for every pod that an API server would take, whatever its shape: generated pods."""

import copy
import json
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from freeze_proxy.webhook.inject import Options, inject
from tests.support.schemas import RELEASES, hold, not_restricted, unlawful
from tests.webhook.generated import pods
from tests.webhook.test_inject import PODS, applied, sample, sidecar_of, told

Json = dict[str, Any]

OPTIONS = st.builds(Options, image=st.just("sidecar"), native_sidecars=st.booleans(), native_ports=st.booleans())
SCHEMA_EXAMPLES = settings(max_examples=settings.get_profile("freeze-proxy").max_examples // 4)


def injected(pod: Json, options: Options) -> Json | None:
    """The new pod, or nothing where it was left alone, which is said."""
    before = copy.deepcopy(pod)
    outcome = inject(pod, "default", options, "n0nce")
    assert pod == before
    assert outcome.refused == ""
    if not outcome.patch:
        assert outcome.warnings
        return None
    new: Json = applied(pod, outcome.patch)
    return new


def all_of(pod: Json) -> dict[str, Json]:
    """Its containers by their names."""
    return {each["name"]: each for each in pod["spec"]["containers"] + pod["spec"].get("initContainers", [])}


@SCHEMA_EXAMPLES
@given(pods(), OPTIONS)
def test_what_was_valid_stays_valid(pod: Json, options: Options) -> None:
    hold(pod, RELEASES[-1])
    assert unlawful(pod) == []
    new = injected(pod, options)
    if new is not None:
        for release in RELEASES:
            hold(new, release)
        assert unlawful(new) == []
        told(new)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_samples_stay_valid(path: Any, release: str, native: bool) -> None:
    new = injected(sample(path), Options(image="sidecar", native_sidecars=native))
    assert new is not None
    hold(new, release)
    assert unlawful(new) == []


@given(pods(), OPTIONS)
def test_whatever_the_pod(pod: Json, options: Options) -> None:
    new = injected(pod, options)
    event("left alone" if new is None else "injected")
    if new is not None:
        stays_restricted(pod, new)
        twice_is_once(new, options)
        users_containers_are_left_as_they_are(pod, new)
        nobody_else_asks_a_server_that_may_be_frozen(pod, new)


def stays_restricted(pod: Json, new: Json) -> None:
    """If it was."""
    assert set(not_restricted(new)) <= set(not_restricted(pod))


def twice_is_once(new: Json, options: Options) -> None:
    """Whoever asks again, as an API server does when another webhook has changed the pod."""
    again = inject(new, "default", options, "other")
    assert (again.patch, again.warnings, again.refused) == ([], [], "")


def users_containers_are_left_as_they_are(pod: Json, new: Json) -> None:
    """But for what the design names: where probes go, and outside Knative the name of the port."""
    knative = "serving.knative.dev/revisionUID" in pod["metadata"]["labels"]
    was, now = all_of(pod), all_of(new)
    assert now.keys() - was.keys() == {"freeze-proxy"}
    assert [name for name in now if name in was] == list(was)
    names = {
        port["name"]: port["containerPort"] for each in was.values() for port in each.get("ports", []) if "name" in port
    }
    for name, old in was.items():
        given_back = copy.deepcopy(now[name])
        if name == "queue-proxy":
            env = [each for each in given_back["env"] if each["name"] not in ("USER_PORT", "SERVING_READINESS_PROBE")]
            assert env == [each for each in old["env"] if each["name"] not in ("USER_PORT", "SERVING_READINESS_PROBE")]
            assert given_back | {"env": old["env"]} == old
            continue
        for kind in ("readinessProbe", "livenessProbe"):
            if kind in old and not {"httpGet", "tcpSocket", "grpc"}.isdisjoint(old[kind]):
                moved = given_back.pop(kind)
                assert {k: v for k, v in moved.items() if k != "httpGet"} == {
                    k: v for k, v in old[kind].items() if k not in ("httpGet", "tcpSocket", "grpc")
                }
                given_back[kind] = old[kind]
        if not knative:  # the sidecar has taken over the port's name
            for port, other in zip(given_back.get("ports", []), old.get("ports", []), strict=True):
                if "name" in other:
                    assert "name" not in port
                    port["name"] = other["name"]
            old = json.loads(json.dumps(old), object_hook=lambda one: numbered(one, names))
            given_back = json.loads(json.dumps(given_back), object_hook=lambda one: numbered(one, names))
        assert given_back == old
    for part in pod["spec"].keys() - {"containers", "initContainers", "volumes"}:
        assert new["spec"][part] == pod["spec"][part]
    assert new["spec"]["volumes"][:-1] == pod["spec"].get("volumes", [])
    assert new["metadata"]["labels"].items() >= pod["metadata"]["labels"].items()
    assert new["metadata"].get("annotations", {}).items() >= pod["metadata"].get("annotations", {}).items()


def numbered(one: Json, names: dict[str, int]) -> Json:
    """What the kubelet asks, with numbers for ports."""
    return one | {"port": names[one["port"]]} if isinstance(one.get("port"), str) and one["port"] in names else one


def nobody_else_asks_a_server_that_may_be_frozen(pod: Json, new: Json) -> None:
    """The kubelet's and queue-proxy's steady questions go to the sidecar, and no two listen on one port."""
    config, sidecar = told(new), sidecar_of(new)
    for name in config.containers or []:
        for kind in ("readinessProbe", "livenessProbe"):
            probe = all_of(new)[name].get(kind, {})
            assert probe.keys().isdisjoint({"tcpSocket", "grpc"})
            if "httpGet" in probe:
                assert probe["httpGet"]["port"] == config.admin[1]
    used = [port["containerPort"] for each in all_of(pod).values() for port in each.get("ports", [])]
    env = [each.get("value") for each in all_of(pod).get("web", {}).get("env", [])]
    assert len({config.listen[1], config.admin[1], config.target[1], *used}) == 2 + len({config.target[1], *used})
    assert str(config.listen[1]) not in env
    assert sidecar["name"] not in (config.containers or [])
    assert "queue-proxy" not in (config.containers or [])
