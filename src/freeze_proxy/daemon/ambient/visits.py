"""Requests that come on a connection of their own and are over when that closes, as those of probes are. Pure.

Queue-proxy's word takes seconds, and of probes it says nothing. But where nothing was in flight, and every packet since
then has come on connections that were seen to be opened meanwhile, then what is in flight is on these alone. When they
are gone, so is it: a request does not outlive its connection. Whatever else comes, and whatever stays open for longer,
is not for this rule to judge.
"""

from collections.abc import Collection

from freeze_proxy.ambient.conversations import LISTINGS

MOST = 16
"""Connections that are kept in mind, the youngest; of the others it is not known that they are new."""
MOST_PACKETS = 64
"""Since the first of a visit."""


class Visits:
    """Connections by their names, in the words of ``conversations.KEY``.

    ``under_way``: bytes have come on some of them, and on nothing else.
    """

    __slots__ = ("_missing", "_opened", "_packets", "_visiting")

    def __init__(self) -> None:
        self._opened: dict[bytes, None] = {}
        self._visiting: set[bytes] = set()
        self._packets = 0
        self._missing = 0  # how many listings in a row have lacked all of them

    @property
    def under_way(self) -> bool:
        """See above."""
        return bool(self._visiting)

    @property
    def connections(self) -> frozenset[bytes]:
        """Those that are new."""
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
        self._missing = 0
        return True

    def over(self, listed: Collection[bytes]) -> bool:
        """Whether all of them are, now that these are open: some listings in a row lack them.

        One may lack what is there: the kernel walks its tables in pieces, and they change meanwhile.
        """
        self._missing = 0 if self._visiting.intersection(listed) else self._missing + 1
        return self._missing >= LISTINGS

    def leave(self) -> None:
        """They are over. Of the others that were opened, bytes may still come."""
        for key in self._visiting:
            self._opened.pop(key, None)
        self._visiting.clear()
        self._packets = self._missing = 0

    def forget(self) -> None:
        """What is in flight is for others to judge."""
        self._opened.clear()
        self.leave()
