"""One daemon, put together: what it is made of, how it starts, and how it ends with everything thawed."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import time
from typing import TYPE_CHECKING

from freeze_proxy.apiserver import ApiServer, NotConfigured
from freeze_proxy.beats import next_beat
from freeze_proxy.control.server import Server
from freeze_proxy.daemon import places
from freeze_proxy.daemon.cri import Runtime, RuntimeAway
from freeze_proxy.daemon.freezing import Freezing
from freeze_proxy.daemon.health import Health
from freeze_proxy.daemon.identity import Identities, Reviewer
from freeze_proxy.daemon.journal import Journal, JournalError
from freeze_proxy.daemon.metrics import Metrics
from freeze_proxy.daemon.pods import Pods
from freeze_proxy.daemon.service import Service
from freeze_proxy.daemon.settings import Failure, Settings
from freeze_proxy.daemon.sidecars import Sidecars
from freeze_proxy.daemon.supervisor import PULSE_EVERY, Line
from freeze_proxy.freezers import FreezeError
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address

if TYPE_CHECKING:
    from freeze_proxy.daemon.ambient.house import Ambient

_SWEEP_EVERY = 2.0
_ASK_AGAIN = 2.0
"""Seconds for which the runtime's answer to whether it is there holds."""
_LAST_ANSWERS = 0.2
"""Seconds for which requests are still answered once everything is thawed."""

_log = logging.getLogger(__name__)


def serve(settings: Settings, line: Line) -> int:
    """Run the daemon until a signal, or the end of its supervisor; returns the exit code. Raises ``Failure``."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection and some files for each pod
    return asyncio.run(Daemon(settings, line).run())


class Daemon:
    """One daemon. Its making opens what it needs, and raises ``Failure``."""

    def __init__(self, settings: Settings, line: Line) -> None:
        self._settings = settings
        self._line = line
        self._metrics = Metrics()
        try:
            self._journal = Journal(settings.state_dir)
            self._reviewer = _reviewer(settings)
        except (JournalError, NotConfigured) as error:
            raise Failure(str(error)) from error
        self._runtime = Runtime(settings.runtime_socket)
        ways = places.Ways(settings.freezer, self._runtime.identity)
        self._pods = Pods(self._runtime, ways, settings.exclude)
        self._freezing = Freezing(self._journal, self._metrics.freezing, settings.freeze_timeout)
        identities = Identities(self._reviewer, settings.node_name, self._metrics.identity)
        self._sidecars = Sidecars(self._pods)
        service = Service(
            identities,
            self._pods,
            self._freezing,
            self._metrics,
            self._sidecars,
            settings.audience,
            settings.hook_audience,
        )
        self._control = Server(service)
        self._health = Server(Health(self._metrics, self._sidecars, self._troubles))
        self._metrics.watch("frozen", "Containers that are frozen now", self._freezing.frozen)
        self._metrics.watch("leases", "Pods that are held frozen by a connection", self._freezing.leases)
        self._metrics.watch("pods", "Pods that are known", lambda: len(self._pods))
        self._metrics.watch("connections", "Open control connections", lambda: len(self._control.connections))
        self._ambient = self._made_ambient() if settings.ambient else None
        self._asked = (-_ASK_AGAIN, "")

    async def run(self) -> int:
        """From the first thaw to the last. Raises ``Failure``."""
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        loop.add_reader(self._line.fileno(), end.set)
        work: list[asyncio.Task[None]] = []
        try:
            adopted = self._freezing.adopt(self._journal.found())
            if adopted:
                names = [f"{record.namespace}/{record.pod_name} {record.container}" for record in adopted]
                _log.info("an earlier daemon has left containers frozen", extra={"facts": {"containers": names}})
            control = await _listen(self._control, self._settings.listen, "--listen")
            health = await _listen(self._health, self._settings.health_listen, "--health-listen")
            for_ever = [asyncio.create_task(task) for task in (self._beat(), self._freezing.watch(), self._sweep())]
            if self._ambient is not None:
                for_ever.append(asyncio.create_task(self._ambient.run()))
            work = [*for_ever, asyncio.create_task(self._claims()), asyncio.create_task(self._look_around())]
            facts = {"listen": written(control), "health": written(health), "identity": self._settings.identity}
            _log.info("the daemon has started", extra={"facts": facts})
            # What is here now stays for good; the collector need not look at it again.
            gc.collect()
            gc.freeze()
            # With a thousand pods a look at all that there is takes longer than a thaw may. Few cycles are made here.
            gc.set_threshold(2000, 20, 50)
            await _first(end, for_ever)
        finally:
            loop.remove_reader(self._line.fileno())
            await self._finish(work)
        return 0

    async def _finish(self, work: list[asyncio.Task[None]]) -> None:
        self._line.beat()
        self._control.stop_listening()
        frozen = self._freezing.frozen()
        await self._freezing.close()
        left = self._freezing.frozen()
        if left:
            _log.error("the daemon ends, and its supervisor has to thaw what is left", extra={"facts": {"left": left}})
        else:
            _log.info("the daemon ends; everything is thawed", extra={"facts": {"thawed": frozen}})
        if self._control.connections:
            await asyncio.sleep(_LAST_ANSWERS)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        if self._ambient is not None:
            await self._ambient.close()
        await self._control.close()
        await self._health.close()
        self._pods.close()
        await self._runtime.close()
        await self._reviewer.close()

    def _made_ambient(self) -> "Ambient | None":
        """Where the kernel does not take the programs, all else goes on, and the pods stay awake."""
        from freeze_proxy.ambient.bpf import BpfError
        from freeze_proxy.daemon.ambient.house import Ambient

        settings = self._settings
        if not settings.node_name:
            raise Failure("--ambient needs --node-name: only this node's pods are followed.")
        try:
            return Ambient(
                ApiServer(settings.kubeconfig, settings.context),
                settings.node_name,
                self._pods,
                self._freezing,
                self._sidecars,
                self._metrics,
                settings.exclude,
                settings.config_dir,
            )
        except BpfError as error:
            _log.error("ambient is not possible here, and its pods stay awake", extra={"facts": {"why": str(error)}})
            return None

    # What goes on all the time.

    async def _beat(self) -> None:
        while True:
            self._line.beat()
            await next_beat(PULSE_EVERY)

    async def _sweep(self) -> None:
        while True:
            await next_beat(_SWEEP_EVERY)
            await self._pods.sweep()
            await self._sidecars.sweep()

    async def _claims(self) -> None:
        await asyncio.sleep(self._settings.claim_timeout)
        unclaimed = await self._freezing.thaw_unclaimed()
        if unclaimed:
            _log.info(
                "what an earlier daemon had frozen, and nobody claimed, was thawed",
                extra={"facts": {"pods": unclaimed}},
            )

    async def _look_around(self) -> None:
        """Say what somebody else has frozen: it is left alone."""
        try:
            everybody = await self._runtime.everybody()
        except RuntimeAway as error:
            _log.warning("the container runtime is away", extra={"facts": {"why": str(error)}})
            return
        for sandbox in everybody:
            for container in sandbox.containers:
                with contextlib.suppress(FreezeError):
                    freezer = places.by_cgroup(container.id, container.pid, "freeze")
                    try:
                        if freezer.still() and not self._freezing.holds(container.id):
                            name = f"{sandbox.namespace}/{sandbox.name}"
                            facts = {"pod": name, "container": container.name, "id": container.id}
                            _log.warning(
                                "a container is frozen by somebody else, and left alone", extra={"facts": facts}
                            )
                    finally:
                        freezer.close()
            await asyncio.sleep(0)

    # What /readyz asks.

    async def _troubles(self) -> list[str]:
        """Why nothing could be frozen just now, in sentences."""
        at, trouble = self._asked
        if time.monotonic() >= at + _ASK_AGAIN:
            try:
                await asyncio.create_task(self._runtime.version())
                trouble = ""
            except RuntimeAway as error:
                trouble = str(error)
            self._asked = (time.monotonic(), trouble)
        troubles = [trouble] if trouble else []
        if self._settings.freezer in ("auto", "cgroup"):
            reason = places.unwritable()
            # `auto` goes on through the runtime.
            if reason and (self._settings.freezer == "cgroup" or trouble):
                troubles.append(reason)
        return troubles


async def _first(end: asyncio.Event, for_ever: list[asyncio.Task[None]]) -> None:
    """Until the end; what goes on all the time ends only by a mistake of ours, which is not to be survived frozen."""
    waiting = asyncio.create_task(end.wait())
    done, _ = await asyncio.wait([waiting, *for_ever], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done:
        task.result()


async def _listen(server: Server, address: Address, option: str) -> tuple[str, int]:
    try:
        return await server.start(*address)
    except OSError as error:
        # asyncio's own text names the address once more.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise Failure(f"{written(address)} cannot be listened on: {why}. Choose another with {option}.") from error


def _reviewer(settings: Settings) -> Reviewer:
    if settings.identity == "jwks":
        from freeze_proxy.daemon.keys import PublishedKeys

        return PublishedKeys(settings.kubeconfig, settings.context, settings.issuer)
    from freeze_proxy.daemon.reviews import TokenReviews

    return TokenReviews(settings.kubeconfig, settings.context)
