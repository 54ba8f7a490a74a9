"""The real API server asks the real webhook about pods of every shape, and takes what comes back.

The same pods as in ``tests/webhook``, by dry runs: they go through admission, defaults and validation, and no further.
"""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from tests.cluster.api import Api, Json, await_all
from tests.support.schemas import not_restricted
from tests.webhook.generated import PREFIX, pods
from tests.webhook.releases import RELEASES, as_of
from tests.webhook.test_inject import PODS, sidecar_of

ANY, STRICT = "pods-of-any-kind", "pods-that-are-restricted"
QUICK = settings(
    max_examples=60, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], database=None
)


@pytest.fixture(scope="module")
def namespaces(api: Api, installed: None) -> None:
    """One for any pod, and one for restricted ones; with their service accounts."""
    for name, level in ((ANY, "privileged"), (STRICT, "restricted")):
        labels = {"pod-security.kubernetes.io/enforce": level}
        api.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    accounts = [f"/api/v1/namespaces/{name}/serviceaccounts/default" for name in (ANY, STRICT)]
    await_all("the namespaces are ready", lambda: {each: bool(api.find(each)) for each in accounts}, 30)


def created(api: Api, pod: Json, namespace: str = ANY) -> Json:
    """What would be kept, or nothing where the API server refuses it."""
    pod = json.loads(json.dumps(pod))
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    for name in ("namespace", "ownerReferences"):
        pod["metadata"].pop(name, None)
    pod["metadata"].setdefault("generateName", "x-")
    try:
        return api.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (403, 422):
            raise
        return None


def without(pod: Json) -> Json:
    """The same pod, which wants no sidecar."""
    return pod | {"metadata": pod["metadata"] | {"labels": pod["metadata"]["labels"] | {PREFIX + "inject": "false"}}}


def has_sidecar(pod: Json) -> bool:
    """And that by our hand."""
    return pod["metadata"]["labels"].get(PREFIX + "injected") == "true" and bool(sidecar_of(pod))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_pods_of_each_release_of_serving_get_their_sidecar(api: Api, namespaces: None, path: Any, release: str) -> None:
    pod = as_of(json.loads(path.read_text()), release)
    pod["spec"]["serviceAccountName"] = pod["spec"]["serviceAccount"] = "default"  # the one that is here
    pod["spec"]["volumes"] = [each for each in pod["spec"]["volumes"] if not each["name"].startswith("kube-api-access")]
    for each in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])):
        each["volumeMounts"] = [m for m in each.get("volumeMounts", []) if not m["name"].startswith("kube-api-access")]
    assert has_sidecar(created(api, pod))


def test_who_is_taken_is_taken_with_the_sidecar(api: Api, namespaces: None, say: Callable[[str], None]) -> None:
    seen = {"taken": 0, "restricted": 0}

    @QUICK
    @given(pods())
    def check(pod: Json) -> None:
        if created(api, without(pod)) is None:
            return
        seen["taken"] += 1
        assert has_sidecar(created(api, pod))
        restricted = created(api, without(pod), STRICT) is not None
        assert restricted == (not_restricted(pod) == [])  # and we read that standard as the API server does
        if restricted:
            seen["restricted"] += 1
            assert has_sidecar(created(api, pod, STRICT))

    check()
    say(f"Of {QUICK.max_examples} generated pods {seen['taken']} were taken, {seen['restricted']} as restricted.")
    assert min(seen.values()) > 0


def test_who_cannot_be_handled_is_let_through_and_kubectl_shows_why(api: Api, namespaces: None) -> None:
    pod = json.loads(PODS[0].read_text())
    spec = {
        "hostNetwork": True,
        "containers": [{"name": "web", "image": "x", "ports": [{"name": "user-port", "containerPort": 80}]}],
    }
    content = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "at-home", "labels": pod["metadata"]["labels"]},
        "spec": spec,
    }
    done = api.try_kubectl("apply", "--dry-run=server", "-n", ANY, "-f", "-", given=yaml.safe_dump(content))
    assert done.returncode == 0, done.stderr
    assert (
        "Warning: freeze-proxy: the pod is left as it is, and never frozen: it is in the host's network" in done.stderr
    )


def test_an_annotation_that_cannot_be_understood_is_refused_with_its_sentence(api: Api, namespaces: None) -> None:
    (pod,) = [json.loads(path.read_text()) for path in PODS[:1]]
    metadata = {"name": "soon", "labels": pod["metadata"]["labels"], "annotations": {PREFIX + "grace": "soon"}}
    content = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "a", "image": "x"}]},
    }
    done = api.try_kubectl("apply", "--dry-run=server", "-n", ANY, "-f", "-", given=yaml.safe_dump(content))
    assert done.returncode == 1
    assert "'soon' is not a duration: write a number and a unit, such as 100ms, 5s or 2m." in done.stderr
