"""Carrying out a gate's orders as those of a client of the daemon's are: by its freezing, with a lease."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from freeze_proxy.control.server import Request, resumed
from freeze_proxy.daemon.freezing import Freezing, Overtaken
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.keeper import Driver


class FreezingDriver(Driver):
    """Freezes ``containers`` of ``pod``, which may be others from one freeze to the next. A lease's holder, too."""

    __slots__ = ("_freezers", "_freezing", "_tasks", "_uid", "closed", "containers", "mode", "pod")

    def __init__(self, freezing: Freezing, uid: str, mode: str) -> None:
        self._freezing = freezing
        self._uid = uid
        self._tasks: set[asyncio.Task[None]] = set()
        self._freezers: list[Freezer] = []  # of the newest freeze, those that are quick
        self.closed = False
        self.pod: Pod | None = None
        self.containers: list[Container] = []
        self.mode = mode

    def freeze(self, ticket: int) -> None:
        """Together or not at all; all of it happens in a task, for nobody waits."""
        self._begin(self._freeze(ticket, self.pod, list(self.containers), Request.next_number()))

    def thaw(self, ticket: int) -> None:
        """At once, where the freezer is a quick one: in this call."""
        work = self._thaw(ticket, list(self.containers), Request.next_number())
        try:
            yielded = work.send(None)
        except StopIteration:
            return
        self._begin(_rest(work, yielded))

    def hurry(self) -> None:
        """What has gone wrong shows in the thaw."""
        for freezer in self._freezers:
            with contextlib.suppress(FreezeError):
                freezer.thaw()

    def close(self) -> None:
        """The lease ends: what is frozen is thawed, whatever became of the orders."""
        self.closed = True
        self._freezing.release(self)

    async def _freeze(self, ticket: int, pod: Pod | None, containers: list[Container], number: int) -> None:
        try:
            if pod is None:
                raise Overtaken
            freezers = [container.freezer(self.mode) for container in containers if self.mode != "dry-run"]
            self._freezers = [freezer for freezer in freezers if freezer.quick]
            if self.mode == "dry-run":
                for container in containers:
                    container.freezer("freeze").alive()
            else:
                await self._freezing.freeze(pod, containers, self.mode, number, self)
        except Overtaken:
            self.keeper.failed(ticket, "Another order has come.")
        except FreezeError as error:
            self.keeper.failed(ticket, str(error))
        else:
            self.keeper.done(ticket)

    async def _thaw(self, ticket: int, containers: list[Container], number: int) -> None:
        try:
            await self._freezing.thaw(self._uid, containers, number)
        except FreezeError as error:
            self.keeper.failed(ticket, str(error))
        else:
            self.keeper.done(ticket)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _rest(work: Coroutine[Any, Any, None], yielded: Any) -> None:
    await resumed(work, yielded)
