"""Requests that come on a connection of their own and are over when the server closes it, as those of probes are. Pure.

Queue-proxy's word takes seconds, and of probes it says nothing. But where nothing was in flight, and every packet since
then has come on connections that were seen to be opened meanwhile, then what is in flight is on these alone. When the
server has closed its side of each, or the client has reset it, so is that over: nothing more can be answered there.
Whatever else comes, and whatever stays open for longer, is not for this rule to judge.
"""

MOST = 16
"""Connections that are kept in mind, the youngest; of the others it is not known that they are new."""
MOST_PACKETS = 64
"""Since the first of a visit."""


class Visits:
    """Connections by their names, in the words of ``conversations.KEY``.

    ``under_way``: bytes have come on some of them, and on nothing else. ``over``: by now all of those are closed.
    """

    __slots__ = ("_opened", "_packets", "_visiting", "under_way")

    def __init__(self) -> None:
        self.under_way = False
        self._opened: dict[bytes, None] = {}
        self._visiting: set[bytes] = set()
        self._packets = 0

    @property
    def over(self) -> bool:
        """See above."""
        return self.under_way and not self._visiting

    @property
    def connections(self) -> frozenset[bytes]:
        """Those that are new, and open as far as is known."""
        return frozenset(self._opened)

    def opened(self, key: bytes) -> None:
        """Somebody opens it, and has said nothing yet."""
        self._opened[key] = None
        if len(self._opened) > MOST:
            del self._opened[next(iter(self._opened))]

    def visited(self, key: bytes) -> bool:
        """Bytes have come on it: whether they belong to a visit."""
        if key not in self._opened or self._packets >= MOST_PACKETS:
            return False
        self._packets += 1
        self._visiting.add(key)
        self.under_way = True
        return True

    def closed(self, key: bytes) -> bool:
        """The server has closed it, or the client has reset it: whether it was new."""
        new = key in self._opened
        self._opened.pop(key, None)
        self._visiting.discard(key)
        return new

    def leave(self) -> None:
        """They are over. Of the others that were opened, bytes may still come."""
        self.under_way = False
        self._visiting.clear()
        self._packets = 0

    def forget(self) -> None:
        """What is in flight is for others to judge."""
        self._opened.clear()
        self.leave()
