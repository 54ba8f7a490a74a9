"""One thread's event loop: file descriptors by level-triggered epoll, timers by a heap, one clock.

A handler is called with the epoll events of its descriptor. A descriptor that is forgotten while events are being
handed out gets none of them any more, and its socket is closed only after the round, so that its number cannot turn
up as a new connection's within it.
"""

import select
import time
from _heapq import heappop, heappush

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
EDGE = select.EPOLLET
"""Of a descriptor that says so itself whenever there is something new, and may be left unread until then."""
_MOST_EVENTS = 256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Closable(Protocol):
        """What ``close_after`` takes."""

        def close(self) -> None:
            """Closes it."""


def _nobody(_events: int) -> None:
    """Handles what a round still holds for a descriptor that has been forgotten in it."""


class Timer:
    """A call to come. ``cancel`` it, or let it happen."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: "Callable[[], None]") -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Makes it not happen."""
        self.call = None

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Loop:
    """``now`` is the monotonic time in seconds at which the current round of events began."""

    __slots__ = ("_closing", "_epoll", "_handlers", "_running", "_soon", "_timers", "now")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: list[Callable[[int], None]] = []  # by file descriptor
        self._timers: list[Timer] = []
        self._soon: list[Callable[[], None]] = []
        self._closing: list[Closable] = []
        self._running = False
        self.now = time.monotonic()

    def watch(self, fd: int, events: int, handler: "Callable[[int], None]") -> None:
        """Call ``handler`` whenever one of the events (``READ``, ``WRITE``) or a hang-up is there."""
        handlers = self._handlers
        if fd >= len(handlers):
            handlers += [_nobody] * (fd + 1 - len(handlers))
        handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch a watched descriptor for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch it no more; no harm where it is not watched."""
        if fd < len(self._handlers) and self._handlers[fd] is not _nobody:
            self._handlers[fd] = _nobody
            self._epoll.unregister(fd)

    def close_after(self, closable: "Closable") -> None:
        """Close it when this round of events is over."""
        self._closing.append(closable)

    def at(self, when: float, call: "Callable[[], None]") -> Timer:
        """Call at a time of this loop's clock, or as soon after it as the loop comes round."""
        timer = Timer(when, call)
        heappush(self._timers, timer)
        return timer

    def soon(self, call: "Callable[[], None]") -> None:
        """Call at the end of this round, in order: for what nobody should have to wait for."""
        self._soon.append(call)

    def run(self) -> None:
        """Hand out events and run timers until ``stop``."""
        poll, handlers, timers, monotonic = self._epoll.poll, self._handlers, self._timers, time.monotonic
        self._running = True
        while self._running:
            timeout = -1.0
            if self._soon:
                timeout = 0.0
            elif timers:
                timeout = timers[0].when - monotonic()
                if timeout < 0:
                    timeout = 0.0
            events = poll(timeout, _MOST_EVENTS)
            self.now = monotonic()
            for fd, event in events:
                handlers[fd](event)
            while timers and timers[0].when <= self.now:
                call = heappop(timers).call
                if call is not None:
                    call()
            while self._soon:
                self._soon.pop(0)()
            while self._closing:
                self._closing.pop().close()

    def stop(self) -> None:
        """Makes ``run`` return after this round."""
        self._running = False

    def close(self) -> None:
        """Gives back the epoll descriptor; to be called once ``run`` has returned."""
        while self._closing:
            self._closing.pop().close()
        self._epoll.close()
