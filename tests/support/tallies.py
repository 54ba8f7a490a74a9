"""A tally for tests: it counts what an observer tells, and checks that the observer's own count agrees."""

from collections.abc import Iterable

from freeze_proxy.observe import Http1, Http2, Observer, Tally
from freeze_proxy.observe.http1 import CHUNK_LINE_LIMIT, HEAD_LIMIT, PIPELINE_LIMIT
from freeze_proxy.observe.http2 import STREAM_LIMIT


class Recorder(Tally):
    """Counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.holds = 0
        self.ends = 0

    @property
    def in_flight(self) -> int:
        return self.begun + self.holds - self.ends

    def began(self) -> None:
        self.begun += 1

    def held(self) -> None:
        self.holds += 1

    def ended(self) -> None:
        self.ends += 1
        assert self.in_flight >= 0, "more ends than beginnings"


CLIENT, SERVER = "client", "server"


class Watched:
    """An observer with its recorder. Every ``feed`` checks what must hold for any bytes whatever."""

    def __init__(self, kind: type[Http1] | type[Http2] = Http1) -> None:
        self.tally = Recorder()
        self.observer: Observer = kind(self.tally)
        self.was_opaque = False

    def feed(self, side: str, data: bytes) -> None:
        if side == CLIENT:
            self.observer.from_client(data)
        else:
            # As from the relay's one buffer: what lies behind ``size`` is left from an earlier read.
            self.observer.from_server(bytearray(data + b"HTTP/1.1 200 OK\r\n\r\n\x00\x00"), len(data))
        self.check()

    def feed_cut(self, side: str, data: bytes, cuts: Iterable[int]) -> None:
        """Feed the data in pieces, cut at these offsets."""
        last = 0
        for cut in [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]:
            if cut > last:
                self.feed(side, data[last:cut])
            last = cut

    def check(self) -> None:
        observer = self.observer
        assert observer.in_flight == self.tally.in_flight
        if self.was_opaque:
            assert observer.opaque
        self.was_opaque = observer.opaque
        if observer.opaque:
            assert observer.in_flight >= 1
        assert held_bytes(observer) <= 2 * (HEAD_LIMIT + 3)

    def close(self) -> None:
        """Close, and check that each beginning has had its one end."""
        self.observer.closed()
        assert self.tally.in_flight == self.observer.in_flight == 0
        self.observer.closed()
        self.observer.from_client(b"GET / HTTP/1.1\r\n\r\n")
        self.observer.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 38)
        self.observer.sweep()
        self.observer.server_closed()
        assert self.tally.in_flight == self.observer.in_flight == 0

    @property
    def picture(self) -> tuple[int, int, int, int, bool, bool, bool, bool]:
        """All that is to be the same for every way of cutting the bytes."""
        observer, tally = self.observer, self.tally
        return (
            observer.in_flight,
            tally.begun,
            tally.holds,
            tally.ends,
            observer.opaque,
            observer.whole,
            observer.reusable,
            observer.last,
        )


def held_bytes(observer: Observer) -> int:
    """The bytes that an observer keeps; asserts that its lists are within their limits."""
    if isinstance(observer, Http2):
        assert observer.streams <= STREAM_LIMIT
        assert len(observer._silent) <= STREAM_LIMIT
        return len(observer._client.held) + len(observer._server.held)
    assert len(observer._waiting) <= PIPELINE_LIMIT
    held = 0
    for direction in (observer._request, observer._response):
        if direction.held is not None:
            held += len(direction.held)
    assert CHUNK_LINE_LIMIT < HEAD_LIMIT
    return held
