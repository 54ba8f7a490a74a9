"""A server's sockets, looked at beside the loop: to list them takes milliseconds, in which a packet may come."""

import os
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from freeze_proxy.ambient.sockets import Seen, Sockets
from freeze_proxy.loop import READ, Loop


class SocketsAside(Sockets):
    """Like ``Sockets``, whose ``ask`` looks in a thread of its own, and tells on ``loop``. Raises ``FreezeError``."""

    def __init__(self, loop: Loop, ports: tuple[int, ...], pid: int | None = None) -> None:
        super().__init__(ports, pid)
        self._loop = loop
        self._thread_sockets = Sockets(ports, pid)
        self._asked: SimpleQueue[Callable[[Seen], None] | None] = SimpleQueue()
        self._answers: deque[tuple[Callable[[Seen], None], Seen]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._wake, READ, self._on_answers)
        self._thread = Thread(target=self._work, name="sockets", daemon=True)
        self._thread.start()

    def ask(self, told: Callable[[Seen], None]) -> None:
        """See ``Sockets``; never now."""
        self._asked.put(told)

    def close(self) -> None:
        """Nobody is told any more."""
        self._asked.put(None)
        self._thread.join()
        self._loop.forget(self._wake)
        os.close(self._wake)
        self._thread_sockets.close()
        super().close()

    def _on_answers(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        while self._answers:
            told, seen = self._answers.popleft()
            told(seen)

    def _work(self) -> None:
        while (told := self._asked.get()) is not None:
            self._answers.append((told, self._thread_sockets.seen()))
            os.eventfd_write(self._wake, 1)
