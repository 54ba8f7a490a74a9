"""Counting the streams of an HTTP/2 connection with prior knowledge (RFC 9113).

Only the 9 bytes before each frame are read. An exchange is a stream: it begins with the client's HEADERS (for a pushed
one, the server's) and ends when both sides have ended it or one resets it. A frame takes effect when its last byte has
passed, so that no stream ends before its data has.

Besides, the connection itself holds the server awake while either side owes the other an acknowledgement (of SETTINGS
or PING): the handshake completes, and no keep-alive runs out against a server that stands still.
"""

from freeze_proxy.observe.tally import Tally

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM_LIMIT = 10_000
"""Streams at once, beyond which the connection turns opaque; servers commonly allow 100 to 250."""
DECLINED_LIMIT = 1000
"""Pushed streams that are remembered as reset by the client before they began; beyond, the oldest is forgotten."""
SILENT_SWEEPS = 5

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = 0x0, 0x1, 0x3, 0x4, 0x5
_PING, _GOAWAY, _CONTINUATION = 0x6, 0x7, 0x9
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4

# What is known of a stream, as bits.
_CLIENT_ENDED, _SERVER_ENDED, _ANSWERED, _ASLEEP = 1, 2, 4, 8
_BOTH_ENDED = _CLIENT_ENDED | _SERVER_ENDED

_PING_HEADER = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00"
_PONG_HEADER = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00"
_PING_SIZE = 17

_STATUS_503 = b"\x08\x03503"  # :status is 8 in the static table (RFC 7541 Appendix A)
_RETRY_AFTER_1 = b"\x0f\x26\x011"  # retry-after is 53


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class _Direction:
    """Where one direction stands: the frame whose payload is passing, or the part of a frame header held."""

    __slots__ = ("bit", "flags", "held", "kind", "left", "midst", "owes", "stream", "trailing")

    def __init__(self, bit: int, owes: int) -> None:
        self.bit = bit
        self.owes = owes  # acknowledgements that this side has yet to send
        self.held = b""
        self.kind = -1
        self.flags = 0
        self.stream = 0
        self.left = 0  # payload bytes to come; -1 between frames
        self.midst = False  # a header block has begun, and only its CONTINUATION may follow
        self.trailing = 0  # the stream that ends with the last of its CONTINUATION frames


class Http2:
    """Observes one HTTP/2 connection; ``in_flight`` counts its open streams, and one more for the connection's own."""

    __slots__ = (
        "_client",
        "_declined",
        "_greeted",
        "_held",
        "_last",
        "_opaque",
        "_over",
        "_server",
        "_silent",
        "_streams",
        "_tally",
        "in_flight",
    )

    last = False  # its end is announced by GOAWAY, which leaves its streams their time
    reusable = False  # header compression ties the two connections together

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._client = _Direction(_CLIENT_ENDED, 0)
        self._client.left = len(PREFACE)  # skipped like a frame of no kind
        self._server = _Direction(_SERVER_ENDED, 1)  # its first SETTINGS
        self._server.left = -1
        self._streams: dict[int, int] = {}
        self._silent: dict[int, int] = {}  # sweeps without a byte; empty unless sweep() is called
        self._declined: dict[int, None] = {}  # pushed streams that the client has reset before they began
        self._last = 0
        self._opaque = False
        self._over = False
        self._greeted = False
        self._held = True
        self.in_flight = 1
        tally.held()

    @property
    def opaque(self) -> bool:
        """Whether the bytes are no longer followed, though they pass."""
        return self._opaque and not self._over

    @property
    def streams(self) -> int:
        """Open streams."""
        return len(self._streams)

    @property
    def whole(self) -> bool:
        """Whether what the server has sent so far leaves no stream unfinished."""
        return not self._streams and self._between(self._server)

    unread = 0  # every frame has a header, and none is long

    def skip(self, size: int) -> None:
        """Never called, as nothing may pass unread."""
        raise NotImplementedError

    def refusal(self) -> bytes:
        """A 503 for every stream that waits, and a GOAWAY; nothing where the server has left a frame unfinished.

        The fields are literals without indexing (RFC 7541 §6.2.2), so that they say nothing to the client's decoder
        about the server's table.
        """
        if self._opaque or not self._between(self._server):
            return b""
        frames = [] if self._greeted else [_frame(_SETTINGS, 0, 0, b"")]
        for stream, known in self._streams.items():
            if not known & _ANSWERED:
                frames.append(_frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, _STATUS_503 + _RETRY_AFTER_1))
        frames.append(_frame(_GOAWAY, 0, 0, self._last.to_bytes(4, "big") + bytes(4)))
        return b"".join(frames)

    # Bytes.

    def from_client(self, data: bytes) -> None:
        """Bytes from the client, before they are sent on."""
        self._frames(self._client, self._server, data, len(data))

    def from_server(self, data: bytes | bytearray, size: int) -> None:
        """The first ``size`` bytes of ``data`` are from the server, before they are sent on."""
        self._frames(self._server, self._client, data, size)

    def pongs(self, data: bytes) -> bytes | None:
        """The answers, if these bytes from the client are PING frames and nothing else, and may be answered here.

        For a server that stands still: the frames are then dropped, as if they had never come (RFC 9113 §6.7).
        """
        if self._opaque or not (self._greeted and self._between(self._client) and self._between(self._server)):
            return None
        if len(data) % _PING_SIZE or data.count(_PING_HEADER) < len(data) // _PING_SIZE:
            return None
        answers = []
        for at in range(0, len(data), _PING_SIZE):
            if data[at : at + 9] != _PING_HEADER:
                return None
            answers.append(_PONG_HEADER + data[at + 9 : at + _PING_SIZE])
        return b"".join(answers)

    def server_closed(self) -> None:
        """The server will send no more, so no stream can end well any more."""
        if not self._opaque:
            self.closed()

    def closed(self) -> None:
        """The connection is gone."""
        awake = self.in_flight
        self.in_flight = 0
        self._opaque = self._over = True
        self._held = False
        self._forget()
        for _ in range(awake):
            self._tally.ended()

    # Idle streams.

    def sweep(self) -> None:
        """A quarter of ``idle_stream`` has passed. A silent stream stops counting until its next byte.

        Only a stream whose response has begun can be idle: before that, the server is at work on it.
        """
        for stream, known in self._streams.items():
            if known & _ANSWERED and not known & _ASLEEP:
                silent = self._silent.get(stream, 0) + 1
                self._silent[stream] = silent
                if silent >= SILENT_SWEEPS:
                    self._streams[stream] = known | _ASLEEP
                    self._end()

    # The frames.

    @staticmethod
    def _between(side: _Direction) -> bool:
        """Whether another frame may be slipped in at this place."""
        return side.left < 0 and not side.held and not side.midst

    def _frames(self, here: _Direction, there: _Direction, data: bytes | bytearray, size: int) -> None:
        at = 0
        while at < size and not self._opaque:
            if here.left < 0:
                missing = 9 - len(here.held)
                header = here.held + bytes(data[at : min(at + missing, size)])
                at += missing
                if len(header) < 9:
                    here.held = header
                    return
                here.held = b""
                here.left = header[0] << 16 | header[1] << 8 | header[2]
                here.kind = header[3]
                here.flags = header[4]
                here.stream = int.from_bytes(header[5:], "big") & 0x7FFFFFFF
                if not self._greeted and here is self._server and (here.kind != _SETTINGS or here.flags & _ACK):
                    self._turn_opaque()  # it does not speak HTTP/2
                    return
                if here.stream:
                    self._moves(here)
                if here.left:
                    continue
            else:
                step = min(here.left, size - at)
                if here.kind < 0 and not PREFACE.startswith(data[at : at + step], len(PREFACE) - here.left):
                    self._turn_opaque()
                    return
                here.left -= step
                at += step
                if here.stream in self._silent:
                    self._moves(here)
                if here.left:
                    return
            here.left = -1
            self._passed(here, there)
            self._settle()

    def _moves(self, here: _Direction) -> None:
        """The header of a frame on a stream has come, or more of its payload."""
        stream = here.stream
        known = self._streams.get(stream)
        if known is not None:
            if stream in self._silent:
                del self._silent[stream]
                if known & _ASLEEP:
                    known &= ~_ASLEEP
                    self.in_flight += 1
                    self._tally.held()
            if here.kind == _HEADERS and here is self._server:
                known |= _ANSWERED
            self._streams[stream] = known
        elif here.kind == _HEADERS:
            if here is self._client:
                if stream <= self._last:
                    return  # the end of one that the server has reset meanwhile
                if not stream & 1:
                    self._turn_opaque()
                    return
                self._last = stream
                self._begin(stream, 0)
            elif not stream & 1:
                if stream in self._declined:
                    del self._declined[stream]
                else:
                    self._begin(stream, _CLIENT_ENDED | _ANSWERED)  # pushed

    def _passed(self, here: _Direction, there: _Direction) -> None:
        """A whole frame has passed."""
        kind, flags, stream = here.kind, here.flags, here.stream
        here.kind = -1
        if kind == _DATA:
            if flags & _END_STREAM:
                self._half_end(here, stream)
        elif kind == _HEADERS:
            here.midst = not flags & _END_HEADERS
            if flags & _END_STREAM:
                if flags & _END_HEADERS:
                    self._half_end(here, stream)
                else:
                    here.trailing = stream
        elif kind == _CONTINUATION:
            here.midst = not flags & _END_HEADERS
            if not here.midst and here.trailing == stream:
                here.trailing = 0
                self._half_end(here, stream)
        elif kind == _RST_STREAM:
            known = self._streams.pop(stream, None)
            if known is not None:
                self._ended(stream, known)
            elif here is self._client and stream and not stream & 1:
                # A push that it does not want. The server may have begun it meanwhile, and will then not end it.
                self._declined[stream] = None
                if len(self._declined) > DECLINED_LIMIT:
                    del self._declined[next(iter(self._declined))]
        elif kind == _PUSH_PROMISE:
            here.midst = not flags & _END_HEADERS
        elif kind in (_SETTINGS, _PING):
            if flags & _ACK:
                here.owes = max(0, here.owes - 1)
            else:
                there.owes += 1
                if kind == _SETTINGS and here is self._server and not self._greeted:
                    self._greeted = True
                    here.owes -= 1

    def _half_end(self, here: _Direction, stream: int) -> None:
        known = self._streams.get(stream)
        if known is not None:
            known |= here.bit
            if known & _BOTH_ENDED == _BOTH_ENDED:
                del self._streams[stream]
                self._ended(stream, known)
            else:
                self._streams[stream] = known

    def _begin(self, stream: int, known: int) -> None:
        self._streams[stream] = known
        self.in_flight += 1
        self._tally.began()
        if len(self._streams) > STREAM_LIMIT:
            self._turn_opaque()

    def _ended(self, stream: int, known: int) -> None:
        self._silent.pop(stream, None)
        if not known & _ASLEEP:
            self._end()

    def _end(self) -> None:
        self.in_flight -= 1
        self._tally.ended()

    def _settle(self) -> None:
        """Hold the server awake while an acknowledgement is owed."""
        owed = self._client.owes > 0 or self._server.owes > 0
        if owed != self._held and not self._opaque:
            self._held = owed
            if owed:
                self.in_flight += 1
                self._tally.held()
            else:
                self._end()

    def _turn_opaque(self) -> None:
        self._opaque = True
        self._forget()
        if not self.in_flight:
            self.in_flight = 1
            self._tally.held()

    def _forget(self) -> None:
        self._streams.clear()
        self._silent.clear()
        self._declined.clear()
        self._client.held = self._server.held = b""
