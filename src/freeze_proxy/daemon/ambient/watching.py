"""Following objects of the API server: a list, then a watch from there on.

As in "Efficient detection of changes" of the Kubernetes API concepts. A watch ends all the time, and is begun again
where it ended. Where that is too long ago (410 Gone), or anything else is wrong, the list is asked for anew. While the
API server is away, what was heard last is taken to be so still; it is asked again with growing pauses.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpx2
from lightkube import ALL_NS, ApiError, AsyncClient
from lightkube.core.resource import GlobalResource, NamespacedResource

from freeze_proxy.apiserver import PATIENCE, ApiServer

MOST = 4096
"""Objects that are kept; a kubelet runs a few hundred pods."""
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0
"""Seconds before the list is asked for again; doubled after each failure, and never the same on all nodes."""
_ONE_WATCH = 300
"""Seconds after which the API server is to end a watch, as it would do some time later by itself."""
_PAGE = 100
_GONE = 410

_log = logging.getLogger(__name__)
T = TypeVar("T", bound="NamespacedResource | GlobalResource")
K = TypeVar("K")


class Client:
    """A client of lightkube's, that does not give up on a watch in which nothing happens."""

    def __init__(self, server: ApiServer) -> None:
        self.address = server.address
        self.lightkube = AsyncClient(
            config=server.config, timeout=httpx2.Timeout(PATIENCE), trust_env=False, transport=server.transport(4)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.lightkube.close()


class Follower(Generic[T, K]):
    """Keeps what ``digest`` makes of each object of a kind, by UID, in ``kept``; ``None`` of one that does not matter.

    ``changed`` is told of a UID after each change.
    """

    def __init__(
        self,
        client: Client,
        kind: type[T],
        digest: Callable[[T], K | None],
        changed: Callable[[str], None],
        fields: dict[str, str] | None = None,
    ) -> None:
        self._client = client
        self._kind = kind
        self._digest = digest
        self._changed = changed
        self._fields: Any = fields
        self._words = f"{kind.__name__.lower()}s"
        self._pause = _FIRST_PAUSE
        self._full = False
        self._following: asyncio.Task[None] | None = None
        self.kept: dict[str, K] = {}
        self.complete = False
        """Whether there has been a whole list yet."""
        self.away = False
        """Whether the API server did not give it when it was last asked."""

    def again(self) -> None:
        """What ``digest`` says may have changed: ask for the whole list once more."""
        if self._following is not None:
            self._following.cancel()

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                self._following = asyncio.create_task(self._follow())
                await asyncio.wait((self._following,))
        finally:
            if self._following is not None:
                self._following.cancel()

    async def _follow(self) -> None:
        try:
            await self._watch(await self._list())
        except Exception as error:  # whatever it is, what is known stays, and it is asked again
            if isinstance(error, ApiError) and error.status.code == _GONE and not self.away:
                return
            await self._wait(error)

    async def _list(self) -> str:
        seen: set[str] = set()
        client: Any = self._client.lightkube
        found = client.list(self._kind, **self._where(), chunk_size=_PAGE, fields=self._fields)
        async for each in found:
            if (uid := self._take(each)) is not None:
                seen.add(uid)
        for uid in self.kept.keys() - seen:
            self._drop(uid)
        if self.away:
            _log.info("the API server is back", extra={"facts": {"of": self._words}})
        self.complete, self.away, self._pause = True, False, _FIRST_PAUSE
        return str(found.resourceVersion)

    async def _watch(self, version: str) -> None:
        client: Any = self._client.lightkube
        events = client.watch(
            self._kind, **self._where(), fields=self._fields, server_timeout=_ONE_WATCH, resource_version=version
        )
        async for what, each in events:
            if what in ("ADDED", "MODIFIED"):
                self._take(each)
            elif what == "DELETED" and each.metadata is not None and each.metadata.uid:
                self._drop(each.metadata.uid)

    def _where(self) -> dict[str, str]:
        return {"namespace": ALL_NS} if issubclass(self._kind, NamespacedResource) else {}

    def _take(self, each: Any) -> str | None:
        uid: str | None = each.metadata.uid if each.metadata is not None else None
        if not uid:
            return None
        kept = self._digest(each)
        if kept is None or (uid not in self.kept and not self._has_room()):
            self._drop(uid)
            return None
        if self.kept.get(uid) != kept:
            self.kept[uid] = kept
            self._changed(uid)
        return uid

    def _has_room(self) -> bool:
        if len(self.kept) < MOST:
            return True
        if not self._full:
            self._full = True
            _log.error("too much to follow", extra={"facts": {"of": self._words, "most": MOST}})
        return False

    def _drop(self, uid: str) -> None:
        if self.kept.pop(uid, None) is not None:
            self._changed(uid)

    async def _wait(self, error: Exception) -> None:
        if not self.away:
            self.away = True
            facts = {"of": self._words, "server": self._client.address, "why": _why(error, self._words)}
            _log.warning("the API server cannot be followed; what is known goes on", extra={"facts": facts})
        pause = self._pause * random.uniform(0.75, 1.25)  # noqa: S311 - so that nodes do not come all at once
        self._pause = min(self._pause * 2, _LAST_PAUSE)
        await asyncio.sleep(pause)


def _why(error: Exception, words: str) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        if status == 403:
            return f"the daemon may not (403); grant its service account the permission to list and watch {words}"
        return f"it answered {status}"
    return str(error) or type(error).__name__
