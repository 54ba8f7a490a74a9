"""Carrying out a gate's orders as those of a client of the daemon's are: by its freezing, with a lease."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from freeze_proxy.control.server import Request, resumed
from freeze_proxy.daemon.freezing import Freezing, Overtaken
from freeze_proxy.daemon.pods import Container, Pod
from freeze_proxy.freezers import FreezeError, Freezer
from freeze_proxy.keeper import Driver


class FreezingDriver(Driver):
    """Freezes ``containers`` of ``pod``, which may be others from one freeze to the next. A lease's holder, too."""

    __slots__ = ("_freezing", "_newest", "_tasks", "_uid", "closed", "containers", "mode", "pod")

    def __init__(self, freezing: Freezing, uid: str, mode: str) -> None:
        self._freezing = freezing
        self._uid = uid
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest = 0
        self.closed = False
        self.pod: Pod | None = None
        self.containers: list[Container] = []
        self.mode = mode

    def freeze(self, ticket: int) -> None:
        """Together or not at all; all of it happens in a task, for nobody waits."""
        self._newest = ticket
        self._begin(self._freeze(ticket, self.pod, list(self.containers), Request.next_number()))

    def thaw(self, ticket: int) -> None:
        """At once, where the freezer is a quick one: in this call."""
        self._newest = ticket
        work = self._thaw(ticket, list(self.containers), Request.next_number())
        try:
            yielded = work.send(None)
        except StopIteration:
            return
        self._begin(_rest(work, yielded))

    def close(self) -> None:
        """The lease ends: what is frozen is thawed, whatever became of the orders."""
        self.closed = True
        self._freezing.release(self)

    async def _freeze(self, ticket: int, pod: Pod | None, containers: list[Container], number: int) -> None:
        try:
            if pod is None:
                raise Overtaken
            if self.mode == "dry-run":
                for container in containers:
                    container.freezer("freeze").alive()
            else:
                if ticket == self._newest:
                    self.keeper.haste = _together([container.freezer(self.mode) for container in containers])
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


def _together(freezers: list[Freezer]) -> Callable[[], object] | None:
    """What hastens all of them; ``None`` where one cannot be: while one stands still, nothing is to wait."""
    hastes = [freezer.haste for freezer in freezers if freezer.haste is not None]
    if not freezers or len(hastes) < len(freezers):
        return None
    return hastes[0] if len(hastes) == 1 else lambda: [haste() for haste in hastes]


async def _rest(work: Coroutine[Any, Any, None], yielded: Any) -> None:
    await resumed(work, yielded)
