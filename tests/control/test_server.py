"""The bounded HTTP/1.1 server: what it answers to whom, in which order, and whom it cuts off."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from freeze_proxy.control import server as module
from freeze_proxy.control.messages import MOST_BODY, MOST_HEAD
from freeze_proxy.control.server import Answer, Connection, Request, Server, answer


class Echo:
    """Answers with what it got; ``/slow`` waits until it is let go, ``/wrong`` makes a mistake, ``/trust`` trusts."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: list[str] = []
        self.ended: list[Connection] = []

    async def answer(self, request: Request) -> Answer:
        self.seen.append(request.path)
        if request.path == "/slow":
            await self.go.wait()
        if request.path == "/slowly-wrong":
            await asyncio.sleep(0)
            raise RuntimeError
        if request.path == "/wrong":
            raise RuntimeError
        if request.path == "/trust":
            request.connection.trust()
        return answer({"path": request.path, "body": request.body.decode(), "token": request.headers.get("token")})

    def closed(self, connection: Connection) -> None:
        self.ended.append(connection)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        if head.startswith(b"HTTP/1.1 100"):
            return 100, head, b""
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def ended(self) -> bool:
        try:
            return not await asyncio.wait_for(self.reader.read(), 10)
        except ConnectionResetError:
            return True


Play = Callable[[Echo, Server, Callable[[], Awaitable[Client]]], Awaitable[None]]


def play(scene: Play) -> None:
    async def run() -> None:
        echo = Echo()
        server = Server(echo)
        host, port = await server.start("127.0.0.1", 0)
        clients: list[Client] = []

        async def client() -> Client:
            clients.append(Client(*await asyncio.open_connection(host, port)))
            return clients[-1]

        try:
            await asyncio.wait_for(scene(echo, server, client), 60)
        finally:
            for each in clients:
                each.writer.close()
            await server.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def request(path: str, fields: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"POST {path} HTTP/1.1\r\nHost: h\r\n{fields}{length}\r\n{body}".encode()


def test_a_request_is_answered_and_the_connection_kept() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        for body in ("one", "two"):
            client.send(request("/a?x=1", "TOKEN: t\r\n", body))
            status, head, answered = await client.hear()
            assert status == 200
            assert answered == f'{{"path": "/a", "body": "{body}", "token": "t"}}\n'.encode()
            assert b"close" not in head

    play(scene)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_it_does_not_matter_how_the_bytes_are_cut(size: int) -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        data = request("/a", "", "body") + request("/b", "Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n"
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert b'"body": "body"' in (await client.hear())[2]
        assert b'"body": "abc"' in (await client.hear())[2]

    play(scene)


def test_a_later_request_is_carried_out_at_once_and_answered_in_its_turn() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(request("/slow") + request("/thaw"))
        await until(lambda: echo.seen == ["/slow", "/thaw"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.05)
        echo.go.set()
        assert b"/slow" in (await client.hear())[2]
        assert b"/thaw" in (await client.hear())[2]

    play(scene)


def test_who_is_slow_holds_up_nobody() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        slow, half, silent, quick = [await connect() for _ in range(4)]
        slow.send(request("/slow"))
        half.send(b"POST /a HT")
        await silent.writer.drain()
        quick.send(request("/quick"))
        assert (await quick.hear())[0] == 200
        echo.go.set()

    play(scene)


def test_a_flood_is_answered_in_its_order_while_others_have_their_turn() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        flood, other = await connect(), await connect()
        flood.send(b"".join(request(f"/{number}") for number in range(2000)))
        await until(lambda: len(echo.seen) > 20)
        other.send(request("/other"))
        assert (await other.hear())[0] == 200
        assert echo.seen.index("/other") < 1900
        for number in range(2000):
            assert f'"/{number}"'.encode() in (await flood.hear())[2]

    play(scene)


def test_a_flood_from_many_connections_neither_fills_the_memory_nor_stops_the_loop() -> None:
    """A read of theirs could hold thousands of requests, and none of them may be parsed all at once."""

    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        flood = request("/f") * 4000
        clients = [await connect() for _ in range(50)]
        for client in clients:
            client.send(flood)
        other = await connect()
        loop, worst, most = asyncio.get_running_loop(), 0.0, 0
        for _ in range(40):
            began = loop.time()
            other.send(request("/other"))
            await other.hear()
            worst = max(worst, loop.time() - began)
            kept = sum(len(connection._arrived) for connection in server.connections)
            most = max(most, kept)
        assert most <= 50 * module._PIECE / len(request("/f"))
        assert worst < 0.5
        assert len(echo.seen) < 50 * 4000, "the flood was over before the test had looked"

    play(scene)


@pytest.mark.parametrize("excess", [b"\0" * 1_000_000, request("/a", "x: " + "y" * 1_000_000)])
def test_who_is_refused_hears_why_though_it_goes_on_sending(excess: bytes) -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(excess)
        status, head, _ = await client.hear()
        assert status in (400, 431)
        assert b"Connection: close" in head
        await client.writer.drain()
        client.writer.write_eof()
        assert await client.ended()
        await until(lambda: not server.connections)

    play(scene)


def test_who_is_refused_and_does_not_leave_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.1)
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(b"\0")
        assert (await client.hear())[0] == 400
        await until(lambda: not server.connections)

    play(scene)


def test_not_more_than_so_many_are_under_way() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(request("/slow") * 100)
        await until(lambda: len(echo.seen) == module.MOST_WAITING)
        await asyncio.sleep(0.05)
        assert len(echo.seen) == module.MOST_WAITING
        echo.go.set()
        for _ in range(100):
            assert (await client.hear())[0] == 200

    play(scene)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200, 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (request("/", "X: " + "x" * MOST_HEAD + "\r\n"), 431),
        (request("/", "X: y\r\n" * 100), 431),
        (b"POST /" + b"x" * (MOST_HEAD + MOST_BODY), 431),
        (request("/", "", "x" * (MOST_BODY + 1)), 413),
    ],
)
def test_what_is_not_to_be_had(data: bytes, status: int) -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(request("/before") + data)
        assert b"/before" in (await client.hear())[2]
        heard, head, body = await client.hear()
        assert heard == status
        assert b"Connection: close" in head
        assert body.startswith(b'{"error": "')
        assert await client.ended()
        assert echo.seen == ["/before"]

    play(scene)


@pytest.mark.parametrize("path", ["/wrong", "/slowly-wrong"])
def test_a_mistake_of_ours_is_no_200_and_costs_nobody_else(path: str) -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(request(path) + request("/after"))
        assert (await client.hear())[0] == 500
        assert (await client.hear())[0] == 200

    play(scene)


def test_what_ends_a_connection_is_told() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        waiting, idle = await connect(), await connect()
        waiting.send(request("/slow"))
        idle.send(request("/a"))
        await idle.hear()
        await until(lambda: "/slow" in echo.seen)
        waiting.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        waiting.writer.transport.abort()
        idle.writer.close()
        await until(lambda: len(echo.ended) == 2)
        assert all(connection.closed for connection in echo.ended)
        echo.go.set()
        await until(lambda: not server.connections)

    play(scene)


def test_half_closed_it_still_answers() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(request("/slow") + request("/a") * 40)
        client.writer.write_eof()
        await until(lambda: "/a" in echo.seen)
        echo.go.set()
        for _ in range(41):
            assert (await client.hear())[0] == 200
        assert await client.ended()

    play(scene)


@pytest.mark.parametrize(
    "data",
    [b"POST /a HTTP/1.0\r\n\r\n", b"POST /a HTTP/1.1\r\nConnection: close\r\n\r\n"],
)
def test_who_wants_it_closed_gets_it_closed(data: bytes) -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(data + data)
        status, head, _ = await client.hear()
        assert status == 200
        assert b"Connection: close" in head
        assert await client.ended()
        assert echo.seen == ["/a"]

    play(scene)


def test_head_has_no_body_and_a_careful_client_is_told_to_continue() -> None:
    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.send(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)
        assert b"200 OK" in head
        client.send(b"POST /b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert (await client.hear())[0] == 100
        client.send(b"body")
        assert b'"body": "body"' in (await client.hear())[2]

    play(scene)


def test_who_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        silent, half, trusted_half, trusted, waiting = [await connect() for _ in range(5)]
        half.send(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab")
        for each in (trusted, trusted_half):
            each.send(request("/trust"))
            await each.hear()
        trusted_half.send(b"POST")
        waiting.send(request("/slow"))
        for each in (silent, half, trusted_half):
            assert (await each.hear())[0] == 408
            assert await each.ended()
        echo.go.set()
        assert (await waiting.hear())[0] == 200
        trusted.send(request("/still-here"))
        assert (await trusted.hear())[0] == 200

    play(scene)


def test_who_does_not_fetch_its_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        sent = request("/a", "", "x" * 15_000)

        async def flood() -> None:
            while True:
                client.send(sent)
                await client.writer.drain()

        flooding = asyncio.create_task(flood())
        await until(lambda: len(echo.ended) == 1)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        assert len(echo.seen) < 5000

    play(scene)


def test_one_address_has_not_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNTRUSTED", 3)

    async def scene(echo: Echo, server: Server, connect: Callable[[], Awaitable[Client]]) -> None:
        trusted = await connect()
        trusted.send(request("/trust"))
        await trusted.hear()
        untrusted = [await connect() for _ in range(3)]
        await until(lambda: len(server.connections) == 4)
        one_more = await connect()
        assert (await one_more.hear())[0] == 429
        assert await one_more.ended()
        untrusted[0].writer.close()
        await until(lambda: len(server.connections) == 3)
        again = await connect()
        again.send(request("/a"))
        assert (await again.hear())[0] == 200

    play(scene)
