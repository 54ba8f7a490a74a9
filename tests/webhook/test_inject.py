"""Pods in, patches out: what holds for each sample, and for any JSON at all."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.annotations import PREFIX
from freeze_proxy.sidecar.config import Config
from freeze_proxy.webhook.inject import IMAGE_USER, Options, defaults_trouble, inject

PODS = sorted((Path(__file__).parent / "pods").glob("*.json"))
NATIVE = Options(image="sidecar")
PLAIN = Options(image="sidecar", native_sidecars=False, native_ports=False)


def sample(path: Path) -> dict[str, Any]:
    pod: dict[str, Any] = json.loads(path.read_text())
    return pod


def applied(pod: Any, patch: list[dict[str, Any]]) -> Any:
    """RFC 6902, as far as it is used: a reading of its own."""
    pod = copy.deepcopy(pod)
    for change in patch:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
        place = pod
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            if change["op"] == "add":
                place.insert(int(last), change["value"])
            else:
                place[int(last)] = change["value"]
        elif change["op"] == "remove":
            del place[last]
        else:
            place[last] = change["value"]
    return pod


def injected(pod: dict[str, Any], options: Options = NATIVE) -> dict[str, Any]:
    outcome = inject(pod, "default", options, "n0nce")
    assert (outcome.refused, outcome.warnings) == ("", [])
    assert outcome.patch
    new: dict[str, Any] = applied(pod, outcome.patch)
    return new


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    everyone = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    found: dict[str, Any] = next(each for each in everyone if each["name"] == "freeze-proxy")
    return found


def told(pod: dict[str, Any], host: str = "10.0.0.7") -> Config:
    """What the sidecar makes of its environment, with the kubelet's addresses filled in."""
    env = {each["name"]: each.get("value", host) for each in sidecar_of(pod)["env"]}
    return Config({name: text.replace("$(HOST_IP)", host) for name, text in env.items() if name != "HOST_IP"})


def plain_pod() -> dict[str, Any]:
    return {
        "metadata": {"labels": {PREFIX + "inject": "true"}},
        "spec": {
            "serviceAccountName": "default",
            "containers": [
                {
                    "name": "web",
                    "ports": [{"name": "http", "containerPort": 8000}],
                    "readinessProbe": {"httpGet": {"path": "/$(HOST_IP)", "port": "http"}, "periodSeconds": 3},
                    "startupProbe": {"tcpSocket": {"port": "http"}},
                }
            ],
        },
    }


@pytest.mark.parametrize("options", [NATIVE, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_every_sample_gets_a_sidecar_that_understands_what_it_is_told(path: Path, options: Options) -> None:
    pod = sample(path)
    before = copy.deepcopy(pod)
    new = injected(pod, options)
    assert pod == before
    again = inject(new, "default", options, "other")
    assert (again.patch, again.warnings, again.refused) == ([], [], "")

    serving = next(c for c in before["spec"]["containers"] for p in c.get("ports", []) if p["name"] == "user-port")
    config = told(new)
    assert config.target == ("127.0.0.1", serving["ports"][0]["containerPort"])
    assert config.containers == [c["name"] for c in before["spec"]["containers"] if c["name"] != "queue-proxy"]
    assert config.termination_grace == before["spec"]["terminationGracePeriodSeconds"]

    was = {c["name"]: c for c in before["spec"]["containers"]}
    now = {c["name"]: c for c in new["spec"]["containers"]}
    for name in was.keys() - {"queue-proxy"}:
        assert {k: v for k, v in now[name].items() if k != "livenessProbe"} == {
            k: v for k, v in was[name].items() if k != "livenessProbe"
        }
    env = {each["name"]: each.get("value") for each in now["queue-proxy"]["env"]}
    assert env["USER_PORT"] == str(config.listen[1])
    assert json.loads(env["SERVING_READINESS_PROBE"])["httpGet"]["port"] == config.admin[1]

    secure = sidecar_of(new)["securityContext"]
    assert secure["runAsNonRoot"] is secure["readOnlyRootFilesystem"] is True
    assert secure["allowPrivilegeEscalation"] is False
    assert secure["capabilities"] == {"drop": ["ALL"]}
    assert secure["seccompProfile"] == {"type": "RuntimeDefault"}
    order = new["spec"]["initContainers"][-1] if options is NATIVE else new["spec"]["containers"][0]
    assert order["name"] == "freeze-proxy"


def test_probes_are_moved_with_their_timings_and_the_originals_handed_over() -> None:
    new = injected(sample(next(path for path in PODS if path.stem == "5-all-probes")))
    config = told(new)
    user = new["spec"]["containers"][0]
    assert user["livenessProbe"] == {
        "httpGet": {"path": "/live/user-container", "port": config.admin[1], "scheme": "HTTP"},
        "periodSeconds": 10,
        "failureThreshold": 3,
        "timeoutSeconds": 1,
        "successThreshold": 1,
    }
    assert user["startupProbe"]["httpGet"]["port"] == 8080
    assert (config.readiness[0].path, config.readiness[0].host) == ("/ready", "127.0.0.1")
    assert (config.liveness["user-container"][0].path, config.liveness["user-container"][0].port) == ("/healthz", 8080)
    assert config.await_exchange


def test_outside_knative_the_sidecar_takes_over_the_ports_name() -> None:
    new = injected(plain_pod())
    web, sidecar, config = new["spec"]["containers"][0], sidecar_of(new), told(new)
    assert web["ports"] == [{"containerPort": 8000}]
    assert sidecar["ports"][0] == {"name": "http", "containerPort": config.listen[1], "protocol": "TCP"}
    assert config.listen[0] == "::"  # IPv4, too; and where there is no IPv6, IPv4 alone
    assert web["startupProbe"]["tcpSocket"]["port"] == 8000
    assert web["readinessProbe"]["httpGet"] == {"path": "/ready", "port": config.admin[1], "scheme": "HTTP"}
    assert (config.readiness[0].port, config.readiness[0].path) == (8000, "/$(HOST_IP)")  # and not expanded
    assert config.drain_probe is None


def test_a_node_with_an_ipv6_address_has_a_daemon_too() -> None:
    assert told(injected(plain_pod()), "fd00::7").daemon == ("fd00::7", 9696)


@pytest.mark.parametrize(
    "takes",
    [
        {"ports": [{"containerPort": 9999}]},
        {"env": [{"name": "METRICS_PORT", "value": "9999"}]},
        {"startupProbe": {"tcpSocket": {"port": 9999}}},
        {"lifecycle": {"postStart": {"httpGet": {"port": 9999}}}},
    ],
)
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_ports_that_are_taken_are_left_alone(where: str, takes: dict[str, Any]) -> None:
    pod = sample(PODS[0])
    mesh = {"name": "istio-proxy", "image": "x"}
    pod["spec"].setdefault(where, []).append(mesh | takes)
    config = told(injected(pod))
    assert (config.listen[1], config.admin[1]) == (9998, 9997)


def test_without_two_free_ports_it_is_left_alone() -> None:
    pod = sample(PODS[0])
    pod["spec"]["containers"][-1]["ports"] += [{"containerPort": port} for port in range(1025, 10000)]
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch == []
    assert "no two ports left" in outcome.warnings[0]


def test_other_ports_of_a_container_that_will_be_frozen_are_warned_of() -> None:
    pod = plain_pod()
    pod["spec"]["containers"][0]["ports"].append({"name": "metrics", "containerPort": 9100})
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch
    assert len(outcome.warnings) == 1
    assert "port 9100 of container web is not relayed" in outcome.warnings[0]


def test_a_hook_that_a_frozen_container_refuses_is_warned_of() -> None:
    pod = plain_pod()
    pod["spec"]["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch
    assert "container web has a preStop hook of the kind exec" in outcome.warnings[0]


def test_ports_of_other_webhooks_sidecars_do_not_serve() -> None:
    pod = plain_pod()
    pod["spec"]["containers"].insert(0, {"name": "istio-proxy", "ports": [{"name": "http", "containerPort": 15090}]})
    assert told(injected(pod)).target == ("127.0.0.1", 8000)


def test_outside_knative_a_native_sidecar_waits_for_services_that_find_its_port() -> None:
    """From 1.29 to 1.32 no Service finds a port of a restartable init container by its name."""
    between = Options(image="sidecar", native_sidecars=True, native_ports=False)
    assert "initContainers" not in injected(plain_pod(), between)["spec"]
    assert injected(sample(PODS[0]), between)["spec"]["initContainers"]


def test_as_the_first_container_it_is_not_the_one_that_kubectl_takes() -> None:
    key = "kubectl.kubernetes.io/default-container"
    assert injected(plain_pod(), PLAIN)["metadata"]["annotations"] == {key: "web"}
    pod = plain_pod()
    pod["metadata"]["annotations"] = {key: "other"}
    assert injected(pod, PLAIN)["metadata"]["annotations"] == {key: "other"}
    assert "annotations" not in injected(plain_pod(), NATIVE)["metadata"]


def test_where_the_pods_user_is_root_the_sidecar_is_the_images_user() -> None:
    """It must not be root, and the kubelet would not start it as one."""
    pod = sample(PODS[0])
    assert "runAsUser" not in sidecar_of(injected(pod))["securityContext"]
    pod["spec"]["securityContext"] = {"runAsUser": 0}
    assert sidecar_of(injected(pod))["securityContext"]["runAsUser"] == IMAGE_USER
    assert f"USER {IMAGE_USER}:" in (Path(__file__).parents[2] / "Dockerfile").read_text()


def test_resources_fit_what_the_pod_has() -> None:
    pod = sample(PODS[0])
    pod["spec"]["resources"] = {"limits": {"cpu": "1"}}  # of the whole pod
    assert "resources" not in sidecar_of(injected(pod))
    pod = sample(PODS[0])
    for each in pod["spec"]["containers"]:
        each["resources"] = {"limits": {"cpu": "100m"}}
    assert sidecar_of(injected(pod))["resources"]["limits"] == {"cpu": "1", "memory": "128Mi"}
    del pod["spec"]["containers"][0]["resources"]
    assert sidecar_of(injected(pod))["resources"]["limits"] == {"memory": "128Mi"}


def test_a_job_is_not_kept_from_its_end() -> None:
    pod = plain_pod()
    pod["spec"]["restartPolicy"] = "Never"
    assert inject(pod, "default", NATIVE, "n").patch
    outcome = inject(pod, "default", PLAIN, "n")
    assert outcome.patch == []
    assert "to end by itself" in outcome.warnings[0]


def test_who_is_paused_by_queue_proxy_is_left_alone() -> None:
    """Serving 0.26 to 1.9 can pause containers itself; two would hold one reins."""
    pod = sample(PODS[0])
    pod["spec"]["containers"][-1]["env"].append({"name": "CONCURRENCY_STATE_ENDPOINT", "value": "http://$HOST_IP:9696"})
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch == []
    assert "take concurrency-state-endpoint out" in outcome.warnings[0]


def test_a_readiness_probe_for_each_container_keeps_its_form() -> None:
    pod = sample(PODS[0])
    each = [{"grpc": {"port": 8080, "service": "a"}, "periodSeconds": 7}, {"tcpSocket": {"port": 5432}}]
    env = {one["name"]: one for one in pod["spec"]["containers"][-1]["env"]}
    env["SERVING_READINESS_PROBE"]["value"] = json.dumps(each)
    new = injected(pod)
    asked = next(e["value"] for e in new["spec"]["containers"][-1]["env"] if e["name"] == "SERVING_READINESS_PROBE")
    action = {"path": "/ready", "port": 9998, "host": "127.0.0.1", "scheme": "HTTP"}
    assert json.loads(asked) == [{"httpGet": action, "periodSeconds": 7}, {"httpGet": action}]
    assert [(probe.kind, probe.port) for probe in told(new).readiness] == [("grpc", 8080), ("tcp", 5432)]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("grace", "soon", "'soon' is not a duration"),
        ("mode", "sleep", "freeze, throttle, dry-run, off"),
        ("breathe", "30s", "such as 30s/50ms"),
        ("thaw-timeout", "0", "above zero"),
        ("containers", "nobody", "no container 'nobody', only user-container"),
        ("containers", "queue-proxy", "never frozen"),
        ("attach", "elsewhere", "sidecar, ambient"),
    ],
)
def test_an_annotation_that_cannot_be_understood_is_refused(name: str, value: str, says: str) -> None:
    pod = sample(PODS[0])
    pod["metadata"]["annotations"][PREFIX + name] = value
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch == []
    assert PREFIX + name in outcome.refused
    assert says in outcome.refused


def test_annotations_reach_the_sidecar_before_the_clusters_defaults() -> None:
    pod = sample(PODS[0])
    pod["metadata"]["annotations"] |= {PREFIX + "grace": "2s", PREFIX + "breathe": "30s/50ms"}
    config = told(injected(pod, Options(image="sidecar", defaults={"grace": "9s", "mode": "dry-run"})))
    assert (config.settings.grace, config.settings.mode, config.settings.breathe) == (2.0, "dry-run", (30.0, 0.05))


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({"hostNetwork": True}, "host's network"),
        ({"runtimeClassName": "gvisor"}, "gvisor"),
        ({"runtimeClassName": "kata-mshv-vm-isolation"}, "kata-mshv-vm-isolation"),
        ({"runtimeClassName": "enclave"}, "enclave"),
        ({"os": {"name": "windows"}}, "Windows"),
        ({"serviceAccountName": ""}, "no service account"),
        (
            {"containers": [{"name": "a", "ports": [{"name": "user-port", "containerPort": 1, "hostPort": 1}]}]},
            "hostPort",
        ),
        ({"containers": [{"name": "a", "ports": [{"name": "user-port", "containerPort": 1}]}]}, "USER_PORT"),
        ({"containers": [{"name": "a"}]}, "user-port"),
        ({"initContainers": [{"name": "freeze-proxy"}]}, "did not put there"),
        ({"containers": {}}, "no container to freeze"),
        ({"containers": 7}, "form of a pod"),
    ],
)
def test_what_cannot_be_handled_is_let_through_with_a_warning(change: dict[str, Any], warned: str) -> None:
    pod = sample(PODS[0])
    pod["spec"] |= change
    options = Options(image="sidecar", sandboxed_runtime_classes=frozenset({"enclave"}))
    outcome = inject(pod, "default", options, "n")
    assert (outcome.patch, outcome.refused) == ([], "")
    assert warned in outcome.warnings[0]


def test_an_excluded_namespace_is_let_through_with_a_warning() -> None:
    outcome = inject(sample(PODS[0]), "kube-system", NATIVE, "n")
    assert outcome.patch == []
    assert "kube-system" in outcome.warnings[0]


@pytest.mark.parametrize("annotation", [("mode", "off"), ("attach", "ambient")])
def test_who_wants_no_sidecar_hears_nothing(annotation: tuple[str, str]) -> None:
    pod = sample(PODS[0])
    pod["metadata"]["annotations"][PREFIX + annotation[0]] = annotation[1]
    outcome = inject(pod, "default", NATIVE, "n")
    assert (outcome.patch, outcome.warnings, outcome.refused) == ([], [], "")


def test_an_unknown_annotation_is_warned_of_and_the_sidecar_comes_all_the_same() -> None:
    pod = sample(PODS[0])
    pod["metadata"]["annotations"][PREFIX + "graec"] = "1s"
    outcome = inject(pod, "default", NATIVE, "n")
    assert outcome.patch
    assert PREFIX + "graec" in outcome.warnings[0]


def test_a_wrong_configmap_is_told_of() -> None:
    assert defaults_trouble({"grace": "1s", "mode": "freeze"}) == []
    assert [each.split(":")[0] for each in defaults_trouble({"grace": "x", "colour": "red"})] == ["grace", "colour"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_whatever_stands_anywhere_in_a_pod_nothing_is_raised_and_no_sidecar_is_misled(data: st.DataObject) -> None:
    pod: Any = sample(data.draw(st.sampled_from(PODS))) if data.draw(st.booleans()) else plain_pod()
    place: Any = pod
    for _ in range(data.draw(st.integers(1, 8))):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place, parent = place[key], place
    else:
        place = parent
    place[key] = data.draw(JSON)
    outcome = inject(pod, "default", NATIVE, "n")
    if outcome.patch:
        told(applied(pod, outcome.patch))


@pytest.mark.parametrize("what", ["containers", "env", "ports", "volumes", "annotations"])
def test_a_pod_of_any_size_is_decided_on_in_time(what: str) -> None:
    """An API server passes on 3 MiB: no list in it may be gone through once for each of its elements."""
    pod = sample(PODS[4])
    many = [{"name": f"n{n}", "value": "1", "containerPort": 10000 + n} for n in range(30_000)]
    if what in ("containers", "volumes"):
        pod["spec"][what] = many + pod["spec"][what]
    elif what == "annotations":
        pod["metadata"][what] |= {f"{PREFIX}x{n}": "1" for n in range(30_000)}
    else:
        pod["spec"]["containers"][0][what] = pod["spec"]["containers"][0].get(what, []) + many
    before = time.process_time()
    assert inject(pod, "default", NATIVE, "n").patch
    assert time.process_time() - before < 5


@given(JSON)
def test_no_json_raises(value: Any) -> None:
    assert inject(value, "default", NATIVE, "n").patch == []
