"""One webhook, put together: what it is made of, how it starts, and how it leaves without a review lost."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import socket
import ssl
from datetime import UTC, datetime

from freeze_proxy.apiserver import NotConfigured, Unreachable
from freeze_proxy.defaults import Defaults
from freeze_proxy.settings import written
from freeze_proxy.webhook.cluster import Cluster
from freeze_proxy.webhook.desk import Desk
from freeze_proxy.webhook.health import Health
from freeze_proxy.webhook.inject import EXCLUDED_NAMESPACES, Options
from freeze_proxy.webhook.metrics import Metrics
from freeze_proxy.webhook.server import Server
from freeze_proxy.webhook.settings import Failure, Settings
from freeze_proxy.webhook.tls import Tls
from freeze_proxy.webhook.upkeep import Mounted, Shared, Upkeep

NATIVE_SIDECARS_SINCE, NATIVE_PORTS_SINCE = (1, 29), (1, 33)
"""Kubernetes 1.29 has the feature ``SidecarContainers`` on by default. Before 1.33 (some of 1.32 do) no Service finds
their ports by name: kubernetes/kubernetes#127976 and #128850."""
_AS_RELEASES = {"always": (99, 0), "never": (0, 0)}
_DEFAULTS_EVERY = 10.0
_RELEASE_EVERY, _RELEASE_RETRY = 600.0, 1.0

_log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Run the webhook until a signal; returns the exit code. Raises ``Failure``."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    return await Webhook(settings).run()


class Webhook:
    """One webhook, made inside the loop that it will run in. Its making raises ``Failure``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = Tls()
        self._metrics = Metrics(
            lambda: self._server.connections, lambda: self._tls.end.timestamp() if self._tls.end else 0.0
        )
        self._defaults = Defaults(settings.config_dir)
        self._release: tuple[int, int] | None = _AS_RELEASES.get(settings.native_sidecars)
        self._options = Options(
            settings.image,
            settings.daemon_port,
            excluded_namespaces=EXCLUDED_NAMESPACES | {settings.namespace},
            sandboxed_runtime_classes=frozenset(settings.sandboxed),
        )
        self._cluster: Cluster | None = None
        self._certificate = asyncio.Event()
        self._listens = self._leaving = False
        if settings.cert_dir is None or self._release is None:
            try:
                self._cluster = Cluster(settings.kubeconfig, settings.context, settings.namespace)
            except NotConfigured as error:
                raise Failure(str(error)) from error
        source: Mounted | Shared
        if settings.cert_dir is not None:
            source = Mounted(settings.cert_dir)
        else:
            assert self._cluster is not None
            source = Shared(self._cluster, settings)
        self._upkeep = Upkeep(source, self._tls, settings.check_every, settings.settle)
        within = settings.request_timeout
        self._server = Server(Desk(lambda: self._options, self._metrics, within).answer, within)
        self._health = Server(Health(self._metrics, self._troubles).answer, within)

    async def run(self) -> int:
        """From the first certificate to the last answer. Raises ``Failure``."""
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        work: list[asyncio.Task[None]] = []
        try:
            health = await _listen(self._health, self._settings.health_listen, "--health-listen")
            self._look_at_defaults()
            tasks = (
                self._upkeep.run(self._certificate.set),
                self._follow_defaults(),
                self._follow_release(),
                self._open(written(health)),
            )
            work += [asyncio.create_task(task) for task in tasks]
            await _first(end, work)
        finally:
            await self._finish(work)
        return 0

    async def _open(self, health: str) -> None:
        """Accept reviews, once there is a certificate and it is known what to put into pods; then stay."""
        await self._certificate.wait()
        while self._release is None:
            await asyncio.sleep(0.05)
        address = await _listen(self._server, self._settings.listen, "--listen", self._tls.context)
        self._listens = True
        facts = {"listen": written(address), "health": health, "native_sidecars": self._options.native_sidecars}
        _log.info("the webhook has started", extra={"facts": facts})
        # What is here now stays for good; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()

    async def _finish(self, work: list[asyncio.Task[None]]) -> None:
        if self._listens:
            # Not ready any more, but there: it takes a while until nobody is sent here.
            self._leaving = True
            self._server.leave()
            _log.info("the webhook ends", extra={"facts": {"lingers": self._settings.linger}})
            await asyncio.sleep(self._settings.linger)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._server.close()
        await self._health.close()
        if self._cluster is not None:
            await self._cluster.close()

    # What goes on all the time.

    async def _follow_defaults(self) -> None:
        while True:
            await asyncio.sleep(_DEFAULTS_EVERY)
            self._look_at_defaults()

    def _look_at_defaults(self) -> None:
        troubles = self._defaults.look()
        if troubles is None:
            return
        for trouble in troubles:
            _log.warning("a default is not used", extra={"facts": {"why": trouble}})
        self._decide()
        _log.info("defaults", extra={"facts": {"defaults": dict(self._defaults.values)}})

    async def _follow_release(self) -> None:
        """Clusters are upgraded; where the setting says what to do, this ends never and does nothing."""
        if self._release is not None:
            await asyncio.Event().wait()
        said = ""
        while True:
            assert self._cluster is not None
            try:
                release = await self._cluster.release()
            except Unreachable as failure:
                if str(failure) != said:
                    said = str(failure)
                    _log.error("the cluster's release is not known", extra={"facts": {"why": said}})
                await asyncio.sleep(_RELEASE_RETRY)
                continue
            said = ""
            self._release = release
            self._decide()
            await asyncio.sleep(_RELEASE_EVERY)

    def _decide(self) -> None:
        release = self._release or (0, 0)
        self._options = dataclasses.replace(
            self._options,
            native_sidecars=release >= NATIVE_SIDECARS_SINCE,
            native_ports=release >= NATIVE_PORTS_SINCE,
            defaults=self._defaults.values,
        )

    # What /readyz asks.

    def _troubles(self) -> list[str]:
        """Why pods could not be reviewed just now, in sentences."""
        if self._leaving:
            return ["The webhook ends."]
        troubles = []
        if not self._tls.good(datetime.now(UTC)):
            troubles.append(self._upkeep.trouble or "The certificate has ended.")
        if self._release is None:
            troubles.append("It is not known yet whether the cluster has native sidecars.")
        if not self._listens and not troubles:
            troubles.append("It does not listen yet.")
        return troubles


async def _first(end: asyncio.Event, work: list[asyncio.Task[None]]) -> None:
    """Until the end; what goes on all the time ends only where it cannot go on."""
    waiting = asyncio.create_task(end.wait())
    try:
        done, _ = await asyncio.wait([waiting, *work], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


async def _listen(
    server: Server, address: tuple[str, int], option: str, tls: ssl.SSLContext | None = None
) -> tuple[str, int]:
    try:
        return await server.start(*address, tls)
    except OSError as error:
        # asyncio's own text names the address once more.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise Failure(f"{written(address)} cannot be listened on: {why}. Choose another with {option}.") from error
