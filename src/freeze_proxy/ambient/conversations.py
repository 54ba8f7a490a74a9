"""Counting exchanges from the packets of a server's connections, with the observers that the relay has.

Pure: it is given records and tells a ``Tally``. A packet is not yet a stream: some come twice, some in another order,
some that somebody made up never reach the server. So the bytes of each direction are put in order by their sequence
numbers (RFC 9293 §3.4) and then shown to the same observers as in ``connection``.

What cannot be followed (a connection that was open before, a record that was lost, a gap that does not close) is
opaque: it counts as in flight until it closes or, where asked for, until it has been silent for so long.
"""

import struct
from collections.abc import Callable, Collection, Iterable

from freeze_proxy.ambient.program import DATAGRAM, FIN, FROM_SERVER, HEADER_SIZE, RST, SYN, UNCLEAR, WAKES
from freeze_proxy.observe import Http1, Http2, Observer, Tally, pick

_MOVES = SYN | FIN | RST
_STRANGE = DATAGRAM | UNCLEAR
_UNREAD = b"packets that are not read"
MOST_HELD = 64
"""Segments of a direction that may wait for one before them."""
MOST_OPENING = 4096
"""Connections of which only a SYN has been seen; beyond, the oldest is forgotten."""
MOST_WELCOME = 1 << 14
"""Bytes that a server may say before the client does in a protocol that is understood."""
LISTINGS = 3
_SILENT_SWEEPS = 5

FIELDS = struct.Struct("=IIHBB")
FIELDS_AT = 12
KEY = slice(24, 60)
"""Where a record names its connection: remote and local address, remote and local port."""


class _Opaque:
    """In place of an observer, where the bytes mean nothing."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._silent = 0
        self.in_flight = 1
        tally.held()

    def from_client(self, _data: bytes) -> None:
        """A sign of life."""
        self._silent = 0
        if not self.in_flight:
            self.in_flight = 1
            self._tally.held()

    def from_server(self, data: bytes, _size: int) -> None:
        """Likewise."""
        self.from_client(data)

    def server_closed(self) -> None:
        """The other direction may still be open."""

    def closed(self) -> None:
        """It counts no longer."""
        if self.in_flight:
            self.in_flight = 0
            self._tally.ended()

    def sweep(self) -> None:
        """See ``Http1.sweep``."""
        self._silent += 1
        if self._silent >= _SILENT_SWEEPS:
            self.closed()


class _Direction:
    """Where one direction stands: the sequence number that comes next, and what has come too early."""

    __slots__ = ("done", "early", "next")

    def __init__(self) -> None:
        self.next: int | None = None
        self.done = False
        self.early: dict[int, tuple[bytes, int, bool]] = {}


class _Conversation:
    """One connection."""

    __slots__ = ("client", "first", "observer", "server", "unlisted", "welcome")

    def __init__(self) -> None:
        self.client = _Direction()
        self.server = _Direction()
        self.first = b""  # bytes from the client that do not yet tell its protocol
        self.welcome = b""  # and what the server has said before
        self.observer: Observer | _Opaque | None = None
        self.unlisted = 0  # how many listings in a row have lacked it


class Conversations:
    """All connections of a server. ``told`` takes records in the order of the ring."""

    def __init__(self, tally: Tally, touch: Callable[[], None]) -> None:
        """``touch``: what to do for what is no exchange, and yet for the server to see. It is to run for a grace."""
        self._tally = tally
        self._touch = touch
        self._all: dict[bytes, _Conversation] = {}
        self._opening: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def in_flight(self) -> int:
        """What of these connections is in flight."""
        return sum(each.observer.in_flight for each in self._all.values() if each.observer is not None)

    @property
    def opening(self) -> bool:
        """Whether there is one in which nobody has said anything: the server may not know of it yet."""
        return bool(self._opening)

    @property
    def kept(self) -> bool:
        """Whether a connection is open in which nothing is in flight: the server may be about to end it."""
        return any(
            not each.server.done and each.observer is not None and not each.observer.in_flight
            for each in self._all.values()
        )

    def told(self, record: bytes) -> None:
        """A packet."""
        sequence, length, copied, kind, flags = FIELDS.unpack_from(record, FIELDS_AT)
        key = record[KEY]
        conversation = self._all.get(key)
        # Nearly always: bytes, all of them there, in their place, on a connection whose protocol is known.
        if conversation is not None and length == copied and not flags & _MOVES and not kind & _STRANGE:
            observer = conversation.observer
            direction = conversation.server if kind & FROM_SERVER else conversation.client
            if observer is not None and sequence == direction.next and not (direction.early or conversation.welcome):
                direction.next = (sequence + length) & 0xFFFFFFFF
                data = record[HEADER_SIZE : HEADER_SIZE + copied]
                if kind & FROM_SERVER:
                    observer.from_server(data, copied)
                else:
                    observer.from_client(data)
                    if not observer.in_flight:
                        self._touch()
                return
        if kind & _STRANGE:
            if kind & UNCLEAR:
                self._opaque(_UNREAD)
            self._touch()
            return
        if flags & SYN:
            self._opens(key, conversation, sequence, bool(kind & FROM_SERVER))
            sequence += 1
            if not length:
                return
            conversation = self._all.get(key)
        if conversation is None:
            if not length or flags & RST:
                return  # the end of one that is over already, or was nobody's
            conversation = self._opaque(key)
        if length and key in self._opening:
            del self._opening[key]
        data = record[HEADER_SIZE : HEADER_SIZE + copied]
        if kind & FROM_SERVER:
            direction, take = conversation.server, self._from_server
        else:
            direction, take = conversation.client, self._from_client
        if flags & RST:
            # A reset that is not exactly in order is not believed by the kernel either (RFC 9293 §3.10.7.4).
            if kind & FROM_SERVER or direction.next is None or sequence == direction.next:
                self._over(key, conversation)
            return
        if direction.next is None:
            direction.next = sequence
        if sequence == direction.next and not direction.early:
            direction.next = (sequence + length) & 0xFFFFFFFF
            if length:
                take(key, conversation, data, length)
            if flags & FIN:
                self._ended(key, conversation, direction)
        else:
            self._in_order(key, conversation, direction, take, sequence, (data, length, bool(flags & FIN)))
        if kind & WAKES and (conversation.observer is None or not conversation.observer.in_flight):
            self._touch()

    def lost(self) -> None:
        """Records have been lost, of whatever connection."""
        for key in list(self._all):
            conversation = self._opaque(key)
            for direction in (conversation.client, conversation.server):
                direction.next = None
                direction.early.clear()

    def found(self, keys: Iterable[bytes]) -> None:
        """These connections are open; of those that are not known, bytes have been missed."""
        for key in keys:
            if key not in self._all:
                self._opaque(key)

    def listed(self, keys: Collection[bytes]) -> None:
        """What a listing has found open. A connection that ``LISTINGS`` in a row lack has ended unseen.

        One may lack what is there: the kernel walks its tables in pieces, and they change meanwhile.
        """
        for key, conversation in list(self._all.items()):
            conversation.unlisted = 0 if key in keys else conversation.unlisted + 1
            if conversation.unlisted >= LISTINGS and key != _UNREAD:
                self._over(key, conversation)

    def only(self, keys: "set[bytes]") -> None:
        """No others are: what is not among them has ended unseen."""
        for key, conversation in list(self._all.items()):
            if key not in keys and key != _UNREAD:
                self._over(key, conversation)

    def sweep(self) -> None:
        """A quarter of ``idle_stream`` has passed; see ``Http1.sweep``."""
        for conversation in self._all.values():
            if conversation.observer is not None:
                conversation.observer.sweep()

    # Inside.

    def _opens(self, key: bytes, before: _Conversation | None, sequence: int, from_server: bool) -> None:
        if from_server:
            if before is not None and before.server.next is None:
                before.server.next = (sequence + 1) & 0xFFFFFFFF
            return
        following = (sequence + 1) & 0xFFFFFFFF
        if before is None or before.client.next != following:  # else it is the same SYN, once more
            if before is not None:
                self._over(key, before)
            conversation = self._all[key] = _Conversation()
            conversation.client.next = following
            self._opening[key] = None
            if len(self._opening) > MOST_OPENING:
                oldest = next(iter(self._opening))
                self._over(oldest, self._all[oldest])
        self._touch()

    def _opaque(self, key: bytes, first: bytes = b"") -> _Conversation:
        conversation = self._all.get(key)
        if conversation is None:
            conversation = self._all[key] = _Conversation()
        if not isinstance(conversation.observer, _Opaque):
            before, conversation.observer = conversation.observer, _Opaque(self._tally)
            if before is not None:
                before.closed()
            conversation.first = first
        return conversation

    def _over(self, key: bytes, conversation: _Conversation) -> None:
        self._all.pop(key, None)
        self._opening.pop(key, None)
        if conversation.observer is not None:
            conversation.observer.closed()

    def _in_order(
        self,
        key: bytes,
        conversation: _Conversation,
        direction: _Direction,
        take: "Take",
        sequence: int,
        segment: tuple[bytes, int, bool],
    ) -> None:
        """A segment that is not the next: (part of) it may have been seen, or others before it have not."""
        assert direction.next is not None
        direction.early[sequence] = segment
        if len(direction.early) > MOST_HELD:
            self._opaque(key)
            direction.next = None
            direction.early.clear()
            return
        while direction.early:
            for start in direction.early:
                seen = (direction.next - start) & 0xFFFFFFFF
                if seen < 1 << 31:
                    break
            else:
                return  # something before all of them is missing
            data, length, last = direction.early.pop(start)
            if seen < length:
                direction.next = (start + length) & 0xFFFFFFFF
                take(key, conversation, data[seen:], length - seen)
            if last and seen <= length:
                self._ended(key, conversation, direction)
                return

    def _from_client(self, key: bytes, conversation: _Conversation, data: bytes, length: int) -> None:
        observer = conversation.observer
        if observer is None or conversation.welcome:
            conversation.first += data
            picked = pick(conversation.first, self._tally)
            if picked is None:
                return
            data, conversation.first = conversation.first, b""
            length = max(length, len(data))
            welcome, conversation.welcome = conversation.welcome, b""
            if observer is None:
                observer = conversation.observer = picked
            elif isinstance(picked, Http2):  # whose servers may send their SETTINGS at once
                observer.closed()
                observer = conversation.observer = picked
                observer.from_client(data)
                observer.from_server(welcome, len(welcome))
                return
        if len(data) < length and not isinstance(observer, _Opaque):
            observer = self._opaque(key).observer
            assert observer is not None
        observer.from_client(data)

    def _from_server(self, key: bytes, conversation: _Conversation, data: bytes, length: int) -> None:
        observer = conversation.observer
        if observer is None or conversation.welcome:
            # A protocol in which the server speaks first: opaque, unless it turns out to be HTTP/2.
            conversation.welcome = b"" if len(conversation.welcome) > MOST_WELCOME else conversation.welcome + data
            observer = self._opaque(key, first=conversation.first).observer
            assert observer is not None
        if len(data) < length and not isinstance(observer, _Opaque):
            if observer.unread > length:
                observer.skip(length)
                return
            observer = self._opaque(key).observer
            assert observer is not None
        observer.from_server(data, len(data))

    def _ended(self, key: bytes, conversation: _Conversation, direction: _Direction) -> None:
        """A FIN, in its place."""
        assert direction.next is not None
        direction.next = (direction.next + 1) & 0xFFFFFFFF
        direction.done = True
        if conversation.first:
            data, conversation.first = conversation.first, b""
            conversation.observer = Http1(self._tally)
            conversation.observer.from_client(data)
        if conversation.client.done and conversation.server.done:
            self._over(key, conversation)
        elif conversation.server.done and conversation.observer is not None:
            conversation.observer.server_closed()


Take = Callable[[bytes, _Conversation, bytes, int], None]
