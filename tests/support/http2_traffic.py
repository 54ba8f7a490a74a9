"""HTTP/2 conversations for tests: two h2 connections with an observer between them, and a reference count.

h2 makes the bytes and says in the end what is open. The reference counts in between, at every byte, from frames that
hyperframe, which h2 is built on, has parsed.
"""

from collections.abc import Callable
from random import Random

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, PushedStreamReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)

from freeze_proxy.observe import Http2
from freeze_proxy.observe.http2 import PREFACE
from tests.support.tallies import CLIENT, SERVER, Watched

REQUEST = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "h")]
RESPONSE = [(":status", "200"), ("server", "test")]
LARGE = [("x-large", "".join(chr(33 + index * 7 % 90) for index in range(20_000)))]
"""Enough for a CONTINUATION."""


DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def greeted() -> Watched:
    """A connection whose handshake is over."""
    watched = Watched(Http2)
    watched.feed(CLIENT, PREFACE + frame(SETTINGS))
    watched.feed(SERVER, frame(SETTINGS) + frame(SETTINGS, ACK))
    watched.feed(CLIENT, frame(SETTINGS, ACK))
    assert watched.observer.in_flight == 0
    return watched


class Reference:
    """Counts what is in flight from the bytes that have passed."""

    def __init__(self) -> None:
        self.buffers = {CLIENT: bytearray(), SERVER: bytearray()}
        self.preface = 24
        self.seen: dict[str, Frame | None] = {CLIENT: None, SERVER: None}
        self.trailing: dict[str, int] = {}
        self.streams: dict[int, set[str]] = {}
        self.begun = 0
        self.last = 0
        self.declined: set[int] = set()
        self.owed = {CLIENT: 0, SERVER: 1}
        self.greeted = False
        self.answered: set[int] = set()
        self.midst = False  # the server is within a header block

    @property
    def waiting(self) -> set[int]:
        """Streams to which the server has said nothing."""
        return set(self.streams) - self.answered

    @property
    def in_flight(self) -> int:
        return len(self.streams) + any(self.owed.values())

    def passed(self, side: str, data: bytes) -> None:
        buffer = self.buffers[side]
        buffer += data
        if side == CLIENT and self.preface:
            step = min(self.preface, len(buffer))
            del buffer[:step]
            self.preface -= step
        while len(buffer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(bytes(buffer[:9])))
            if self.seen[side] is None:
                self.seen[side] = frame
                self._header(side, frame)
            if len(buffer) < 9 + length:
                return
            frame.parse_body(memoryview(bytes(buffer[9 : 9 + length])))
            del buffer[: 9 + length]
            self.seen[side] = None
            self._whole(side, frame)

    def _header(self, side: str, frame: Frame) -> None:
        stream = frame.stream_id
        if not isinstance(frame, HeadersFrame):
            return
        if side == SERVER:
            self.answered.add(stream)
        if stream in self.streams:
            return
        if side == CLIENT and stream > self.last:
            self.last = stream
            self.streams[stream] = set()
            self.begun += 1
        elif side == SERVER and stream % 2 == 0:
            if stream in self.declined:
                self.declined.discard(stream)
            else:
                self.streams[stream] = {CLIENT}
                self.begun += 1

    def _whole(self, side: str, frame: Frame) -> None:
        stream = frame.stream_id
        if side == SERVER and isinstance(frame, (HeadersFrame, PushPromiseFrame, ContinuationFrame)):
            self.midst = "END_HEADERS" not in frame.flags
        if isinstance(frame, DataFrame) and "END_STREAM" in frame.flags:
            self._end(side, stream)
        elif isinstance(frame, HeadersFrame) and "END_STREAM" in frame.flags:
            if "END_HEADERS" in frame.flags:
                self._end(side, stream)
            else:
                self.trailing[side] = stream
        elif isinstance(frame, ContinuationFrame) and "END_HEADERS" in frame.flags:
            self._end(side, self.trailing.pop(side, 0))
        elif isinstance(frame, RstStreamFrame):
            if self.streams.pop(stream, None) is None and side == CLIENT and stream % 2 == 0:
                self.declined.add(stream)
        elif isinstance(frame, (SettingsFrame, PingFrame)):
            if "ACK" in frame.flags:
                self.owed[side] -= 1
            else:
                self.owed[SERVER if side == CLIENT else CLIENT] += 1
                if side == SERVER and not self.greeted:
                    self.greeted = True
                    self.owed[SERVER] -= 1

    def _end(self, side: str, stream: int) -> None:
        if stream in self.streams:
            self.streams[stream].add(side)
            if len(self.streams[stream]) == 2:
                del self.streams[stream]


class End:
    """One of the two h2 connections, and what it may do on which stream."""

    def __init__(self, side: str) -> None:
        self.side = side
        config = H2Configuration(client_side=side == CLIENT, header_encoding="utf-8")
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        self.sendable: set[int] = set()  # streams that it has begun to send on and not ended
        self.fresh: set[int] = set()  # requests that it has not begun to answer
        self.live: set[int] = set()  # streams that it may reset
        self.gone = False  # GOAWAY was sent or received
        self.wire = bytearray(self.h2.data_to_send())

    def events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RequestReceived):
                assert event.stream_id is not None
                self.fresh.add(event.stream_id)
                self.live.add(event.stream_id)
            elif isinstance(event, PushedStreamReceived):
                assert event.pushed_stream_id is not None
                self.live.add(event.pushed_stream_id)
            elif isinstance(event, StreamReset):
                assert event.stream_id is not None
                self.drop(event.stream_id)
            elif isinstance(event, StreamEnded):
                assert event.stream_id is not None
                if event.stream_id not in self.sendable | self.fresh:
                    self.drop(event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                self.gone = True

    def drop(self, stream: int) -> None:
        for streams in (self.sendable, self.fresh, self.live):
            streams.discard(stream)

    def ended(self, stream: int) -> None:
        """It has ended its half."""
        self.sendable.discard(stream)


class Talk:
    """A client and a server with an observer between them. ``act`` makes one of them do something if it can."""

    def __init__(self) -> None:
        self.watched = Watched(Http2)
        self.reference = Reference()
        self.ends = {CLIENT: End(CLIENT), SERVER: End(SERVER)}
        # h2 4.x takes PUSH_PROMISE and 1xx on a stream that it has just reset for errors, which they are not.
        self.delicate = False  # one of those is on its way
        self.reset_on_its_way = False

    @property
    def observer(self) -> Http2:
        observer = self.watched.observer
        assert isinstance(observer, Http2)
        return observer

    def act(self, side: str, what: str, choice: int, flag: bool) -> None:
        end = self.ends[side]
        if end.gone:
            return
        actions: dict[str, Callable[[End, int, bool], None]] = {
            "open": self._open,
            "answer": self._answer,
            "data": self._data,
            "end": self._end,
            "trailers": self._trailers,
            "reset": self._reset,
            "push": self._push,
            "interim": self._interim,
            "window": self._window,
            "priority": self._priority,
            "ping": lambda end, choice, flag: end.h2.ping(b"%08d" % choice),
            "settings": lambda end, choice, flag: end.h2.update_settings(
                {SettingCodes.INITIAL_WINDOW_SIZE: 60_000 + choice}
            ),
            "goaway": self._goaway,
        }
        actions[what](end, choice, flag)
        end.wire += end.h2.data_to_send()

    @staticmethod
    def _pick(streams: set[int], choice: int) -> int | None:
        return sorted(streams)[choice % len(streams)] if streams else None

    def _open(self, end: End, choice: int, flag: bool) -> None:
        if end.side == SERVER:
            return
        stream = end.h2.get_next_available_stream_id()
        headers = REQUEST + (LARGE if choice == 63 else [])
        if choice % 3 == 1:
            end.h2.send_headers(stream, headers, flag, priority_weight=10, priority_depends_on=0)
        else:
            end.h2.send_headers(stream, headers, flag)
        end.live.add(stream)
        if not flag:
            end.sendable.add(stream)

    def _answer(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.fresh, choice)
        if stream is not None:
            end.h2.send_headers(stream, RESPONSE + (LARGE if choice == 63 else []), flag)
            end.fresh.discard(stream)
            if not flag:
                end.sendable.add(stream)

    def _data(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.sendable, choice)
        if stream is not None and end.h2.local_flow_control_window(stream) > 1000:
            end.h2.send_data(stream, b"d" * (choice % 50), flag, pad_length=choice % 30 if choice % 2 else None)
            if flag:
                end.ended(stream)

    def _end(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.sendable, choice)
        if stream is not None:
            end.h2.end_stream(stream)
            end.ended(stream)

    def _trailers(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.sendable, choice)
        if stream is not None:
            end.h2.send_headers(stream, [("x-checksum", "1"), *(LARGE if choice == 63 else [])], end_stream=True)
            end.ended(stream)

    def _reset(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.live, choice)
        if stream is not None and not (end.side == CLIENT and self.delicate):
            self.reset_on_its_way |= end.side == CLIENT
            try:
                end.h2.reset_stream(stream, 8)
            except ProtocolError:
                return  # both halves had ended, and h2 has forgotten it
            finally:
                end.drop(stream)

    def _push(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick({stream for stream in end.fresh if stream % 2}, choice)
        if stream is not None and not self.reset_on_its_way:
            self.delicate = True
            pushed = end.h2.get_next_available_stream_id()
            end.h2.push_stream(stream, pushed, REQUEST)
            end.fresh.add(pushed)
            end.live.add(pushed)

    def _interim(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick({stream for stream in end.fresh if stream % 2}, choice)
        if stream is not None and not self.reset_on_its_way:
            self.delicate = True
            end.h2.send_headers(stream, [(":status", "103"), ("link", "a")])

    def _window(self, end: End, choice: int, flag: bool) -> None:
        stream = self._pick(end.live, choice)
        try:
            end.h2.increment_flow_control_window(1 + choice, None if flag else stream)
        except (ProtocolError, KeyError):
            return  # it had ended

    def _priority(self, end: End, choice: int, flag: bool) -> None:
        if end.side == CLIENT:
            end.h2.prioritize(choice * 2 + 101 if flag else 1, weight=3, depends_on=0)

    def _goaway(self, end: End, choice: int, flag: bool) -> None:
        end.h2.close_connection()
        end.gone = True

    def deliver(self, side: str, size: int) -> None:
        """Let bytes from this side pass the observer and arrive."""
        end, other = self.ends[side], self.ends[SERVER if side == CLIENT else CLIENT]
        data = bytes(end.wire[:size])
        if not data:
            return
        del end.wire[:size]
        if not end.wire:
            if side == CLIENT:
                self.reset_on_its_way = False
            else:
                self.delicate = False
        self.watched.feed(side, data)
        self.reference.passed(side, data)
        self.check()
        if not (other.gone or end.gone):
            other.events(other.h2.receive_data(data))
            other.wire += other.h2.data_to_send()

    def check(self) -> None:
        observer = self.observer
        assert not observer.opaque
        assert observer.streams == len(self.reference.streams)
        assert observer.in_flight == self.reference.in_flight
        assert self.watched.tally.begun == self.reference.begun

    def settle(self) -> None:
        """Deliver everything that is on its way; then the two h2 must say what the observer says."""
        client, server = self.ends[CLIENT], self.ends[SERVER]
        while client.wire or server.wire:
            self.deliver(CLIENT, len(client.wire))
            self.deliver(SERVER, len(server.wire))
        if not (client.gone or server.gone):
            for end in (client, server):
                assert self.observer.in_flight == end.h2.open_outbound_streams + end.h2.open_inbound_streams


_OFTEN = [(CLIENT, "open"), (SERVER, "answer"), (SERVER, "answer"), (CLIENT, "data"), (SERVER, "data"), (CLIENT, "end")]
ACTS = [
    *_OFTEN,
    *_OFTEN,
    (SERVER, "end"),
    (SERVER, "push"),
    (SERVER, "interim"),
    *((side, what) for side in (CLIENT, SERVER) for what in ("trailers", "reset", "window", "ping", "settings")),
    (CLIENT, "priority"),
]
SIZES = [1, 2, 8, 9, 10, 24, 50, 300, 1 << 20, 1 << 20, 1 << 20]

Script = list[tuple[str, str, int, bool]]


def long_script(seed: int, length: int) -> Script:
    """Many acts, with deliveries between them."""
    random = Random(seed)
    script = []
    for _ in range(length):
        if random.random() < 0.5:
            script.append((*random.choice(ACTS), random.randrange(64), random.random() < 0.3))
        else:
            script.append((random.choice([CLIENT, SERVER]), "deliver", random.choice(SIZES), False))
    return script


def play(talk: Talk, script: Script) -> None:
    for side, what, choice, flag in script:
        if what == "deliver":
            talk.deliver(side, choice)
        else:
            talk.act(side, what, choice, flag)
