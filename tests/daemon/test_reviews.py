"""TokenReview over real HTTPS, against the stand-in for the API server."""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from lightkube.models.authentication_v1 import TokenReviewStatus, UserInfo

from freeze_proxy import apiserver
from freeze_proxy.apiserver import ApiServer as Cluster
from freeze_proxy.apiserver import NotConfigured, Unreachable
from freeze_proxy.daemon.identity import ACCEPTED, Caller, Identities, Observer, Refused
from freeze_proxy.daemon.reviews import EXTRA, TokenReviews, read
from tests.support.api_server import REVIEWS, ApiServer, b64, key, made_certificates, unb64
from tests.support.wait import until

UID = "0f2ab0b6-6a3e-4a8e-9f0c-0d6d2b1a7c11"


@asynccontextmanager
async def asking(
    server: ApiServer, node: str | None = "this-node", observe: Observer | None = None
) -> AsyncIterator[Identities]:
    identities = Identities(TokenReviews(str(server.kubeconfig())), node, observe)
    try:
        async with asyncio.timeout(30):
            yield identities
    finally:
        await identities.close()


def ask(server: ApiServer, token: str, audience: str = "freeze", node: str | None = "this-node") -> Caller:
    """Whom the token speaks for, from a fresh daemon's view."""

    async def story() -> Caller:
        async with asking(server, node) as identities:
            return await identities.identify(token, audience)

    return asyncio.run(story())


def why_refused(server: ApiServer, token: str, **more: Any) -> str:
    with pytest.raises(Refused) as refusal:
        ask(server, token, **more)
    said = str(refusal.value)
    assert not any(part in said for part in token.split(".") if len(part) > 8)
    return said


def why_unreachable(server: ApiServer, token: str | None = None) -> str:
    token = token or server.token(UID)
    with pytest.raises(Unreachable) as failure:
        ask(server, token)
    said = str(failure.value)
    assert not any(part in said for part in token.split("."))
    assert server.address in said
    return said


# Accepted.


def test_a_pods_token_is_accepted(api_server: ApiServer) -> None:
    before = int(time.time())
    caller = ask(api_server, api_server.token(UID, "web-1", "shop", lifetime=600))
    assert (caller.uid, caller.name, caller.namespace, caller.node) == (UID, "web-1", "shop", "this-node")
    assert before + 600 <= caller.expires <= time.time() + 600


def test_an_old_cluster_says_nothing_of_nodes(api_server: ApiServer) -> None:
    api_server.version = "1.20"
    caller = ask(api_server, api_server.token(UID, "web-1"))
    assert (caller.uid, caller.name, caller.node) == (UID, "web-1", None)


def test_queue_proxys_audience(api_server: ApiServer) -> None:
    token = api_server.token(UID, audience="concurrency-state-hook")
    assert ask(api_server, token, "concurrency-state-hook").uid == UID
    assert "freeze" in why_refused(api_server, token)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384"])
def test_whatever_key_the_cluster_signs_with(api_server: ApiServer, algorithm: str) -> None:
    api_server.rotate(f"a {algorithm} key", algorithm)
    assert ask(api_server, api_server.token(UID)).uid == UID


# Refused.


def test_a_forged_signature(api_server: ApiServer) -> None:
    assert "does not accept" in why_refused(api_server, api_server.token(UID, key=key("forger")))


def test_claims_changed_under_a_right_signature(api_server: ApiServer) -> None:
    head, claims, signature = api_server.token(UID).split(".")
    changed = unb64(claims).replace(UID.encode(), b"0" * 36)
    assert "does not accept" in why_refused(api_server, f"{head}.{b64(changed)}.{signature}")


def test_an_expired_one(api_server: ApiServer) -> None:
    assert "expired" in why_refused(api_server, api_server.token(UID, lifetime=-1))


def test_one_for_another_audience(api_server: ApiServer) -> None:
    said = why_refused(api_server, api_server.token(UID, audience=api_server.issuer))
    assert "audience" in said
    assert "freeze" in said


def test_an_api_server_that_knows_no_audiences(api_server: ApiServer) -> None:
    api_server.knows_audiences = False
    said = why_refused(api_server, api_server.token(UID, audience=api_server.issuer))
    assert "did not confirm the token's audience" in said


def test_one_of_a_pod_on_another_node(api_server: ApiServer) -> None:
    assert "node elsewhere" in why_refused(api_server, api_server.token(UID, node="elsewhere"))


def test_one_that_is_bound_to_no_pod(api_server: ApiServer) -> None:
    assert "not bound to a pod" in why_refused(api_server, api_server.token())


def test_one_of_a_pod_that_is_gone(api_server: ApiServer) -> None:
    token = api_server.token(UID)
    api_server.delete_pod(UID)
    assert "invalidated" in why_refused(api_server, token)


def test_a_refusal_that_quotes_the_token_is_not_passed_on(api_server: ApiServer) -> None:
    api_server.become("echo")
    assert "quotes the token" in why_refused(api_server, api_server.token(UID))


def test_what_has_not_the_shape_of_a_token_makes_no_call(api_server: ApiServer) -> None:
    for token in ("", "x", "a.b", "../../api", "a.b.c?x=1", "\x00\x00.\xff.\n"):
        why_refused(api_server, token)
    assert api_server.reviews == 0


# Out of reach.


def test_the_api_server_is_away(api_server: ApiServer) -> None:
    api_server.vanish()
    assert "could not review the token" in why_unreachable(api_server)


def test_it_is_slow(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apiserver, "PATIENCE", 0.3)
    api_server.become("silent")
    began = time.monotonic()
    assert "no answer within 0.3 s" in why_unreachable(api_server)
    assert time.monotonic() - began < 2


def test_it_is_not_so_slow(api_server: ApiServer) -> None:
    api_server.become(delay=0.3)
    assert ask(api_server, api_server.token(UID)).uid == UID


def test_the_daemon_may_not_review(api_server: ApiServer) -> None:
    api_server.become("forbidden")
    said = why_unreachable(api_server)
    assert "403" in said
    assert "create tokenreviews" in said


def test_its_own_credentials_are_not_accepted(api_server: ApiServer) -> None:
    async def story() -> None:
        reviews = TokenReviews(str(api_server.kubeconfig("stale")))
        try:
            await reviews.review(api_server.token(UID), "freeze")
        finally:
            await reviews.close()

    with pytest.raises(Unreachable, match="does not accept the daemon's own credentials"):
        asyncio.run(story())


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("garbage", "its answer cannot be understood"),
        ("broken", "it answered 500"),
        ("html", "it answered 502"),
        ("bare", "it answered 503"),
        ("overloaded", "it is overloaded (429)"),
        ("cut", "could not review the token"),
    ],
)
def test_it_answers_in_some_other_way(api_server: ApiServer, fault: str, why: str) -> None:
    api_server.become(fault)
    assert why in why_unreachable(api_server)


def test_somebody_else_at_its_address(api_server: ApiServer) -> None:
    """A server whose certificate no authority of ours has signed never sees a token."""
    (api_server.folder / "ca.crt").write_bytes(made_certificates().authority)
    assert "certificate" in why_unreachable(api_server).lower()
    assert api_server.reviews == 0


# Remembered.


def test_a_token_is_reviewed_once_and_goes_on_while_the_api_server_is_away(api_server: ApiServer) -> None:
    async def story() -> None:
        async with asking(api_server) as identities:
            token = api_server.token(UID)
            for _ in range(5):
                assert (await identities.identify(token, "freeze")).uid == UID
            assert api_server.reviews == 1
            api_server.vanish()
            assert (await identities.identify(token, "freeze")).uid == UID
            known = identities.known(token, "freeze")
            assert known
            assert known.uid == UID
            with pytest.raises(Unreachable):
                await identities.identify(api_server.token(UID), "freeze")
            api_server.listen()
            assert (await identities.identify(api_server.token(UID), "freeze")).uid == UID

    asyncio.run(story())


def test_it_is_forgotten_when_it_expires(api_server: ApiServer) -> None:
    async def story() -> None:
        async with asking(api_server) as identities:
            token = api_server.token(UID, lifetime=2)
            caller = await identities.identify(token, "freeze")
            assert identities.known(token, "freeze") == caller
            until(lambda: identities.known(token, "freeze") is None, "the token is forgotten", within=4)
            assert time.time() >= caller.expires
            with pytest.raises(Refused, match="expired"):
                await identities.identify(token, "freeze")
            assert api_server.reviews == 2

    asyncio.run(story())


def test_many_who_ask_at_once_make_one_review(api_server: ApiServer) -> None:
    async def story() -> None:
        async with asking(api_server) as identities:
            api_server.become(delay=0.1)
            token = api_server.token(UID)
            await asyncio.gather(*(identities.identify(token, "freeze") for _ in range(100)))
            assert api_server.reviews == 1

    asyncio.run(story())


def test_many_tokens_share_few_connections(api_server: ApiServer) -> None:
    async def story() -> None:
        async with asking(api_server) as identities:
            for number in range(10):
                await identities.identify(api_server.token(f"{number}"), "freeze")
            assert len(api_server.agents) == 1, "one after another they use one connection"
            api_server.become(delay=0.05)
            tokens = [api_server.token(f"{number}") for number in range(60)]
            callers = await asyncio.gather(*(identities.identify(token, "freeze") for token in tokens))
            assert [caller.uid for caller in callers] == [f"{number}" for number in range(60)]
            assert api_server.most_at_once <= 16

    asyncio.run(story())


def test_a_connection_that_has_ended_meanwhile_costs_nothing(api_server: ApiServer) -> None:
    async def story() -> None:
        async with asking(api_server) as identities:
            await identities.identify(api_server.token("1"), "freeze")
            api_server.vanish()
            api_server.listen()
            assert (await identities.identify(api_server.token("2"), "freeze")).uid == "2"

    asyncio.run(story())


def test_metrics_are_told(api_server: ApiServer) -> None:
    class Notes(Observer):
        def __init__(self) -> None:
            self.told: list[str] = []

        def remembered(self) -> None:
            self.told.append("remembered")

        def reviewed(self, outcome: str, seconds: float) -> None:
            assert 0.05 <= seconds < 5
            self.told.append(outcome)

    async def story() -> None:
        notes = Notes()
        async with asking(api_server, observe=notes) as identities:
            api_server.become(delay=0.05)
            token = api_server.token(UID)
            await identities.identify(token, "freeze")
            identities.known(token, "freeze")
            assert notes.told == [ACCEPTED, "remembered"]

    asyncio.run(story())


# Its own credentials.


def as_a_pod(monkeypatch: pytest.MonkeyPatch, server: ApiServer) -> Path:
    """Make this process look like a pod of that cluster; returns its service account's folder."""
    folder = server.service_account()
    monkeypatch.setattr(apiserver, "SERVICE_ACCOUNT", str(folder))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    return folder


def test_in_a_pod_it_uses_its_service_account_and_follows_its_rotation(
    api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_a_pod(monkeypatch, api_server)

    async def story() -> None:
        identities = Identities(TokenReviews(), "this-node")
        try:
            await identities.identify(api_server.token("1"), "freeze")
            (folder / "token").write_text("rotated\n")
            api_server.credentials = {"rotated"}
            await identities.identify(api_server.token("2"), "freeze")
            (folder / "token").unlink()
            api_server.credentials = {"rotated again"}
            with pytest.raises(Unreachable, match="own credentials cannot be read"):
                await identities.identify(api_server.token("3"), "freeze")
            (folder / "token").write_text("rotated again")
            await identities.identify(api_server.token("4"), "freeze")
        finally:
            await identities.close()

    asyncio.run(story())


def test_no_proxy_from_the_environment_gets_to_see_a_token(
    api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(api_server, api_server.token(UID)).uid == UID


def test_outside_a_pod_without_a_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NotConfigured, match="--kubeconfig"):
        TokenReviews()


def test_in_a_pod_without_a_service_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apiserver, "SERVICE_ACCOUNT", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(NotConfigured, match="automountServiceAccountToken"):
        TokenReviews()


SECRET = "do-not-print-me"
USERS = f"users: [{{name: u, user: {{token: {SECRET}}}}}]"


@pytest.mark.parametrize(
    ("content", "context", "why"),
    [
        (None, None, "not found"),
        (f"users: [\n  token: {SECRET}: :", None, "cannot be understood"),
        (SECRET, None, "cannot be understood"),
        ("{}", None, "it lacks 'clusters'"),
        ("clusters: []\ncontexts: []", None, "current context"),
        ("clusters: []\ncontexts: []\ncurrent-context: x", None, "Context 'x' not found"),
        ("clusters: []\ncontexts: []", "y", "Context 'y' not found"),
        ("clusters: []\ncontexts: [{name: x, context: {cluster: c, user: u}}]", "x", "it lacks 'c'"),
        (
            "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"
            "contexts: [{name: x, context: {cluster: c}}]",
            "x",
            "names no user",
        ),
        (
            "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', certificate-authority: /nowhere}}]\n"
            f"{USERS}\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]",
            "x",
            "exist, may be read and are PEM",
        ),
        (
            "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', certificate-authority-data: '!'}}]\n"
            f"{USERS}\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]",
            "x",
            "exist, may be read and are PEM",
        ),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(tmp_path: Path, content: str | None, context: str | None, why: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NotConfigured) as error:
        TokenReviews(str(path), context)
    assert why in str(error.value)
    assert SECRET not in str(error.value)


def test_the_context_is_chosen(api_server: ApiServer) -> None:
    assert Cluster(str(api_server.kubeconfig()), "stand-in").address == api_server.address


# Secrets.


def test_no_token_is_logged_at_any_level(api_server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [api_server.token(UID), api_server.token(UID, key=key("forger"))]
    ask(api_server, tokens[0])
    why_refused(api_server, tokens[1])
    for fault in ("garbage", "forbidden", "cut", "echo"):
        api_server.become(fault)
        with pytest.raises((Refused, Unreachable)):
            ask(api_server, tokens[0])
    assert "send_request_headers" in caplog.text, "the client does log something"
    said = caplog.text + repr([record.args for record in caplog.records])
    for token in [*tokens, *api_server.credentials]:
        assert not any(part in said for part in token.split("."))


# What is read of an answer, by the table.


def status(**changes: Any) -> TokenReviewStatus:
    extra = {EXTRA + "pod-uid": [UID], EXTRA + "pod-name": ["web-1"], EXTRA + "node-name": ["n"]}
    user = UserInfo(username="system:serviceaccount:shop:web", extra=extra)
    fields: dict[str, Any] = {"authenticated": True, "audiences": ["freeze"], "user": user}
    return TokenReviewStatus(**(fields | changes))


def test_read() -> None:
    assert read(status(), "a.b.c", "freeze", 100) == Caller(UID, "shop", "web-1", "n", 700)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"authenticated": None}, "does not accept"),
        ({"authenticated": False}, "does not accept"),
        ({"authenticated": False, "error": "token expired"}, "token expired"),
        ({"audiences": None}, "did not confirm"),
        ({"audiences": []}, "did not confirm"),
        ({"audiences": ["freezer"]}, "did not confirm"),
        ({"user": None}, "not a service account's"),
        ({"user": UserInfo()}, "not a service account's"),
        ({"user": UserInfo(username="admin")}, "not a service account's"),
        ({"user": UserInfo(username="shop:web")}, "not a service account's"),
        ({"user": UserInfo(username="system:serviceaccount:")}, "not a service account's"),
        ({"user": UserInfo(username="system:serviceaccount:shop")}, "not a service account's"),
        ({"user": UserInfo(username="system:serviceaccount::web")}, "not a service account's"),
    ],
)
def test_read_refuses(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        read(status(**changes), "a.b.c", "freeze", 100)


@pytest.mark.parametrize(
    "extra", [None, {}, {EXTRA + "pod-uid": []}, {EXTRA + "pod-uid": [7]}, {EXTRA + "pod-uid": UID}]
)
def test_read_without_a_pod(extra: dict[str, Any] | None) -> None:
    user = UserInfo(username="system:serviceaccount:shop:web", extra=extra)
    assert read(status(user=user), "a.b.c", "freeze", 100).uid == ""


# The stand-in as a process of its own, and what a daemon's review costs.


@pytest.fixture
def process(tmp_path: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "tests.support.api_server", "--folder", str(tmp_path / "process")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdin
        killer = threading.Timer(60, running.kill)
        killer.start()
        try:
            yield json.loads(running.stdout.readline())
        finally:
            running.stdin.close()
            running.wait(10)
            killer.cancel()
    assert running.returncode == 0


def test_the_stand_in_as_a_process(process: dict[str, str]) -> None:
    trust = ssl.create_default_context(cafile=process["ca"])

    def admin(name: str, **arguments: object) -> Any:
        request = urllib.request.Request(
            f"{process['address']}/admin/{name}",
            data=json.dumps(arguments).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
            return json.load(answer)["result"]

    async def story() -> None:
        identities = Identities(TokenReviews(process["kubeconfig"]), "this-node")
        try:
            assert (await identities.identify(admin("token", uid=UID), "freeze")).uid == UID
            token = admin("token", uid=UID)
            admin("delete_pod", uid=UID)
            with pytest.raises(Refused):
                await identities.identify(token, "freeze")
            assert admin("counts") == {REVIEWS: 2}
        finally:
            await identities.close()

    asyncio.run(story())


def test_importing_reviews_loads_neither_jwt_nor_what_the_daemon_does_without() -> None:
    script = "import sys, freeze_proxy.daemon.reviews, freeze_proxy.daemon.keys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert not {"jwt", "cryptography", "httpx", "requests", "rich", "kubernetes"} & set(loaded.split())
