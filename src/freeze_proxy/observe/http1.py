"""Counting the exchanges of an HTTP/1.x connection.

An exchange begins with the first byte of its request and ends when its response *and* its request have passed (a
response may come before the request is complete) or the server has closed. Where a message ends is decided by the
rules of RFC 9112 §6.3. Bodies are skipped, not read; only heads and the lines of the chunked coding are looked at.

What keeps this quick: a request without a body that comes in one read is recognised with a handful of searches, or
with one comparison where it is the same as the last; likewise a response whose head is the last one's. All else is left
to a general machine, which gives the same counts for every way of cutting the same bytes into reads.
"""

from freeze_proxy.observe.tally import Tally

HEAD_LIMIT = 1 << 20
"""Bytes of a head, or of a trailer section, beyond which the connection turns opaque."""
CHUNK_LINE_LIMIT = 4096
PIPELINE_LIMIT = 1000
"""Requests that may wait for their responses on one connection; beyond, it turns opaque."""
SILENT_SWEEPS = 5
"""Sweeps without a byte after which a stream counts as idle; one sweep every quarter of ``idle_stream``."""

REFUSAL = b"The server is paused and could not be woken in time. Please try again.\n"
REFUSAL_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL)
)

# How a body ends: a length of zero or more, or one of these.
CHUNKED = -1
UNTIL_CLOSE = -2
AMBIGUOUS = -3

# What a direction is in the middle of.
_START, _HEAD, _LENGTH, _CHUNK_LINE, _CHUNK, _CHUNK_END, _TRAILERS, _CLOSE, _OPAQUE, _OVER = range(10)

# What must be remembered of a request to understand its response.
_PLAIN, _HEAD_REQUEST, _CONNECT = range(3)

# How a connection is observed: nothing is under way; one plain request, in one read, waits for its response; or
# anything else, by the general machine.
_IDLE, _ASKED, _GENERAL = range(3)
REMEMBERED = 2048
"""Bytes of a head that are remembered to know it again."""

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEX = b"0123456789abcdefABCDEF"
_H, _C, _SPACE = b"HC "
_BODILESS = (b"204", b"304")


class Unclear(Exception):
    """Bytes that two readers may take for different things; no observer lets it out: the connection turns opaque."""


def _fields(head: bytes) -> tuple[list[bytes], list[bytes]] | None:
    """The values of Content-Length and of Transfer-Encoding in a head in lower case; ``None``: readers may disagree.

    A folded line, white space before the colon, a line end that is not CRLF, a NUL: RFC 9112 §5 has servers refuse
    these or read them differently.
    """
    lengths, codings = [], []
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.translate(None, _TOKEN) or b"\n" in line or b"\r" in line or b"\0" in line:
            return None
        if name == b"content-length":
            lengths += [part.strip(b" \t") for part in value.split(b",")]
        elif name == b"transfer-encoding":
            codings += [part.strip(b" \t") for part in value.split(b",")]
    return lengths, codings


def _one_length(lengths: list[bytes]) -> int:
    first = lengths[0]
    if not first.isdigit() or len(first) > 18 or any(other != first for other in lengths):
        return AMBIGUOUS
    return int(first)


def request_framing(head: bytes) -> int:
    """How the body of a request ends, from its head in lower case without the empty line (RFC 9112 §6.3)."""
    if head.find(b"content-length") < 0 and head.find(b"transfer-encoding") < 0:
        return 0
    fields = _fields(head)
    if fields is None:
        return AMBIGUOUS
    lengths, codings = fields
    if codings:
        line_end = head.find(b"\r\n")
        old = not head.endswith(b" http/1.1", 0, line_end)
        return AMBIGUOUS if old or lengths or codings != [b"chunked"] else CHUNKED
    return _one_length(lengths) if lengths else 0


def response_framing(head: bytes) -> int:
    """How the body of a response ends, from its head in lower case, were it a response that may have one."""
    at = head.find(b"\r\ncontent-length:")
    coded = head.find(b"transfer-encoding")
    if at > 0 and coded < 0 and head.find(b"content-length") == at + 2 and head.find(b"content-length", at + 17) < 0:
        end = head.find(b"\r\n", at + 17)
        value = (head[at + 17 :] if end < 0 else head[at + 17 : end]).strip(b" \t")
        if value.isdigit() and len(value) <= 18 and head[end + 2 : end + 3] not in (b" ", b"\t"):
            return int(value)
    if at < 0 and coded < 0 and head.find(b"content-length") < 0:
        return UNTIL_CLOSE
    fields = _fields(head)
    if fields is None:
        return AMBIGUOUS
    lengths, codings = fields
    if codings:
        if lengths or not head.startswith(b"http/1.1"):
            return AMBIGUOUS
        if codings[-1] == b"chunked":
            return AMBIGUOUS if codings.count(b"chunked") > 1 else CHUNKED
        return UNTIL_CLOSE if b"chunked" not in codings else AMBIGUOUS
    return _one_length(lengths) if lengths else UNTIL_CLOSE


def says_last(head: bytes, old: bool) -> bool:
    """Whether a head in lower case, of HTTP/1.0 if ``old``, says that the connection ends after this exchange.

    RFC 9112 §9.3.
    """
    if not old and head.find(b"close") < 0:
        return False
    kept = False
    for line in head.split(b"\r\n")[1:]:
        if line.startswith(b"connection:"):
            if line.find(b"close") >= 0:
                return True
            kept = kept or line.find(b"keep-alive") >= 0
    return old and not kept


def request_says_last(head: bytes) -> bool:
    """Likewise, of a request."""
    return says_last(head, head.find(b" http/1.0") >= 0 and head.partition(b"\r\n")[0].endswith(b" http/1.0"))


class _Direction:
    """Where one direction stands: in ``state``, with ``left`` bytes of a body to come, part of a line ``held``."""

    __slots__ = ("held", "left", "state")

    def __init__(self) -> None:
        self.state = _START
        self.left = 0
        self.held: bytearray | None = None

    def line(
        self, data: bytes | bytearray, at: int, size: int, end: bytes, limit: int
    ) -> tuple[bytes | bytearray | None, int]:
        """What stands from ``at`` up to ``end`` (``None`` while that has not come), and where to go on.

        Raises ``Unclear`` beyond ``limit`` bytes.
        """
        held = self.held
        if held is None:
            found = data.find(end, at, size)
            if found >= 0:
                if found - at > limit:
                    raise Unclear
                return data[at:found], found + len(end)
            self.held = held = bytearray(data[at:size])
        else:
            before = len(held)
            held += data[at:size]
            found = held.find(end, max(0, before - len(end) + 1))
            if found >= 0:
                if found > limit:
                    raise Unclear
                self.held = None
                return held[:found], at + found + len(end) - before
        if len(held) - len(end) + 1 > limit:
            raise Unclear
        return None, size

    def expect(self, framing: int) -> None:
        """A head has passed, and the body is framed like this."""
        if framing >= 0:
            self.left = framing
            self.state = _LENGTH if framing else _START
        elif framing == CHUNKED:
            self.state = _CHUNK_LINE
        elif framing == UNTIL_CLOSE:
            self.state = _CLOSE
        else:
            raise Unclear

    def body(self, data: bytes | bytearray, at: int, size: int) -> int:
        """Skip body bytes from ``at``; returns where to go on. Where the message ends, the state becomes ``_START``.

        Raises ``Unclear`` where the chunked coding (RFC 9112 §7.1) is broken.
        """
        while at < size:
            state = self.state
            if state in (_LENGTH, _CHUNK):
                step = min(self.left, size - at)
                self.left -= step
                at += step
                if not self.left:
                    if state == _LENGTH:
                        self.state = _START
                        return at
                    self.state = _CHUNK_END
            elif state == _CHUNK_LINE:
                line, at = self.line(data, at, size, b"\r\n", CHUNK_LINE_LIMIT)
                if line is not None:
                    self._chunk(line)
            elif state == _CHUNK_END:
                line, at = self.line(data, at, size, b"\r\n", 0)
                if line is not None:
                    self.state = _CHUNK_LINE
            elif state == _TRAILERS:
                line, at = self.line(data, at, size, b"\r\n", HEAD_LIMIT)
                if line is not None:
                    self.left += len(line)
                    if self.left > HEAD_LIMIT or line.find(b"\n") >= 0:
                        raise Unclear
                    if not line:
                        self.state = _START
                        return at
            else:
                return size
        return at

    def _chunk(self, line: bytes | bytearray) -> None:
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not 0 < len(digits) < 16 or digits.strip(_HEX) or line.find(b"\n") >= 0 or line.find(b"\r") >= 0:
            raise Unclear
        length = int(digits, 16)
        if length:
            self.left = length
            self.state = _CHUNK
        else:
            self.left = 0
            self.state = _TRAILERS


def _head(text: bytes | bytearray) -> bytes:
    """The head without its last line end, from all that stands before its last LF CR LF."""
    if text[-1:] != b"\r" or text.find(b"\n\n") >= 0:
        raise Unclear
    return bytes(text[:-1])


class Http1:
    """Observes one HTTP/1.x connection; ``in_flight`` is the number of exchanges that it has told of and not ended."""

    __slots__ = (
        "_answer",
        "_answer_size",
        "_asked",
        "_asleep",
        "_began",
        "_early",
        "_ended",
        "_pace",
        "_request",
        "_response",
        "_silent",
        "_tally",
        "_waiting",
        "in_flight",
        "last",
    )

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._began = tally.began
        self._ended = tally.ended
        self._pace = _IDLE
        self._asked = b""  # the last request without a body: most clients ask for the same again
        self._answer = b""  # the head of the last response to such a one
        self._answer_size = 0  # and the response's whole size
        self._request = _Direction()
        self._response = _Direction()
        self._waiting: list[int] = []  # for each exchange that waits for its response: what to know of the request
        self._early = False  # the newest request has had its response and is not complete itself
        self._silent = 0
        self._asleep = 0
        self.in_flight = 0
        self.last = False  # either side has said that the connection ends after the exchange it was speaking of

    @property
    def reusable(self) -> bool:
        """Whether nothing ties the client's connection to the server's: the next request may take a new one."""
        return not self.in_flight and self._request.state == _START and self._response.state == _START

    @property
    def opaque(self) -> bool:
        """Whether the bytes are no longer followed: upgraded, tunnelled or not understood."""
        return self._request.state == _OPAQUE

    @property
    def whole(self) -> bool:
        """Whether what the server has sent so far ends with a whole response."""
        return self._response.state in (_START, _OVER)

    @property
    def unread(self) -> int:
        """Bytes of a response's body that are still to come and mean nothing here."""
        return self._response.left if self._response.state == _LENGTH else 0

    def skip(self, size: int) -> None:
        """So many of them, though not the last, have passed without being shown."""
        self._response.left -= size

    def refusal(self) -> bytes:
        """A 503 in place of the response to the request that waits; nothing where a response has already begun."""
        if self._response.state != _START or not self._waiting:
            return b""
        return REFUSAL_HEAD if self._waiting[0] == _HEAD_REQUEST else REFUSAL_HEAD + REFUSAL

    # Bytes.

    def from_client(self, data: bytes) -> None:
        """Bytes from the client, before they are sent on."""
        if self._pace == _IDLE and (data == self._asked or self._is_plain(data)):
            self._pace = _ASKED
            self._waiting.append(_PLAIN)
            self.in_flight = 1
            self._began()
            return
        self._pace = _GENERAL
        self._wake()
        try:
            self._requests(data)
        except Unclear:
            self._turn_opaque()

    def from_server(self, data: bytes | bytearray, size: int) -> None:
        """The first ``size`` bytes of ``data`` are from the server, before they are sent on."""
        if self._pace == _ASKED and (
            (size == self._answer_size and data.startswith(self._answer)) or self._is_ordinary(data, size)
        ):
            self._pace = _IDLE
            self._waiting.clear()
            self.in_flight = 0
            self._ended()
            return
        response = self._response
        if response.state == _LENGTH and size < response.left:
            response.left -= size
            return
        self._wake()
        try:
            self._responses(data, size)
        except Unclear:
            self._turn_opaque()
        self._pace = _IDLE if self.reusable else _GENERAL

    def _is_plain(self, data: bytes) -> bool:
        """Whether this is exactly one request, and one without a body; if so, it is remembered."""
        if (
            data.find(b"\n\r\n") != len(data) - 3
            or not b"A"[0] <= data[0] <= b"Z"[0]
            or data[0] == _H
            or data[0] == _C
            or data[-4:-3] != b"\r"
            or data.find(b"\n\n") >= 0
            or len(data) > HEAD_LIMIT
        ):
            return False
        head = data.lower()
        if head.find(b"content-length") >= 0 or head.find(b"transfer-encoding") >= 0:
            return False
        self.last = self.last or request_says_last(head)
        if len(data) <= REMEMBERED and not self.last:
            self._asked = data
        return True

    def _is_ordinary(self, data: bytes | bytearray, size: int) -> bool:
        """Whether this is exactly one response, with a body of known length; if so, its head is remembered."""
        if self._response.state != _START:
            return False
        end = data.find(b"\n\r\n", 0, size) + 3
        head = bytes(data[: max(0, end - 4)]).lower()
        status = head[9:12]
        if (
            not data.startswith(b"HTTP/1.1 ")
            or head[12:13] != b" "
            or not b"200" <= status <= b"599"
            or not status.isdigit()
            or status in _BODILESS
            or head.find(b"close") >= 0
        ):
            return False
        at = head.find(b"\r\ncontent-length: ")
        stop = head.find(b"\r\n", at + 18)
        length = head[at + 18 : stop] if stop > 0 else head[at + 18 :]
        if (
            at < 0
            or not length.isdigit()
            or len(length) > 18
            or end + int(length) != size
            or head.find(b"content-length") != at + 2
            or head.find(b"content-length", at + 18) >= 0
            or head.find(b"transfer-encoding") >= 0
            or (stop > 0 and head[stop + 2 : stop + 3] in b" \t")
            or data[end - 4] != 13
            or head.find(b"\n\n") >= 0
        ):
            return False
        if end <= REMEMBERED:
            self._answer, self._answer_size = bytes(data[:end]), size
        return True

    def server_closed(self) -> None:
        """The server will send no more. What it has not answered by now, it never will; a tunnel may still be open."""
        if self._request.state != _OPAQUE:
            self.closed()

    def closed(self) -> None:
        """The connection is gone."""
        awake = self.in_flight
        self._pace = _GENERAL
        self.in_flight = self._asleep = 0
        self._request.state = self._response.state = _OVER
        self._request.held = self._response.held = None
        self._waiting.clear()
        for _ in range(awake):
            self._ended()

    # Idle streams.

    def sweep(self) -> None:
        """A quarter of ``idle_stream`` has passed. A silent stream stops counting until its next byte.

        A stream is an opaque connection, or a response that has begun and did not announce its length.
        """
        if self._response.state > _LENGTH and self.in_flight:
            self._silent += 1
            if self._silent >= SILENT_SWEEPS:
                self._asleep, self.in_flight = self.in_flight, 0
                for _ in range(self._asleep):
                    self._ended()

    def _wake(self) -> None:
        self._silent = 0
        while self._asleep:
            self._asleep -= 1
            self.in_flight += 1
            self._tally.held()

    # The general machine.

    def _requests(self, data: bytes) -> None:
        request = self._request
        at, size = 0, len(data)
        while at < size and request.state < _OPAQUE:
            if request.state == _START:
                self._begin(data[at])
            if request.state == _HEAD:
                text, at = request.line(data, at, size, b"\n\r\n", HEAD_LIMIT)
                if text is None:
                    return
                self._request_head(_head(text).lstrip(b"\r\n"))
            else:
                at = request.body(data, at, size)
            if request.state == _START and self._early:
                self._early = False
                self._end()

    def _begin(self, first: int) -> None:
        self._request.state = _HEAD
        self._waiting.append(_PLAIN)
        self.in_flight += 1
        self._began()
        if len(self._waiting) > PIPELINE_LIMIT or first not in _TOKEN + b"\r\n":
            raise Unclear

    def _request_head(self, head: bytes) -> None:
        if not head:
            return  # empty lines before a request (RFC 9112 §2.2)
        if head[0] not in _TOKEN:
            raise Unclear
        if not self._early:
            if head.startswith(b"HEAD "):
                self._waiting[-1] = _HEAD_REQUEST
            elif head.startswith(b"CONNECT "):
                self._waiting[-1] = _CONNECT
        head = head.lower()
        self.last = self.last or request_says_last(head)
        self._request.expect(request_framing(head))

    def _responses(self, data: bytes | bytearray, size: int) -> None:
        response = self._response
        at = 0
        while at < size and response.state < _OPAQUE:
            if response.state == _START:
                if not self._waiting:
                    raise Unclear
                response.state = _HEAD
            if response.state == _HEAD:
                text, at = response.line(data, at, size, b"\n\r\n", HEAD_LIMIT)
                if text is None:
                    return
                if self._response_head(_head(text)):
                    continue
            else:
                at = response.body(data, at, size)
            if response.state == _START:
                self._waiting.pop(0)
                if not self._waiting and self._request.state != _START:
                    self._early = True
                else:
                    self._end()

    def _response_head(self, head: bytes) -> bool:
        """Takes in the head; returns whether it was an interim response, with another head to follow."""
        status = head[9:12]
        if not head.startswith(b"HTTP/1.") or not status.isdigit() or len(status) < 3:
            raise Unclear
        if head[8] != _SPACE or b" \r".find(head[12:13]) < 0:
            raise Unclear
        about = self._waiting[0]
        if status[:1] == b"1":
            if status == b"101":
                raise Unclear  # upgraded: the bytes are another protocol's from here on
            self._response.state = _START
            return True
        if about == _CONNECT and status[:1] == b"2":
            raise Unclear  # a tunnel
        head = head.lower()
        if head.find(b"\r\nconnection:") >= 0 or head.startswith(b"http/1.0"):
            self.last = self.last or says_last(head, head.startswith(b"http/1.0"))
        if about == _HEAD_REQUEST or status in _BODILESS:
            self._response.state = _START
        else:
            self._response.expect(response_framing(head))
        return False

    def _end(self) -> None:
        self.in_flight -= 1
        self._ended()

    def _turn_opaque(self) -> None:
        self._request.state = self._response.state = _OPAQUE
        self._request.held = self._response.held = None
        self._waiting.clear()
        self._early = False
        if not self.in_flight:
            self.in_flight = 1
            self._tally.held()
