"""TokenReview: the API server says whom a token speaks for.

Of what it answers (``authentication.k8s.io/v1``), these are relied on: ``status.authenticated``; ``status.audiences``,
which an API server that does not know audiences leaves out; the username ``system:serviceaccount:NAMESPACE:NAME``; and
in ``extra`` the pod's UID and name, for tokens bound to a pod, and since 1.30 its node.
"""

import time
from collections.abc import Mapping

import httpx2
from lightkube import AsyncClient
from lightkube.models.authentication_v1 import TokenReviewSpec, TokenReviewStatus
from lightkube.resources.authentication_v1 import TokenReview

from freeze_proxy.apiserver import PATIENCE, ApiServer, Unreachable
from freeze_proxy.daemon.identity import Caller, Refused, expiry, without_token

EXTRA = "authentication.kubernetes.io/"
_USER = "system:serviceaccount:"


def read(status: TokenReviewStatus | None, token: str, audience: str, now: float) -> Caller:
    """The caller that this answer names. ``now`` is Unix time, in seconds. Raises ``Refused`` and ``Unreachable``."""
    if status is None:
        raise Unreachable("The API server answered the review of the token without a status.")
    if not status.authenticated:
        why = without_token(status.error or "it is forged, expired, or its pod is gone", token)
        raise Refused(f"The API server does not accept the token for the audience {audience}: {why}.")
    if audience not in (status.audiences or ()):
        raise Refused(
            f"The API server did not confirm the token's audience, which has to be {audience}; "
            "mount a projected token with it."
        )
    user = status.user
    namespace, colon, account = (user.username or "").removeprefix(_USER).partition(":") if user else ("", "", "")
    if user is None or not (user.username or "").startswith(_USER) or not (namespace and colon and account):
        raise Refused("The token is not a service account's; mount a projected service account token.")
    extra = user.extra or {}
    return Caller(
        uid=_first(extra, "pod-uid") or "",
        namespace=namespace,
        name=_first(extra, "pod-name") or "",
        node=_first(extra, "node-name"),
        expires=expiry(token, now),
    )


def _first(extra: Mapping[str, object], name: str) -> str | None:
    values = extra.get(EXTRA + name)
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else None


class TokenReviews:
    """Asks the API server about each token. Raises ``apiserver.NotConfigured``."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._server = ApiServer(kubeconfig, context)
        self._client = AsyncClient(
            config=self._server.config,
            timeout=httpx2.Timeout(PATIENCE),
            trust_env=False,
            transport=self._server.transport(),
        )

    async def review(self, token: str, audience: str) -> Caller:
        """The caller to whom this token was given, for this audience. Raises ``Refused`` and ``Unreachable``."""

        async def ask() -> TokenReviewStatus | None:
            asked = TokenReview(spec=TokenReviewSpec(token=token, audiences=[audience]))
            answered = await self._client.create(asked)
            return answered.status

        status = await self._server.call(ask, "review the token", "create tokenreviews")
        return read(status, token, audience, time.time())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
