"""The samples as older releases of Knative Serving would have made them: the differences that its releases name.

The samples are of 1.23; ``as_of`` takes away what came later, and puts back what was different.
"""

import copy
import json
from typing import Any

Json = dict[str, Any]

RELEASES = ("0.25", "0.26", "1.1", "1.3", "1.9", "1.13", "1.16", "1.23")
"""Of each there is something that the one before or after does not have."""
KUBELET_PROBE = {"name": "K-Kubelet-Probe", "value": "queue"}


def as_of(pod: Json, release: str) -> Json:
    """This pod, made by that release."""
    pod = copy.deepcopy(pod)
    at = tuple(int(part) for part in release.split("."))
    *users, queue = pod["spec"]["containers"]
    env = {each["name"]: each for each in queue["env"]}
    if at < (1, 17):
        pod["metadata"]["annotations"].pop("kubectl.kubernetes.io/default-container")
    if at < (1, 14):
        for each in users:  # a readiness probe stood at the serving container alone
            each.pop("readinessProbe", None)
        del env["ENABLE_MULTI_CONTAINER_PROBES"]
    else:
        env["ENABLE_MULTI_CONTAINER_PROBES"]["value"] = "true"
        probe = json.loads(env["SERVING_READINESS_PROBE"]["value"])
        env["SERVING_READINESS_PROBE"]["value"] = json.dumps([probe] * len(users), separators=(",", ":"))
    if (0, 26) <= at < (1, 10):
        env["CONCURRENCY_STATE_ENDPOINT"] = {"name": "CONCURRENCY_STATE_ENDPOINT"}
        env["CONCURRENCY_STATE_TOKEN_PATH"] = {
            "name": "CONCURRENCY_STATE_TOKEN_PATH", "value": "/var/run/secrets/tokens/state-token"
        }  # fmt: skip
    if at < (1, 4):
        queue["ports"] = [port for port in queue["ports"] if port["containerPort"] != 8112]
        del env["QUEUE_SERVING_TLS_PORT"]
    for each in users:
        probe = each.get("livenessProbe")
        if probe is None or "httpGet" not in probe or at >= (1, 14):
            continue
        probe["httpGet"]["httpHeaders"] = [KUBELET_PROBE]
        if at < (1, 2):
            probe["httpGet"]["port"] = 8012
    queue["env"] = list(env.values())
    return pod
