"""Who may freeze what: tokens that the real API server reviews."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest

from tests.cluster import knative
from tests.cluster.api import Api, Json, ready
from tests.cluster.client import Client
from tests.cluster.components import Cluster
from tests.cluster.images import PAUSE
from tests.cluster.installed import CONTROL
from tests.cluster.node import QUEUE, Container
from tests.support.wait import until

_AUDIENCE = "freeze"
_KUBERNETES = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class Answer:
    """What the daemon says."""

    status: int
    text: str


def ask(path: str, token: str | None, **body: Any) -> Answer:
    """A request to the daemon, as a pod makes it."""
    headers = {"Content-Type": "application/json", **({"Token": token} if token is not None else {})}
    request = urllib.request.Request(CONTROL + path, json.dumps(body).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode())


class Tokens:
    """Of a service account of the cluster."""

    def __init__(self, api: Api, cluster: Cluster) -> None:
        self._api = api
        self._key = (cluster.keys / "service-accounts.key").read_text()

    def of(self, pod: Json | None, audience: str = _AUDIENCE) -> str:
        """One that is good for ten minutes, and bound to the pod if there is one."""
        specification: Json = {"audiences": [audience], "expirationSeconds": 600}
        if pod is not None:
            bound = {"kind": "Pod", "apiVersion": "v1"}
            bound.update(name=pod["metadata"]["name"], uid=pod["metadata"]["uid"])
            specification["boundObjectRef"] = bound
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": specification}
        answer = self._api.post("/api/v1/namespaces/default/serviceaccounts/default/token", body)
        return str(answer["status"]["token"])

    def with_claims(self, token: str, **changed: Any) -> str:
        """The same with other claims, signed by the cluster's key."""
        claims = jwt.decode(token, options={"verify_signature": False})
        header = jwt.get_unverified_header(token)
        return jwt.encode({**claims, **changed}, self._key, header["alg"], {"kid": header["kid"]})


@pytest.fixture(scope="module")
def tokens(api: Api, cluster: Cluster) -> Tokens:
    return Tokens(api, cluster)


@pytest.fixture(scope="module")
def pods(api: Api, with_sidecar: None) -> Iterator[tuple[Json, Json]]:
    """Two pods with a sidecar."""
    yield knative.pod(api, "traffic"), knative.pod(api, "grpc")
    # Their sidecars know nothing of what was done with their pods' tokens here; a request sets it right.
    for name in ("traffic", "grpc"):
        client = Client(knative.route(api, name))
        with client.http(http2=name == "grpc") as http:
            http.get("/").raise_for_status()


@pytest.fixture
def mine(cluster: Cluster, pods: tuple[Json, Json]) -> Container:
    return Container(cluster.cgroup, pods[0])


@pytest.fixture
def other(cluster: Cluster, pods: tuple[Json, Json]) -> Container:
    return Container(cluster.cgroup, pods[1])


def test_a_pods_token_thaws_and_freezes_that_pod_and_no_other(
    tokens: Tokens, pods: tuple[Json, Json], mine: Container, other: Container
) -> None:
    mine.await_frozen()
    other.await_frozen()
    token = tokens.of(pods[0])
    answer = ask("/thaw", token)
    assert answer.status == 200, answer
    assert not mine.frozen
    assert other.frozen
    answer = ask("/freeze", token)
    assert answer.status == 200, answer
    assert mine.frozen


def test_with_another_pods_token_it_is_that_pod(
    tokens: Tokens, pods: tuple[Json, Json], mine: Container, other: Container
) -> None:
    answer = ask("/thaw", tokens.of(pods[1]))
    assert answer.status == 200, answer
    assert mine.frozen
    assert ask("/freeze", tokens.of(pods[1])).status == 200
    assert other.frozen


def test_a_container_that_the_pod_has_not_is_not_found(tokens: Tokens, pods: tuple[Json, Json]) -> None:
    answer = ask("/freeze", tokens.of(pods[0]), containers=["etcd"])
    assert answer.status == 404, answer


def test_the_one_that_asks_is_never_frozen(tokens: Tokens, pods: tuple[Json, Json], cluster: Cluster) -> None:
    answer = ask("/freeze", tokens.of(pods[0]), containers=[QUEUE])
    assert answer.status >= 400, answer
    assert not Container(cluster.cgroup, pods[0], QUEUE).frozen


def _refused(answer: Answer, status: int = 403) -> None:
    assert answer.status == status, answer
    assert json.loads(answer.text)["error"].endswith((".", "?")), answer


@pytest.mark.parametrize("path", ["/freeze", "/thaw"])
def test_no_token(path: str, pods: tuple[Json, Json]) -> None:
    _refused(ask(path, None), 400)


@pytest.mark.parametrize("path", ["/freeze", "/thaw"])
def test_another_audience(path: str, tokens: Tokens, pods: tuple[Json, Json]) -> None:
    _refused(ask(path, tokens.of(pods[0], _KUBERNETES)))
    _refused(ask(path, tokens.of(pods[0], "vault")))


def test_an_expired_one(tokens: Tokens, pods: tuple[Json, Json]) -> None:
    token = tokens.of(pods[0])
    now = int(time.time())
    assert ask("/thaw", tokens.with_claims(token, exp=now + 500)).status == 200  # so these claims are good otherwise
    _refused(ask("/thaw", tokens.with_claims(token, iat=now - 700, nbf=now - 700, exp=now - 60)))


def test_one_that_another_key_has_signed(tokens: Tokens, pods: tuple[Json, Json]) -> None:
    head, claims, signature = tokens.of(pods[0]).split(".")
    flipped = ("B" if signature[10] != "B" else "C").join((signature[:10], signature[11:]))
    _refused(ask("/thaw", f"{head}.{claims}.{flipped}"))


def test_one_bound_to_no_pod(tokens: Tokens, pods: tuple[Json, Json]) -> None:
    _refused(ask("/freeze", tokens.of(None)))


def test_that_of_a_pod_that_is_gone(api: Api, tokens: Tokens, installed: None) -> None:
    """The API server knows the pod's UID, and says no about two seconds after the pod is gone."""
    path = "/api/v1/namespaces/default/pods"
    specification = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": PAUSE}]}
    api.post(path, {"metadata": {"name": "gone"}, "spec": specification})
    until(lambda: ready(api.get(f"{path}/gone")), "the pod runs", 20, every=0.1)
    pod = api.get(f"{path}/gone")
    assert ask("/thaw", tokens.of(pod)).status == 200
    token = tokens.of(pod)  # another: what the daemon has had reviewed it remembers
    api.delete(f"{path}/gone?gracePeriodSeconds=0")
    until(lambda: ask("/thaw", token).status in (403, 404), "the token is refused", 15, every=0.5)
