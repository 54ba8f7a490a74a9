"""HTTP/1.x conversations for tests, and h11's view of where their messages begin and end."""

from dataclasses import dataclass

import h11
from hypothesis import strategies as st

NEVER = 1 << 60
"""The offset at which a message ends that only the end of the connection ends."""


@dataclass(frozen=True)
class Exchange:
    """One exchange as it was made up: what each side sends. Where it ends is h11's to say."""

    method: bytes
    request: bytes
    response: bytes
    last: bool  # nothing can follow: the response ends with the connection, or another protocol begins


@dataclass(frozen=True)
class Conversation:
    """The bytes of both directions, and at which offsets h11 sees messages begin and end."""

    client: bytes
    server: bytes
    begins: list[int]  # first byte of each request
    heads: list[int]  # end of each request's head
    ends: list[int]  # end of each request
    answers: list[int]  # end of each response
    answer_begins: list[int]
    methods: list[bytes]
    switch: int | None  # the server's offset from which the connection is another protocol's


def read_requests(wire: bytes) -> tuple[list[int], list[int], list[int], list[bytes]]:
    """Offsets of the requests' first bytes, the ends of their heads, their ends; and their methods."""
    begins, heads, ends, methods = [], [], [], []
    at = 0
    while at < len(wire):
        begins.append(at)
        server = h11.Connection(h11.SERVER)
        server.receive_data(wire[at:])
        request = server.next_event()
        assert isinstance(request, h11.Request), request
        methods.append(request.method)
        heads.append(len(wire) - len(server.trailing_data[0]))
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), event
        at = len(wire) - len(server.trailing_data[0])
        ends.append(at)
    return begins, heads, ends, methods


def read_responses(wire: bytes, methods: list[bytes], upgrade: bool) -> tuple[list[int], list[int], int | None]:
    """Offsets of the responses' first bytes and ends, and of the switch to another protocol if there is one."""
    begins, ends = [], []
    at = 0
    for number, method in enumerate(methods):
        begins.append(at)
        client = h11.Connection(h11.CLIENT)
        headers = [("Host", "h")]
        if upgrade and number == len(methods) - 1:
            headers += [("Connection", "upgrade"), ("Upgrade", "websocket")]
        client.send(h11.Request(method=method, target="h:1" if method == b"CONNECT" else "/", headers=headers))
        client.send(h11.EndOfMessage())
        client.receive_data(wire[at:])
        while True:
            event = client.next_event()
            if client.their_state is h11.SWITCHED_PROTOCOL:
                ends.append(NEVER)
                return begins, ends, len(wire) - len(client.trailing_data[0])
            if isinstance(event, h11.EndOfMessage):
                at = len(wire) - len(client.trailing_data[0])
                ends.append(at)
                break
            if event is h11.NEED_DATA:
                assert client.their_state is h11.SEND_BODY
                assert number == len(methods) - 1
                ends.append(NEVER)
                break
            assert isinstance(event, (h11.InformationalResponse, h11.Response, h11.Data)), event
    return begins, ends, None


def converse(exchanges: list[Exchange]) -> Conversation:
    """Put exchanges into one connection and have h11 read both directions."""
    client = b"".join(exchange.request for exchange in exchanges)
    server = b"".join(exchange.response for exchange in exchanges)
    begins, heads, ends, methods = read_requests(client)
    upgrade = b"\r\nUpgrade: websocket\r\n" in exchanges[-1].request
    answer_begins, answers, switch = read_responses(server, methods, upgrade)
    # If h11 saw other messages than were put in, then this generator would be wrong.
    assert methods == [exchange.method for exchange in exchanges]
    return Conversation(client, server, begins, heads, ends, answers, answer_begins, methods, switch)


# What messages are made of.

_TOKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
_METHODS = [b"GET", b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"M-SEARCH", b"COPY", b"HEADER", b"get"]
_TEMPTING = [
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"\n",
    b"\n\r\n",
    b"\x00",
]

names = st.sampled_from(
    [b"X-A", b"Accept", b"X-Content-Length", b"Content-Length-Was", b"X-Transfer-Encoding", b"Te", b"Trailer", b"~"]
) | st.text(_TOKEN, min_size=1, max_size=8).map(lambda name: b"X" + name.encode())
values = st.sampled_from(
    [
        b"",
        b"a",
        b"content-length: 7",
        b"transfer-encoding: chunked",
        b"chunked",
        b"Content-Length",
        b"\xe9t\xe9",
        b"a\tb",
    ]
) | st.text("abc 019:;,=/", max_size=12).map(lambda text: text.strip().encode())
spaces = st.sampled_from([b"", b" ", b" ", b"\t", b"  "])
bodies = st.sampled_from(_TEMPTING) | st.binary(max_size=12) | st.binary(min_size=300, max_size=400)


@st.composite
def fields(draw: st.DrawFn, most: int = 3) -> list[bytes]:
    """Header lines that say nothing about the framing."""
    return [draw(names) + b":" + draw(spaces) + draw(values) + draw(spaces) for _ in range(draw(st.integers(0, most)))]


def recased(text: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([text, text.lower(), text.upper()])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """A body in the chunked coding."""
    wire = b""
    for data in draw(st.lists(bodies.filter(bool), max_size=3)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"0000%X"])) % len(data)
        extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="x y"', b"; content-length=1", b" "]))
        wire += size + extension + b"\r\n" + data + b"\r\n"
    trailers = draw(fields(2))
    return (
        wire
        + draw(st.sampled_from([b"0", b"00", b"0;last"]))
        + b"\r\n"
        + b"".join(t + b"\r\n" for t in trailers)
        + b"\r\n"
    )


@st.composite
def framed(draw: st.DrawFn, kinds: list[str]) -> tuple[list[bytes], bytes]:
    """The lines of a framing, and the body in it."""
    kind = draw(st.sampled_from(kinds))
    if kind == "length":
        body = draw(bodies)
        line = draw(recased(b"Content-Length")) + b":" + draw(spaces) + b"%d" % len(body) + draw(spaces)
        return [line] * draw(st.sampled_from([1, 1, 1, 2])), body
    if kind == "chunked":
        coding = draw(st.sampled_from([b"chunked", b"Chunked", b"CHUNKED"]))
        return [draw(recased(b"Transfer-Encoding")) + b":" + draw(spaces) + coding + draw(spaces)], draw(chunked())
    if kind == "close":
        return [], draw(bodies)
    return [], b""


def _head(first: bytes, lines: list[bytes]) -> bytes:
    return b"\r\n".join([first, *lines]) + b"\r\n\r\n"


@st.composite
def exchanges(draw: st.DrawFn, last: bool) -> Exchange:
    """One exchange; what ends with the connection only as the ``last`` one."""
    ending = draw(st.sampled_from(["none", "close", "upgrade", "connect"])) if last else "none"
    old = ending != "upgrade" and draw(st.integers(0, 5)) == 0
    method = b"CONNECT" if ending == "connect" else draw(st.sampled_from(_METHODS))
    if ending == "close" and method == b"HEAD":
        method = b"GET"
    target = b"h:1" if method == b"CONNECT" else draw(st.sampled_from([b"/", b"/a?content-length:=2", b"*"]))
    kinds = (
        ["none"] if ending in ("upgrade", "connect") else ["none", "length"] if old else ["none", "length", "chunked"]
    )
    lines, body = draw(framed(kinds))
    lines = draw(st.permutations([b"Host: h", *lines, *draw(fields())]))
    if ending == "upgrade":
        lines += [b"Connection: upgrade", b"Upgrade: websocket"]
    request = _head(method + b" " + target + (b" HTTP/1.0" if old else b" HTTP/1.1"), lines) + body

    interim = b"".join(
        _head(
            draw(st.sampled_from([b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints", b"HTTP/1.1 102 "])),
            draw(fields()),
        )
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2])))
    )
    tunnel = draw(bodies)
    if ending == "upgrade":
        return Exchange(method, request, interim + _head(b"HTTP/1.1 101 Switching", draw(fields())) + tunnel, True)
    if ending == "connect" and draw(st.booleans()):
        status = draw(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 299 "]))
        length = draw(st.sampled_from([[], [b"Content-Length: 5"]]))
        return Exchange(method, request, interim + _head(status, [*draw(fields()), *length]) + tunnel, True)
    old = ending == "close" and draw(st.booleans())
    version = b"HTTP/1.0 " if old else b"HTTP/1.1 "
    bare = method == b"HEAD" or (ending != "close" and draw(st.integers(0, 4)) == 0)
    statuses = (
        [b"204 No Content", b"304 Not Modified", b"304"]
        if bare and method != b"HEAD"
        else [b"200 OK", b"404 ", b"500", b"200 \xe9"]
    )
    lines, body = draw(
        framed(["close"] if ending == "close" else ["none", "length", "chunked"] if bare else ["length", "chunked"])
    )
    lines = draw(st.permutations([*lines, *draw(fields())]))
    response = interim + _head(version + draw(st.sampled_from(statuses)), lines) + (b"" if bare else body)
    return Exchange(method, request, response, ending == "close")


@st.composite
def conversations(draw: st.DrawFn, most: int = 4) -> Conversation:
    """A whole connection: some exchanges, the last of which may be of a kind that ends it."""
    number = draw(st.integers(1, most))
    return converse([draw(exchanges(last=index == number - 1)) for index in range(number)])
