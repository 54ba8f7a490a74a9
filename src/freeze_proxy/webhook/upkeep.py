"""Keeps the certificate that is served good, and the API server's trust in step with it.

1. What is served is trusted already: trust is written first, and some seconds are left for it to get around.
2. Replicas share one Secret. Who finds it empty, broken or soon to end fills it; of two that do, one is told that it
   was late, and takes what the other wrote.
3. While nothing better can be had, what was served goes on being served.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.webhook import certs
from freeze_proxy.webhook.certs import Bundle
from freeze_proxy.webhook.cluster import Cluster, Taken, Trusted
from freeze_proxy.webhook.settings import CONFIGURATION, Settings
from freeze_proxy.webhook.tls import Tls

_ATTEMPTS = 5
_PAUSES = (0.05, 0.3)
"""Seconds, from and to, before another attempt to write what others write too."""
_RETRY, _LONGEST_RETRY = 0.5, 30.0
"""Seconds after a failure, doubled with each."""
_LARGEST_FILE = 1 << 20

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Where the certificate comes from."""

    async def current(self) -> Bundle:
        """The one to serve now. Raises ``Unreachable`` with a sentence."""


class Shared:
    """The Secret that replicas share: filled, renewed, and the configuration's ``caBundle`` kept in step."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._service, self._namespace = settings.service, settings.namespace
        self._lifetime = timedelta(seconds=settings.certificate_lifetime)
        self._called = True

    async def current(self) -> Bundle:
        """See ``Source``."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._once()
            except Taken:
                await asyncio.sleep(random.uniform(*_PAUSES))  # noqa: S311 - no secret
        raise Unreachable(f"The Secret or the configuration was written by others, {_ATTEMPTS} times in a row.")

    async def _once(self) -> Bundle:
        # The configuration first: were it written to from an older Secret than the newest, it would say so.
        trusted = await self._cluster.trusted()
        kept = await self._cluster.kept()
        bundle = kept.bundle
        now = datetime.now(UTC)
        trouble = certs.trouble(bundle, self._service, self._namespace, now) if bundle else "there is none yet"
        if bundle is None or trouble:
            bundle = certs.made(self._service, self._namespace, self._lifetime, now, _before(bundle, trusted))
            await self._cluster.keep(bundle, kept.version)
            facts = {"why": trouble, "until": certs.end(bundle.certificate)}
            _log.info("a new certificate was made", extra={"facts": facts})
        if trusted and any(authorities != bundle.authorities for authorities in trusted.authorities.values()):
            await self._cluster.trust(bundle.authorities, trusted)
            _log.info("the API server was told whom to trust", extra={"facts": {"configuration": CONFIGURATION}})
        if self._called != (trusted is not None):
            self._called = trusted is not None
            why = "" if self._called else f"there is no MutatingWebhookConfiguration {CONFIGURATION}: apply it again"
            level = logging.INFO if self._called else logging.WARNING
            what = "the API server calls this webhook again" if self._called else "nobody calls this webhook"
            _log.log(level, what, extra={"facts": {"why": why}})
        return bundle


def _before(bundle: Bundle | None, trusted: Trusted | None) -> bytes:
    """Who stays trusted, since other replicas serve what they signed: also if the Secret was emptied."""
    if bundle is not None:
        return bundle.authorities
    return b"\n".join(dict.fromkeys(trusted.authorities.values())) if trusted else b""


class Mounted:
    """Files that somebody else keeps good, such as cert-manager, who also looks after the ``caBundle``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    async def current(self) -> Bundle:
        """See ``Source``."""
        return Bundle(b"", self._read("tls.crt"), self._read("tls.key"))

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                return file.read(_LARGEST_FILE)
        except OSError as error:
            raise Unreachable(
                f"The certificate cannot be read from {path}: {error.strerror}. "
                "Check the Secret that is mounted there, and who fills it."
            ) from None


class Upkeep:
    """Loads what ``source`` has into ``tls``, for as long as it runs. ``trouble``: why it could not, or nothing."""

    def __init__(self, source: Source, tls: Tls, check_every: float, settle: float) -> None:
        self._source = source
        self._tls = tls
        self._check_every, self._settle = check_every, settle
        self._served: Bundle | None = None
        self.trouble = "there is no certificate yet"

    async def run(self, loaded: Callable[[], None]) -> None:
        """For ever; ``loaded`` is called whenever there is a new certificate."""
        retry = _RETRY
        while True:
            try:
                await self._look(loaded)
                trouble = ""
            except (Unreachable, ValueError) as failure:
                trouble = str(failure)
            if trouble and trouble != self.trouble:
                _log.error("the certificate cannot be looked after", extra={"facts": {"why": trouble}})
            elif self.trouble and not trouble:
                _log.info("the certificate is looked after")
            self.trouble = trouble
            pause, retry = (retry, min(retry * 2, _LONGEST_RETRY)) if trouble else (self._check_every, _RETRY)
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - replicas are not to move in step

    async def _look(self, loaded: Callable[[], None]) -> None:
        bundle = await self._source.current()
        if self._served and (bundle.certificate, bundle.key) == (self._served.certificate, self._served.key):
            return
        if self._tls.good(datetime.now(UTC)):
            await asyncio.sleep(self._settle)
        self._tls.load(bundle.certificate, bundle.key)
        self._served = bundle
        _log.info("a certificate is served", extra={"facts": {"until": self._tls.end}})
        loaded()
