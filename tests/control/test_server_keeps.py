"""What the server keeps of requests: it makes no difference to any answer, whatever comes in whichever pieces."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from freeze_proxy.control.server import Answer, Connection, Request, Server, answer
from tests.support.examples import examples


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _Socket() if name == "socket" else default

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write_eof(self) -> None:
        self.written += b"finished"

    def close(self) -> None:
        self.written += b"closed"


class _Socket:
    family = None

    def setsockopt(self, *_: object) -> None:
        pass


class Keeping:
    """Answers with all that there is of a request, kept or not; ``holds``: what was kept is still so."""

    def __init__(self, keeps: bool, trusts: bool = True) -> None:
        self.keeps = keeps
        self.trusts = trusts
        self.holds = True
        self.known = 0
        self.numbers: list[int] = []

    async def answer(self, request: Request) -> Answer:
        self.numbers.append(request.number)
        meaning = request.meaning
        if meaning is not None:
            assert not request.headers
            assert not request.body
            self.known += 1
        else:
            if self.trusts:
                request.connection.trust()
            meaning = [sorted(request.headers.items()), request.body.decode("latin-1")]
            if self.keeps:
                request.keep(meaning, lambda: self.holds)
        return answer([request.method, request.path, meaning])

    def closed(self, connection: Connection) -> None:
        """Nothing is held."""


class Line:
    """A connection of a server whose bytes are handed in by hand; to be used in a running loop."""

    def __init__(self, handler: Keeping) -> None:
        self.wire = Wire()
        self.server = Server(handler)
        self.connection = Connection(self.server)
        self.connection.connection_made(self.wire)

    async def take(self, data: bytes) -> bytes:
        """These bytes come at once; what has been answered when all is done that is to be done."""
        before = len(self.wire.written)
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))
        for _ in range(50):
            await asyncio.sleep(0)
        return self.wire.written[before:]


FREEZE = b"POST /freeze HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nToken: t\r\n\r\n"
THAW = b"POST /thaw HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nToken: t\r\n\r\n"
OTHERS = [
    b"POST /thaw HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nToken: u\r\n\r\n",
    b"POST /freeze HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nToken: t\r\n\r\n{}",
    b"POST /freeze HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"\r\n" + THAW,
    b"HEAD /thaw HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /thaw HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"not HTTP\r\n\r\n",
]


def test_the_same_again_is_known() -> None:
    async def scene() -> None:
        handler = Keeping(True)
        line = Line(handler)
        first = [await line.take(data) for data in (THAW, FREEZE, THAW)]  # of the very first nothing is kept
        assert handler.known == 0
        for _ in range(3):
            assert [await line.take(FREEZE), await line.take(THAW)] == first[1:]
        assert handler.known == 6
        assert handler.numbers == sorted(set(handler.numbers)), "each has a number of its own"
        assert "Token" not in repr(vars(line.connection)), "of the bytes themselves nothing is kept"

    asyncio.run(scene())


def test_what_holds_no_more_is_understood_anew() -> None:
    async def scene() -> None:
        handler = Keeping(True)
        line = Line(handler)
        answers = {await line.take(THAW) for _ in range(3)}
        assert handler.known == 1
        handler.holds = False
        answers |= {await line.take(THAW) for _ in range(3)}
        assert handler.known == 1
        assert len(answers) == 1

    asyncio.run(scene())


def test_of_who_is_not_trusted_nothing_is_kept() -> None:
    async def scene() -> None:
        handler = Keeping(True, trusts=False)
        line = Line(handler)
        assert len({await line.take(THAW) for _ in range(5)}) == 1
        assert handler.known == 0
        assert line.connection._kept == []
        await line.take(THAW + FREEZE)
        assert "Token" not in repr(vars(line.connection))

    asyncio.run(scene())


@examples(300)
@given(some.data())
def test_no_answer_depends_on_what_is_kept(data: some.DataObject) -> None:
    parts = [THAW, FREEZE, THAW, *data.draw(some.lists(some.sampled_from([THAW, FREEZE, THAW, FREEZE, *OTHERS])))]
    # Mostly one request comes in one piece, as from a sidecar.
    pieces: list[bytes] = []
    rest = b""
    for part in parts:
        how = data.draw(some.sampled_from(["whole", "whole", "whole", "with the next", "in two"]))
        if how == "whole":
            pieces.append(rest + part)
            rest = b""
        elif how == "with the next":
            rest += part
        else:
            cut = data.draw(some.integers(0, len(part)))
            pieces.append(rest + part[:cut])
            rest = part[cut:]
    pieces = [piece for piece in [*pieces, rest] if piece]

    async def answers(keeps: bool) -> tuple[list[bytes], int]:
        handler = Keeping(keeps)
        line = Line(handler)
        return [await line.take(piece) for piece in pieces], handler.known

    (with_memory, known), (without, never) = asyncio.run(answers(True)), asyncio.run(answers(False))
    assert with_memory == without
    assert never == 0
    if pieces[:3] == [THAW, FREEZE, THAW] and pieces[3:4] in ([THAW], [FREEZE]):
        assert known
