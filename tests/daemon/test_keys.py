"""Tokens checked offline, with keys fetched over real HTTPS from the stand-in for the API server."""

import asyncio
import base64
import hmac
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.daemon import keys
from freeze_proxy.daemon.identity import Caller, Identities, Refused
from freeze_proxy.daemon.keys import FETCH_EVERY, FRESH, LEEWAY, PublishedKeys
from tests.support.api_server import DISCOVERY, JWKS, REVIEWS, ApiServer, Key, b64, key, unb64
from tests.support.examples import examples

UID = "0f2ab0b6-6a3e-4a8e-9f0c-0d6d2b1a7c11"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def checking(
    server: ApiServer, clock: Clock | None = None, issuer: str | None = None
) -> AsyncIterator[PublishedKeys]:
    published = PublishedKeys(str(server.kubeconfig()), None, issuer, clock or Clock())
    try:
        async with asyncio.timeout(30):
            yield published
    finally:
        await published.close()


def check(server: ApiServer, token: str, issuer: str | None = None) -> Caller:
    async def story() -> Caller:
        async with checking(server, issuer=issuer) as published:
            return await published.review(token, "freeze")

    return asyncio.run(story())


def why_refused(server: ApiServer, token: str, issuer: str | None = None) -> str:
    with pytest.raises(Refused) as refusal:
        check(server, token, issuer)
    said = str(refusal.value)
    assert not any(part in said for part in token.split(".") if len(part) > 8)
    return said


# Accepted.


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"])
def test_a_pods_token_is_accepted_without_a_review(api_server: ApiServer, algorithm: str) -> None:
    api_server.rotate(f"a {algorithm} key", algorithm, withdraw=True)
    before = int(time.time())
    caller = check(api_server, api_server.token(UID, "web-1", "shop", node="n1", lifetime=600))
    assert (caller.uid, caller.name, caller.namespace, caller.node) == (UID, "web-1", "shop", "n1")
    assert before + 600 <= caller.expires <= time.time() + 600
    assert api_server.counts() == {JWKS: 1, DISCOVERY: 1}


def test_an_old_cluster_says_nothing_of_nodes(api_server: ApiServer) -> None:
    api_server.version = "1.20"
    assert check(api_server, api_server.token(UID)).node is None


def test_a_token_for_several_audiences_or_for_one(api_server: ApiServer) -> None:
    assert check(api_server, api_server.token(UID, claims={"aud": ["other", "freeze"]})).uid == UID
    assert check(api_server, api_server.token(UID, claims={"aud": "freeze"})).uid == UID


def test_clocks_may_differ_a_little(api_server: ApiServer) -> None:
    soon = int(time.time() + LEEWAY / 2)
    assert check(api_server, api_server.token(UID, claims={"nbf": soon, "iat": soon})).uid == UID
    assert check(api_server, api_server.token(UID, lifetime=-LEEWAY / 2)).uid == UID


def test_the_issuer_can_be_given(api_server: ApiServer) -> None:
    api_server.issuer = "https://oidc.example/cluster"
    token = api_server.token(UID)
    api_server.issuer = "https://what.discovery.says"
    assert check(api_server, token, issuer="https://oidc.example/cluster").uid == UID
    assert api_server.counts() == {JWKS: 1}, "what is given is not asked for"


# Refused.


def test_a_forged_signature(api_server: ApiServer) -> None:
    forger = key("forger")
    assert "key that this cluster does not publish" in why_refused(api_server, api_server.token(UID, key=forger))
    claims = json.loads(unb64(api_server.token(UID).split(".")[1]))
    assert "signature is not right" in why_refused(api_server, forger.sign(claims, kid=api_server.signing.kid))


def test_claims_changed_under_a_right_signature(api_server: ApiServer) -> None:
    head, claims, signature = api_server.token(UID).split(".")
    changed = unb64(claims).replace(UID.encode(), b"0" * 36)
    assert "signature is not right" in why_refused(api_server, f"{head}.{b64(changed)}.{signature}")


def forged(head: dict[str, Any], claims: dict[str, Any], secret: bytes | None = None) -> str:
    signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
    signature = hmac.digest(secret, signed.encode(), "sha256") if secret is not None else b"x"
    return f"{signed}.{b64(signature)}"


def test_a_public_key_does_not_serve_as_a_shared_secret(api_server: ApiServer) -> None:
    """Key confusion: HMAC with what everybody may know."""
    signing = api_server.signing
    claims = json.loads(unb64(api_server.token(UID).split(".")[1]))
    jwk = json.dumps(signing.jwk, separators=(",", ":")).encode()
    for secret in (signing.pem, signing.pem.strip(), jwk, unb64(signing.jwk["n"]), b""):
        for algorithm in ("HS256", "HS384", "hs256"):
            token = forged({"alg": algorithm, "kid": signing.kid}, claims, secret)
            assert "not signed in a way that a cluster signs" in why_refused(api_server, token)
        assert "signature is not right" in why_refused(
            api_server, forged({"alg": "RS256", "kid": signing.kid}, claims, secret)
        )


@pytest.mark.parametrize("algorithm", ["none", "None", "", None, "EdDSA", "PS256", "ES256K", 5, ["RS256"], {"a": 1}])
def test_no_other_algorithm(api_server: ApiServer, algorithm: object) -> None:
    claims = json.loads(unb64(api_server.token(UID).split(".")[1]))
    token = forged({"alg": algorithm, "kid": api_server.signing.kid}, claims)
    why_refused(api_server, token)
    assert api_server.counts() == {}, "it was refused before any key was needed"


def test_a_key_serves_its_own_algorithm_alone(api_server: ApiServer) -> None:
    other = Key.__new__(Key)
    other.__dict__.update(api_server.signing.__dict__, algorithm="RS512")
    assert "signature is not right" in why_refused(api_server, api_server.token(UID, key=other))


@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
def test_a_token_does_not_bring_its_own_key(api_server: ApiServer, header: str) -> None:
    forger = key("forger")
    values: dict[str, object] = {"jwk": forger.jwk, "x5c": [b64(forger.pem)]}
    claims = json.loads(unb64(api_server.token(UID).split(".")[1]))
    value = values.get(header, f"{api_server.address}{JWKS}")
    token = forger.sign(claims, kid=api_server.signing.kid, **{header: value})
    assert "signature is not right" in why_refused(api_server, token)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "no claim exp"),
        ({"exp": "never"}, "claims cannot be read"),
        ({"nbf": 99999999999}, "not valid yet"),
        ({"aud": ["https://kubernetes.default.svc.cluster.local"]}, "audience freeze"),
        ({"aud": []}, "audience freeze|no claim aud"),
        ({"aud": None}, "aud"),
        ({"aud": "freezer"}, "audience freeze"),
        ({"aud": {"freeze": 1}}, "audience freeze"),
        ({"iss": "https://elsewhere"}, "issuer is not"),
        ({"iss": None}, "iss"),
        ({"iss": ["https://kubernetes.default.svc.cluster.local"]}, "cannot be read|issuer"),
    ],
)
def test_claims_that_do_not_hold(api_server: ApiServer, claims: dict[str, Any], why: str) -> None:
    assert re.search(why, why_refused(api_server, api_server.token(UID, claims=claims)))


@pytest.mark.parametrize(
    "bound", [None, [], "x", {}, {"pod": None}, {"pod": []}, {"pod": {"uid": 7}}, {"pod": {"name": "only"}}]
)
def test_a_token_that_names_no_pod(api_server: ApiServer, bound: object) -> None:
    assert check(api_server, api_server.token(UID, claims={"kubernetes.io": bound})).uid == ""

    async def story() -> None:
        async with checking(api_server) as published:
            identities = Identities(published, "this-node")
            with pytest.raises(Refused, match="not bound to a pod"):
                await identities.identify(api_server.token(UID, claims={"kubernetes.io": bound}), "freeze")

    asyncio.run(story())


def test_node_and_memory_are_the_same_as_with_reviews(api_server: ApiServer) -> None:
    async def story() -> None:
        async with checking(api_server) as published:
            identities = Identities(published, "this-node")
            with pytest.raises(Refused, match="node elsewhere"):
                await identities.identify(api_server.token(UID, node="elsewhere"), "freeze")
            token = api_server.token(UID)
            caller = await identities.identify(token, "freeze")
            assert identities.known(token, "freeze") == caller
            assert REVIEWS not in api_server.counts()

    asyncio.run(story())


# The keys.


def test_a_new_key_is_fetched_when_a_token_names_it(api_server: ApiServer) -> None:
    async def story() -> None:
        clock = Clock()
        async with checking(api_server, clock) as published:
            old = api_server.token(UID)
            await published.review(old, "freeze")
            api_server.rotate()
            clock.now += FETCH_EVERY
            assert (await published.review(api_server.token(UID), "freeze")).uid == UID
            await published.review(old, "freeze")
            assert api_server.calls[JWKS] == 2

    asyncio.run(story())


def test_a_flood_of_unknown_keys_makes_one_fetch_in_a_while(api_server: ApiServer) -> None:
    async def story() -> None:
        clock = Clock()
        good = api_server.token(UID)
        claims = json.loads(unb64(good.split(".")[1]))
        flood = [api_server.signing.sign(claims, kid=f"unknown-{number}") for number in range(200)]
        async with checking(api_server, clock) as published:
            answers = await asyncio.gather(
                *(published.review(token, "freeze") for token in [*flood, good]), return_exceptions=True
            )
            assert all(isinstance(answer, Refused) for answer in answers[:-1])
            assert isinstance(answers[-1], Caller), "the honest one among them is served"
            assert api_server.calls[JWKS] == 1
            for _ in range(3):
                clock.now += FETCH_EVERY
                for token in flood[:50]:
                    with pytest.raises(Refused):
                        await published.review(token, "freeze")
            assert api_server.calls[JWKS] == 4

    asyncio.run(story())


def test_keys_that_are_known_go_on_while_the_api_server_is_away(api_server: ApiServer) -> None:
    async def story() -> None:
        clock = Clock()
        async with checking(api_server, clock) as published:
            await published.review(api_server.token(UID), "freeze")
            api_server.vanish()
            clock.now += 10 * FRESH
            for _ in range(3):
                assert (await published.review(api_server.token(UID), "freeze")).uid == UID
                clock.now += FETCH_EVERY
                await asyncio.sleep(0.02)
            api_server.rotate()
            for _ in range(2):
                with pytest.raises(Unreachable, match=r"could not give its /"):
                    await published.review(api_server.token(UID), "freeze")
            api_server.listen()
            clock.now += FETCH_EVERY
            assert (await published.review(api_server.token(UID), "freeze")).uid == UID

    asyncio.run(story())


def test_nothing_is_known_and_the_api_server_is_away(api_server: ApiServer) -> None:
    token = api_server.token(UID)
    api_server.vanish()
    with pytest.raises(Unreachable, match="could not give its"):
        check(api_server, token)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("forbidden", "system:service-account-issuer-discovery"),
        ("garbage", "cannot be understood"),
        ("broken", "answered 500"),
        ("html", "answered 502"),
        ("bare", "answered 503"),
    ],
)
def test_the_api_server_does_not_give_its_keys(api_server: ApiServer, fault: str, why: str) -> None:
    api_server.become(fault)
    with pytest.raises(Unreachable, match=why):
        check(api_server, api_server.token(UID))


def test_the_daemons_own_credentials_are_needed(api_server: ApiServer) -> None:
    """They are sent, and anonymous clients get nothing, as with the real one."""
    token = api_server.token(UID)
    assert check(api_server, token).uid == UID
    path = api_server.kubeconfig()
    config = json.loads(path.read_text())
    config["users"][0]["user"] = {"username": "x"}

    async def story() -> None:
        path.write_text(json.dumps(config))
        published = PublishedKeys(str(path))
        try:
            await published.review(token, "freeze")
        finally:
            await published.close()

    with pytest.raises(Unreachable, match="403"):
        asyncio.run(story())


def test_a_key_taken_back_is_not_trusted_for_ever(api_server: ApiServer) -> None:
    async def story() -> None:
        clock = Clock()
        async with checking(api_server, clock) as published:
            stolen = api_server.token(UID)
            await published.review(stolen, "freeze")
            api_server.rotate(withdraw=True)
            clock.now += FRESH + 1
            await published.review(stolen, "freeze")  # nobody waits for the fetch that this begins
            async with asyncio.timeout(5):
                while api_server.calls[JWKS] < 2 or published._fetch is not None:
                    await asyncio.sleep(0.01)
            with pytest.raises(Refused, match="does not publish"):
                await published.review(stolen, "freeze")

    asyncio.run(story())


def test_what_else_is_published_is_passed_over(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    good = api_server.signing
    odd: list[Any] = [
        None,
        5,
        [],
        {},
        {"kty": "RSA"},
        {"kty": "oct", "k": "AAAA", "kid": good.kid, "alg": "HS256"},
        {"kty": "EC", "crv": "P-1", "kid": "a"},
        good.jwk | {"alg": "HS256"},
        good.jwk | {"alg": "none"},
        good.jwk | {"use": "enc", "kid": "for encryption"},
        good.jwk | {"kid": None},
        good.jwk | {"kid": ["a"]},
    ]
    found = keys._usable([*odd, good.jwk])
    assert list(found) == [good.kid]
    assert found[good.kid].algorithm_name == "RS256"
    assert keys._usable(odd) == {}
    later = keys._usable([good.jwk, *odd])
    assert later[good.kid].algorithm_name == "RS256", "no odd key takes a good one's place"


@pytest.mark.parametrize("content", [{}, {"keys": None}, {"keys": {"a": 1}}])
def test_an_answer_without_keys(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.setattr(ApiServer, "_jwks", lambda *_: (200, content))
    api_server.vanish()
    api_server.listen()
    with pytest.raises(Unreachable, match="does not publish its issuer and keys"):
        check(api_server, api_server.token(UID))


def test_closing_while_keys_are_fetched(api_server: ApiServer) -> None:
    async def story() -> None:
        published = PublishedKeys(str(api_server.kubeconfig()))
        identities = Identities(published, None)
        api_server.become("silent")
        asked = asyncio.create_task(identities.identify(api_server.token(UID), "freeze"))
        async with asyncio.timeout(5):
            while not api_server.calls:
                await asyncio.sleep(0.01)
            await identities.close()
            with pytest.raises(Unreachable, match="ending"):
                await asked

    asyncio.run(story())


# Hostile bytes.


def offline() -> PublishedKeys:
    """A checker whose keys are known, and whose API server nobody may call."""
    published = PublishedKeys.__new__(PublishedKeys)
    signing = key("first")

    async def never() -> None:
        raise AssertionError("a call")

    published.__dict__.update(
        _keys=keys._usable([signing.jwk]),
        _issuer="https://kubernetes.default.svc.cluster.local",
        _clock=lambda: 0.0,
        _fetched=0.0,
        _fetch=None,
        _fetched_again=never,
    )
    return published


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
heads = st.fixed_dictionaries(
    {"alg": st.sampled_from(["RS256", "ES256", "HS256", "none"]) | json_values, "kid": st.just(key("first").kid)},
    optional={"crit": json_values, "b64": json_values, "typ": json_values, "zip": json_values, "jwk": json_values},
)


@given(
    head=st.binary(max_size=60) | heads.map(lambda value: json.dumps(value).encode()),
    claims=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
    signature=st.binary(max_size=300),
)
@examples(400)
def test_no_bytes_raise_anything_but_refused(head: bytes, claims: bytes, signature: bytes) -> None:
    token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, claims, signature))
    with pytest.raises(Refused):
        asyncio.run(Identities(offline(), "this-node").identify(token, "freeze"))


@given(
    claims=st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "jti", "kubernetes.io"]), json_values, max_size=5
    )
)
@examples(300)
def test_no_signed_claims_raise_anything_but_refused(claims: dict[str, Any]) -> None:
    """Even the cluster itself cannot bring it down."""
    whole = {"exp": time.time() + 60, "aud": "freeze", "iss": "https://kubernetes.default.svc.cluster.local"} | claims
    token = key("first").sign(whole)
    try:
        caller = asyncio.run(Identities(offline(), "this-node").identify(token, "freeze"))
        assert caller.uid
    except Refused:
        pass


def test_deep_nesting_is_refused() -> None:
    deep = b'{"alg":' + b"[" * 5000
    token = f"{b64(deep)}.e30.x"
    with pytest.raises(Refused):
        asyncio.run(Identities(offline(), None).identify(token, "freeze"))


def test_jwt_is_loaded_when_it_is_needed_alone(api_server: ApiServer, tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from freeze_proxy.daemon.keys import PublishedKeys\n"
        "async def story():\n"
        "    published = PublishedKeys(sys.argv[1])\n"
        "    before = 'jwt' in sys.modules\n"
        "    await published.review(sys.argv[2], 'freeze')\n"
        "    print(before, 'jwt' in sys.modules)\n"
        "asyncio.run(story())\n"
    )
    command = [sys.executable, "-c", script, str(api_server.kubeconfig()), api_server.token(UID)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert said.split() == ["False", "True"]
