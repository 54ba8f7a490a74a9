"""All ambient pods of this node: who asks for it, as the API server tells, and what becomes of them."""

import asyncio
import logging
import sys
from collections.abc import Collection

from lightkube.resources.core_v1 import Namespace, Pod

from freeze_proxy.ambient import Watcher
from freeze_proxy.ambient.watcher import OUT_OF_THE_WAY
from freeze_proxy.apiserver import ApiServer
from freeze_proxy.beats import next_beat
from freeze_proxy.daemon.ambient import wishes
from freeze_proxy.daemon.ambient.pod import AmbientPod, Tools
from freeze_proxy.daemon.ambient.statistics import Statistics
from freeze_proxy.daemon.ambient.watching import Client, Follower
from freeze_proxy.daemon.ambient.wishes import AMBIENT, ATTACH, Unfit, Wish
from freeze_proxy.daemon.freezing import Freezing
from freeze_proxy.daemon.metrics import Metrics
from freeze_proxy.daemon.pods import Pods
from freeze_proxy.daemon.rounds import Rounds
from freeze_proxy.daemon.sidecars import Sidecars
from freeze_proxy.defaults import Defaults

MOST_WATCHED = 2048
"""Containers."""
_LOOK_EVERY = 2.0
_READ_DEFAULTS_EVERY = 10
_LOOKED_AT = 128
"""Pods, each time."""

_log = logging.getLogger(__name__)


class Ambient:
    """Serves them from ``run`` to ``close``. Raises ``BpfError`` and ``NotConfigured``.

    ``node_name``: of this node in the cluster. ``defaults``: the folder with the cluster's, if there is one.
    """

    def __init__(
        self,
        server: ApiServer,
        node_name: str,
        pods: Pods,
        freezing: Freezing,
        sidecars: Sidecars,
        metrics: Metrics,
        excluded: Collection[str],
        defaults: str | None = None,
    ) -> None:
        self._watcher = Watcher(MOST_WATCHED)
        self._client = Client(server)
        self._statistics = Statistics()
        self._tools = Tools(pods, freezing, self._watcher, self._statistics, sidecars)
        self._defaults = Defaults(defaults)
        self._excluded = excluded
        self._attended: dict[str, AmbientPod] = {}
        self._in_turn = Rounds(self._tools.awake.values, _LOOKED_AT)
        # A thread that reads lists of sockets is to hold up a thaw for no longer than that; it is 5 ms otherwise.
        sys.setswitchinterval(0.0005)
        self._unfit: dict[str, str] = {}
        self._namespaces = Follower(self._client, Namespace, _label, self._label_changed)
        self._pods = Follower(self._client, Pod, self._wish, self._reconcile, {"spec.nodeName": node_name})
        metrics.watch("ambient_pods", "Pods that ask to be frozen without a sidecar", lambda: len(self._pods.kept))
        metrics.watch("ambient_watched", "Ambient pods whose packets are watched", self._watched)
        metrics.watch("ambient_frozen", "Ambient pods that stand still now", self._frozen)
        metrics.watch("ambient_api_server_away", "1 while the API server cannot be followed", self._away)

    async def run(self) -> None:
        """For ever."""
        self._look_at_defaults()
        self._tools.pods.forgotten = self._forgotten
        asyncio.get_running_loop().add_reader(self._watcher.fd, self._on_packets)
        following = [asyncio.create_task(each.run()) for each in (self._namespaces, self._pods)]
        try:
            turn = 0
            while True:
                await next_beat(_LOOK_EVERY)
                turn += 1
                if turn % _READ_DEFAULTS_EVERY == 0:
                    self._look_at_defaults()
                async for attended in self._in_turn.turn():
                    self._look(attended)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    async def close(self) -> None:
        """Thaw all of them, and give everything back; after ``run`` has ended."""
        for attended in self._attended.values():
            attended.end()
        self._attended.clear()
        self._tools.pool.shutdown(wait=False, cancel_futures=True)
        asyncio.get_running_loop().remove_reader(self._watcher.fd)
        self._watcher.close()
        await self._statistics.close()
        await self._client.close()

    def _on_packets(self) -> None:
        if self._watcher.hasten():
            asyncio.get_running_loop().call_later(OUT_OF_THE_WAY, self._watcher.read)
        else:
            self._watcher.read()

    def _forgotten(self, uid: str) -> None:
        if (attended := self._attended.get(uid)) is not None:
            asyncio.get_running_loop().call_soon(self._look, attended)

    @staticmethod
    def _look(attended: AmbientPod) -> None:
        try:
            attended.look()
        except Exception:
            facts = {"pod": str(attended.wish)}
            _log.exception("a mistake was made with an ambient pod", extra={"facts": facts})

    # What the API server tells.

    def _wish(self, pod: Pod) -> Wish | None:
        labels = dict(self._namespaces.kept.values()).get(pod.metadata.namespace if pod.metadata else None, {})
        if not wishes.asks(pod, labels):
            return None
        try:
            return wishes.read(pod, self._defaults.values, self._excluded)
        except Unfit as reason:
            assert pod.metadata is not None
            self._say_unfit(pod.metadata.uid or "", f"{pod.metadata.namespace}/{pod.metadata.name}", str(reason))
            return None

    def _label_changed(self, _uid: str) -> None:
        self._pods.again()

    def _reconcile(self, uid: str) -> None:
        wish, attended = self._pods.kept.get(uid), self._attended.get(uid)
        if attended is not None and (wish is None or wish.ending or _differently(wish, attended.wish)):
            del self._attended[uid]
            attended.end()
            attended = None
        if wish is None or wish.ending or wish.mode == "off":
            return
        if attended is not None:
            attended.update(wish)
        else:
            self._attended[uid] = AmbientPod(wish, self._tools)
            self._attended[uid].start()

    def _say_unfit(self, uid: str, name: str, why: str) -> None:
        if self._unfit.get(uid) != why:
            if len(self._unfit) > MOST_WATCHED:
                self._unfit.clear()
            self._unfit[uid] = why
            _log.warning("an ambient pod cannot be served, and stays awake", extra={"facts": {"pod": name, "why": why}})

    def _look_at_defaults(self) -> None:
        troubles = self._defaults.look()
        if troubles is None:
            return
        for trouble in troubles:
            _log.error("a default is not used", extra={"facts": {"why": trouble}})
        self._pods.again()

    # For metrics.

    def _watched(self) -> int:
        return sum(attended.watched for attended in self._attended.values())

    def _frozen(self) -> int:
        return sum(attended.frozen for attended in self._attended.values())

    def _away(self) -> int:
        return int(self._pods.away)


def _label(namespace: Namespace) -> tuple[str | None, dict[str, str]] | None:
    """Name and labels of one that asks for its pods."""
    metadata = namespace.metadata
    if metadata is None or (metadata.labels or {}).get(ATTACH) != AMBIENT:
        return None
    return metadata.name, {ATTACH: AMBIENT}


def _differently(wish: Wish, before: Wish) -> bool:
    """Whether it is to be kept in another way than it is."""
    return wish.told != before.told or wish.containers != before.containers
