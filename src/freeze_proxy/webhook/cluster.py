"""What the webhook reads and writes at the API server: its Secret, its configuration, the cluster's release.

Each write names the version of the object that it follows, so that of two replicas that write at once one is told.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2
from lightkube import AsyncClient
from lightkube.models import admissionregistration_v1, core_v1
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Secret
from lightkube.types import PatchType

from freeze_proxy.apiserver import PATIENCE, ApiServer, Unreachable
from freeze_proxy.webhook.certs import Bundle
from freeze_proxy.webhook.settings import CONFIGURATION, SECRET

_AUTHORITIES, _CERTIFICATE, _KEY = "ca.crt", "tls.crt", "tls.key"
_CONFLICT = 409


class Taken(Exception):
    """Somebody else has written the object meanwhile: read it anew."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in the Secret, if it is whole, and the Secret's version."""

    bundle: Bundle | None
    version: str


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom the API server trusts (PEM), by the names of the configuration's webhooks, and its version."""

    authorities: dict[str, bytes]
    version: str


class Cluster:
    """The API server, as far as the webhook knows it. Its making raises ``apiserver.NotConfigured``.

    All else raises ``apiserver.Unreachable``, and what writes also ``Taken``.
    """

    def __init__(self, kubeconfig: str | None, context: str | None, namespace: str) -> None:
        self._server = ApiServer(kubeconfig, context, "webhook")
        self._namespace = namespace
        self._client = AsyncClient(
            config=self._server.config,
            timeout=httpx2.Timeout(PATIENCE),
            trust_env=False,
            transport=self._server.transport(2),
        )
        self._plain = httpx2.AsyncClient(
            base_url=self._server.address,
            auth=self._server.auth,
            timeout=httpx2.Timeout(PATIENCE),
            trust_env=False,
            transport=self._server.transport(1),
        )

    async def close(self) -> None:
        """Give back connections."""
        await self._client.close()
        await self._plain.aclose()

    async def release(self) -> tuple[int, int]:
        """Major and minor number of the API server's Kubernetes."""

        async def ask() -> tuple[int, int]:
            answer = await self._plain.get("/version")
            answer.raise_for_status()
            said = answer.json()
            # Some providers write "29+".
            major, minor = ("".join(filter(str.isdecimal, said[part])) for part in ("major", "minor"))
            return int(major), int(minor)

        return await self._server.call(ask, "tell its version", "get /version")

    async def kept(self) -> Kept:
        """The Secret's contents."""

        async def ask() -> core_v1.Secret:
            return await self._client.get(Secret, SECRET, namespace=self._namespace)

        secret = await self._server.find(ask, f"give the Secret {SECRET}", f"get the Secret {SECRET}")
        if secret is None:
            raise Unreachable(
                f"There is no Secret {SECRET} in the namespace {self._namespace}: apply the manifests again."
            )
        return Kept(_bundle(secret.data or {}), _version(secret))

    async def keep(self, bundle: Bundle, version: str) -> None:
        """Put this into the Secret of that version."""
        values = {_AUTHORITIES: bundle.authorities, _CERTIFICATE: bundle.certificate, _KEY: bundle.key}
        change = {
            "metadata": {"resourceVersion": version},
            "data": {name: base64.b64encode(value).decode() for name, value in values.items()},
        }

        async def ask() -> object:
            return await self._client.patch(
                Secret, SECRET, change, namespace=self._namespace, patch_type=PatchType.MERGE
            )

        await self._written(ask, f"write the Secret {SECRET}", f"patch the Secret {SECRET}")

    async def trusted(self) -> Trusted | None:
        """Whom the API server trusts; nothing where there is no configuration."""

        async def ask() -> admissionregistration_v1.MutatingWebhookConfiguration:
            return await self._client.get(MutatingWebhookConfiguration, CONFIGURATION)

        configuration = await self._server.find(
            ask,
            f"give the MutatingWebhookConfiguration {CONFIGURATION}",
            f"get the mutatingwebhookconfiguration {CONFIGURATION}",
        )
        if configuration is None:
            return None
        authorities = {each.name: _decoded(each.clientConfig.caBundle) for each in configuration.webhooks or []}
        return Trusted(authorities, _version(configuration))

    async def trust(self, authorities: bytes, trusted: Trusted) -> None:
        """Have the API server trust these for each of the configuration's webhooks."""
        encoded = base64.b64encode(authorities).decode()
        change = {
            "metadata": {"resourceVersion": trusted.version},
            "webhooks": [{"name": name, "clientConfig": {"caBundle": encoded}} for name in trusted.authorities],
        }

        async def ask() -> object:
            return await self._client.patch(
                MutatingWebhookConfiguration, CONFIGURATION, change, patch_type=PatchType.STRATEGIC
            )

        await self._written(
            ask,
            f"write the MutatingWebhookConfiguration {CONFIGURATION}",
            f"patch the mutatingwebhookconfiguration {CONFIGURATION}",
        )

    async def _written(self, ask: Callable[[], Awaitable[object]], what: str, grant: str) -> None:
        async def write() -> bool:
            try:
                await ask()
            except httpx2.HTTPStatusError as error:
                if error.response.status_code == _CONFLICT:
                    return False
                raise
            return True

        if not await self._server.call(write, what, grant):
            raise Taken


def _version(found: core_v1.Secret | admissionregistration_v1.MutatingWebhookConfiguration) -> str:
    return (found.metadata.resourceVersion if found.metadata else None) or ""


def _bundle(data: dict[str, str]) -> Bundle | None:
    authorities, certificate, key = (_decoded(data.get(name)) for name in (_AUTHORITIES, _CERTIFICATE, _KEY))
    return Bundle(authorities, certificate, key) if authorities and certificate and key else None


def _decoded(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "")
    except (binascii.Error, ValueError):
        return b""
