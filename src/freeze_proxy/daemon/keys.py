"""Tokens checked with the keys that the cluster publishes: no call for a token, one for a new key.

That a pod is gone, the API server knows and a signature does not show; such a token can only name a pod that no longer
has a container.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx2

from freeze_proxy.apiserver import PATIENCE, ApiServer, Unreachable
from freeze_proxy.daemon.identity import Caller, Refused

if TYPE_CHECKING:
    from jwt import PyJWK

KEYS, DISCOVERY = "openid/v1/jwks", ".well-known/openid-configuration"
GRANT = (
    "get /openid/v1/jwks and /.well-known/openid-configuration (ClusterRole system:service-account-issuer-discovery)"
)
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"})
"""What a cluster signs with. No shared secrets: a public key must never serve as one."""
FETCH_EVERY = 5.0
"""Seconds between two fetches at least, however many unknown keys are named."""
FRESH = 600.0
"""Seconds after which keys are fetched again in the background, so that one taken back is not trusted for ever."""
LEEWAY = 10.0
"""Seconds by which the clocks of the API server and this node may differ."""


class PublishedKeys:
    """Checks tokens offline. ``issuer`` is what they must name; without it, what the API server says of itself.

    ``clock`` gives seconds from any beginning. Raises ``apiserver.NotConfigured``.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        issuer: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = ApiServer(kubeconfig, context)
        self._client = httpx2.AsyncClient(
            base_url=self._server.address,
            auth=self._server.auth,
            timeout=httpx2.Timeout(PATIENCE),
            trust_env=False,
            transport=self._server.transport(),
        )
        self._clock = clock
        self._wanted = issuer
        self._issuer = issuer or ""
        self._keys: dict[str, PyJWK] = {}
        self._fetched = self._asked = -float("inf")
        self._failure: str | None = None
        self._fetch: asyncio.Task[None] | None = None

    async def review(self, token: str, audience: str) -> Caller:
        """The caller to whom this token was given, for this audience. Raises ``Refused`` and ``Unreachable``."""
        name = _key_named_by(token)
        if name not in self._keys:
            await self._fetched_again()
        elif self._clock() - self._fetched > FRESH:
            self._begin_fetch()
        key = self._keys.get(name)
        if key is None:
            raise Refused("The token is signed with a key that this cluster does not publish.")
        return _caller(_claims(token, key, audience, self._issuer))

    async def close(self) -> None:
        """Close the connections."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)
        await self._client.aclose()

    async def _fetched_again(self) -> None:
        """Wait for a fetch, unless the last one has only just been. Raises ``Unreachable``."""
        self._begin_fetch()
        if self._fetch is not None:
            await asyncio.shield(self._fetch)
        if self._failure is not None:
            raise Unreachable(self._failure)

    def _begin_fetch(self) -> None:
        if self._fetch is None and self._clock() - self._asked >= FETCH_EVERY:
            self._asked = self._clock()
            self._fetch = asyncio.create_task(self._take())
            self._fetch.add_done_callback(self._fetch_ended)

    def _fetch_ended(self, _fetch: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _take(self) -> None:
        """Replace the keys by those that are published now; a failure leaves them as they were."""
        try:
            issuer = self._wanted
            if issuer is None:
                issuer = (await self._get(DISCOVERY)).get("issuer")
            found = (await self._get(KEYS)).get("keys")
        except Unreachable as failure:
            self._failure = str(failure)
            return
        if not isinstance(issuer, str) or not issuer or not isinstance(found, list):
            self._failure = f"The API server {self._server.address} does not publish its issuer and keys."
            return
        self._issuer = issuer
        self._keys = _usable(found)
        self._failure = None
        self._fetched = self._clock()

    async def _get(self, path: str) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            response = await self._client.get(path)
            response.raise_for_status()
            answer = response.json()
            if not isinstance(answer, dict):
                raise ValueError("not an object")
            return answer

        return await self._server.call(ask, f"give its /{path}", GRANT)


def _usable(found: list[Any]) -> dict[str, "PyJWK"]:
    """By name, the keys that a cluster may sign with; others are passed over."""
    import jwt

    keys: dict[str, PyJWK] = {}
    for data in found:
        try:
            key = jwt.PyJWK(data)
        except Exception:  # noqa: S112 - whatever else is published there is none of our keys
            continue
        named = isinstance(key.key_id, str) and key.key_id
        if named and key.public_key_use in (None, "sig") and key.algorithm_name in ALGORITHMS:
            keys[named] = key
    return keys


def _key_named_by(token: str) -> str:
    import jwt

    try:
        header = jwt.get_unverified_header(token)
        name, algorithm = header.get("kid"), header.get("alg")
    except Exception:  # hostile bytes find more ways to fail than PyJWT's own errors
        raise Refused("The token's head cannot be read.") from None
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise Refused(f"The token is not signed in a way that a cluster signs: {', '.join(sorted(ALGORITHMS))}.")
    if not isinstance(name, str) or not name:
        raise Refused("The token does not name the key that it is signed with.")
    return name


def _claims(token: str, key: "PyJWK", audience: str, issuer: str) -> dict[str, Any]:
    """What the token says, once it is known to be true. Raises ``Refused``."""
    import jwt

    try:
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud"], "verify_iat": False},
        )
    except jwt.ExpiredSignatureError:
        why = "it has expired; read the token's file anew for every connection"
    except jwt.ImmatureSignatureError:
        why = "it is not valid yet; do the clocks of this node and the API server agree?"
    except jwt.InvalidAudienceError:
        why = f"it was not issued for the audience {audience}; mount a projected token with it"
    except jwt.InvalidIssuerError:
        why = f"its issuer is not {issuer}"
    except jwt.MissingRequiredClaimError as error:
        why = f"it has no claim {error.claim}"
    except Exception:  # hostile bytes find more ways to fail than PyJWT's own errors
        why = "its signature is not right, or its claims cannot be read"
    raise Refused(f"The token is not accepted: {why}.")


def _caller(claims: dict[str, Any]) -> Caller:
    bound = _object(claims.get("kubernetes.io"))
    pod, node = _object(bound.get("pod")), _object(bound.get("node"))
    return Caller(
        uid=_text(pod.get("uid")),
        namespace=_text(bound.get("namespace")),
        name=_text(pod.get("name")),
        node=_text(node.get("name")) or None,
        expires=float(claims["exp"]),
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
