"""Pods of all shapes that an API server takes: of Knative's revisions and of others, restricted and not."""

import json
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

PREFIX = "freeze.extensions.knative.dev/"
NAMES = ("web", "app", "user-container", "cache", "worker")
SERVES, OTHERS = 8080, (3000, 9999, 9998, 9090, 80, 65535)
RESTRICTED: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
PRE_STOP = {"preStop": {"httpGet": {"path": "/wait-for-drain", "port": 8022, "scheme": "HTTP"}}}

SECONDS = st.integers(1, 300)
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)


@st.composite
def probes(
    draw: st.DrawFn, ports: list[Any], kinds: tuple[str, ...] = ("httpGet", "tcpSocket", "grpc", "exec")
) -> Json:
    """A probe of one of these kinds; a gRPC probe takes no name for its port."""
    kind = draw(st.sampled_from(kinds))
    port = draw(st.sampled_from(ports))
    action: Json = {"port": port}
    if kind == "exec":
        action = {"command": ["true"]}
    elif kind == "grpc":
        action = {"port": next(each for each in ports if isinstance(each, int))}
        if draw(st.booleans()):
            action["service"] = draw(TEXT)
    elif kind == "httpGet":
        if draw(st.booleans()):
            action["path"] = "/" + draw(TEXT)
        if draw(st.booleans()):
            action["scheme"] = draw(st.sampled_from(["HTTP", "HTTPS"]))
        if draw(st.booleans()):
            action["httpHeaders"] = [{"name": "X-From", "value": draw(TEXT)}, {"name": "Host", "value": "x.test"}]
    if kind in ("httpGet", "tcpSocket") and draw(st.booleans()):
        action["host"] = draw(st.sampled_from(["127.0.0.1", "other.test", "fd00::1"]))
    timings = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold")
    return {kind: action, **{name: draw(SECONDS) for name in timings if draw(st.booleans())}}


@st.composite
def containers(draw: st.DrawFn, name: str, serves: str, restricted: bool, more_ports: bool) -> Json:
    """One that serves on a port of this name, or on none."""
    ports: list[Json] = []
    if serves:
        ports.append({"name": serves, "containerPort": SERVES} | draw(st.sampled_from([{}, {"protocol": "TCP"}])))
    if more_ports and draw(st.booleans()):
        ports.append(
            {"containerPort": draw(st.sampled_from(OTHERS)), "protocol": draw(st.sampled_from(["TCP", "UDP"]))}
        )
    asked: list[Any] = [SERVES, *([serves] if serves else [])]
    one: Json = {"name": name, "image": "registry.example.com/x@sha256:" + "1" * 64}
    if ports:
        one["ports"] = ports
    for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
        if draw(st.integers(0, 2)) == 0:
            one[kind] = draw(probes(asked))
    if draw(st.booleans()):
        one["env"] = [{"name": "PORT", "value": str(draw(st.sampled_from((SERVES, 9997))))}]
    if draw(st.booleans()):
        one["resources"] = draw(
            st.sampled_from(
                [
                    {},
                    {"requests": {"cpu": "100m"}},
                    {"requests": {"cpu": "50m"}, "limits": {"cpu": "1", "memory": "64Mi"}},
                ]
            )
        )
    if restricted:
        one["securityContext"] = RESTRICTED
    elif draw(st.booleans()):
        one["securityContext"] = draw(st.sampled_from([{"privileged": True}, {"runAsUser": 1000}, {}]))
    if draw(st.booleans()):
        port = draw(st.sampled_from(asked))
        one["lifecycle"] = draw(st.sampled_from([PRE_STOP, {"postStart": {"httpGet": {"path": "/", "port": port}}}]))
    return one


def queue_proxy(readiness: str, restricted: bool) -> Json:
    """As a revision's pod has it."""
    env = [{"name": "QUEUE_SERVING_PORT", "value": "8012"}, {"name": "USER_PORT", "value": str(SERVES)}]
    if readiness:
        env.append({"name": "SERVING_READINESS_PROBE", "value": readiness})
    return {
        "name": "queue-proxy",
        "image": "registry.example.com/queue@sha256:" + "2" * 64,
        "ports": [{"name": "queue-port", "containerPort": 8012}],
        "env": env,
        "readinessProbe": {"httpGet": {"port": 8012}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "25m"}},
        **({"securityContext": RESTRICTED} if restricted else {}),
    }


@st.composite
def pods(draw: st.DrawFn) -> Json:
    """Any of them."""
    knative, restricted = draw(st.booleans()), draw(st.booleans())
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    serving = draw(st.sampled_from(names))
    port = "user-port" if knative else draw(st.sampled_from(["http", "h2c", "web-port"]))
    inside = [
        draw(containers(name, port if name == serving else "", restricted, more_ports=not knative)) for name in names
    ]
    spec: Json = {"serviceAccountName": "default", "containers": inside}
    if knative:
        kinds = ("httpGet", "tcpSocket", "grpc")
        several = draw(st.lists(probes([SERVES], kinds), min_size=1, max_size=3))
        readiness = draw(st.sampled_from([json.dumps(several), json.dumps(several[0]), ""]))
        inside.append(queue_proxy(readiness, restricted))
        labels = {"serving.knative.dev/revisionUID": "7a9be1f2-5d2f-4d5e-8a07-1d7e2c9b4a22"}
    else:
        labels = {PREFIX + "inject": "true"}
    if draw(st.booleans()):
        first: Json = {"name": "prepare", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
        mesh: Json = {
            "name": "istio-proxy",
            "image": "y",
            "restartPolicy": "Always",
            "ports": [{"containerPort": 15090}],
        }
        for each in (first, mesh):
            each |= {"securityContext": RESTRICTED} if restricted else {}
        spec["initContainers"] = draw(st.sampled_from([[first], [first, mesh], [mesh]]))
        spec["volumes"] = [{"name": draw(st.sampled_from(["data"])), "emptyDir": {}}]
    if draw(st.booleans()):
        kept = spec.get("volumes", [])
        spec["volumes"] = [*kept, {"name": "freeze-proxy-token", "configMap": {"name": "of-the-users"}}]
    if draw(st.booleans()):
        spec["terminationGracePeriodSeconds"] = draw(st.sampled_from([0, 1, 30, 300]))
    if not restricted and draw(st.booleans()):
        spec["securityContext"] = draw(st.sampled_from([{"runAsUser": 0}, {"runAsUser": 1000, "fsGroup": 1000}, {}]))
        for each in inside:
            each.get("securityContext", {}).pop("runAsNonRoot", None)
    metadata: Json = {"generateName": "x-", "labels": labels}
    if draw(st.booleans()):
        said = {"grace": "1s", "mode": "dry-run", "breathe": "30s/50ms", "idle-stream": "5m", "thaw-timeout": "2s"}
        chosen = draw(st.lists(st.sampled_from(sorted(said)), unique=True))
        metadata["annotations"] = {PREFIX + name: said[name] for name in chosen} | {"note": "x"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
