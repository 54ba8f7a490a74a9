"""One of the soak's clients: ``python3 -I -S soak_client.py PORT SEED EXCHANGES DEADLINE SIZES``.

Keeps a connection for a while, sends requests of every framing one by one, pipelined or cut into pieces, then leaves:
properly, half-closed, or in the middle of something, by FIN or by RST. Every response that should come whole is checked
by its length; ``SIZES`` is a JSON object with the length of each kind of response. Prints its counts as JSON.

Five times a second all clients are quiet for a moment together, so that the gate shuts and requests arrive at it in a
crowd.
"""

import json
import random
import socket
import struct
import sys
import time

RESET = struct.pack("ii", 1, 0)  # struct linger: close sends RST
PERIOD, QUIET = 0.2, 0.02
PATIENCE = 10.0
BUFFER = bytearray(1 << 20)

Batch = tuple[bytes, int, int]  # bytes to send, bytes to come, exchanges


class LostError(Exception):
    """A response that did not come, or not as it should."""


def chunked(rng: random.Random, size: int) -> bytes:
    """A body in the chunked coding, sometimes with an extension or a trailer."""
    parts = []
    while size:
        step = rng.randint(1, size)
        parts.append(b"%x%s\r\n%s\r\n" % (step, rng.choice((b"", b"", b";a=b")), b"c" * step))
        size -= step
    return b"".join(parts) + b"0\r\n" + rng.choice((b"", b"", b"X-Trailer: yes\r\n")) + b"\r\n"


def request(rng: random.Random, sizes: dict[str, int]) -> tuple[bytes, int]:
    """One request at random, and how long its response is."""
    host = b" HTTP/1.1\r\nHost: soak\r\n"
    kind = rng.choices(("small", "head", "length", "chunked", "coded", "64k"), (40, 15, 20, 15, 9, 1))[0]
    if kind == "small":
        return b"GET /" + host + b"X-Pad: " + b"p" * rng.randint(0, 200) + b"\r\n\r\n", sizes["small"]
    if kind == "head":
        return b"HEAD /64k" + host + b"\r\n", sizes["head"]
    if kind == "coded":
        return b"GET /chunked" + host + b"\r\n", sizes["chunked"]
    if kind == "64k":
        return b"GET /64k" + host + b"\r\n", sizes["64k"]
    length = rng.choice((0, 1, 17, 300, 300, 2000, 9000))
    if kind == "length":
        return b"POST /" + host + b"Content-Length: %d\r\n\r\n%s" % (length, b"l" * length), sizes["small"]
    return b"POST /" + host + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(rng, length), sizes["small"]


def batches(rng: random.Random, sizes: dict[str, int], many: int) -> list[Batch]:
    """Requests to send together, in every length from one to twenty."""
    made = []
    for _ in range(many):
        group = [request(rng, sizes) for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8, 20)))]
        made.append((b"".join(one for one, _ in group), sum(size for _, size in group), len(group)))
    return made


class Client:
    """Does sessions and counts."""

    def __init__(self, port: int, seed: int, sizes: dict[str, int]) -> None:
        self.address = ("127.0.0.1", port)
        self.rng = random.Random(seed)
        self.sizes = sizes
        self.batches = batches(self.rng, sizes, 400)
        self.done = 0
        self.counts: dict[str, int] = {}
        self.lost: list[str] = []
        self.doing = ""

    def connect(self) -> socket.socket:
        """A new connection."""
        connection = socket.create_connection(self.address, PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def receive(self, connection: socket.socket, size: int) -> None:
        """Exactly so many bytes of successful responses."""
        first = True
        while size:
            got = connection.recv_into(BUFFER, min(size, len(BUFFER)))
            if not got:
                raise LostError(f"closed with {size} bytes to come")
            if first and not BUFFER.startswith(b"HTTP/1.1 200"):
                raise LostError(f"unexpected: {bytes(BUFFER[:60])!r}")
            first = False
            size -= got

    def to_the_end(self, connection: socket.socket) -> int:
        """All bytes until the other side closes."""
        size = 0
        while got := connection.recv_into(BUFFER):
            size += got
        return size

    def batch(self, connection: socket.socket) -> None:
        """Some whole exchanges."""
        rng = self.rng
        data, size, count = rng.choice(self.batches)
        self.doing = f"{count} exchanges that begin {data[:20]!r}"
        if rng.random() < 0.1:
            for _ in range(rng.randint(1, 3)):
                at = rng.randint(1, max(1, len(data) - 1))
                connection.sendall(data[:at])
                data = data[at:]
        if data:
            connection.sendall(data)
        self.receive(connection, size)
        self.done += count

    def leave(self, connection: socket.socket) -> str:
        """End the connection in one of many ways; returns which."""
        rng = self.rng
        how = rng.choice((
            "fin", "half-close", "connection-close", "in-head", "in-body", "in-chunked", "unanswered", "in-response",
            "in-pipeline", "garbage", "ambiguous",
        ))  # fmt: skip
        self.doing = how
        host = b" HTTP/1.1\r\nHost: soak\r\n"
        if how == "half-close":
            data, size, count = rng.choice(self.batches)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            got = self.to_the_end(connection)
            if got < size:
                raise LostError(f"half-close: {size - got} bytes missing")
            self.done += count
        elif how == "connection-close":
            connection.sendall(b"GET /" + host + b"Connection: close\r\n\r\n")
            if self.to_the_end(connection) != self.sizes["small-close"]:
                raise LostError("connection-close: not the whole response")
            self.done += 1
        elif how == "garbage":
            connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            self.to_the_end(connection)
        elif how == "ambiguous":
            both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
            connection.sendall(b"POST /" + host + both + b"\r\n0\r\n\r\n")
            if rng.random() < 0.5:
                self.to_the_end(connection)
        elif how != "fin":
            if how == "in-head":
                whole = request(rng, self.sizes)[0].partition(b"\r\n\r\n")[0]
                connection.sendall(whole[: rng.randint(1, len(whole))])
            elif how == "in-body":
                connection.sendall(b"POST /" + host + b"Content-Length: 5000\r\n\r\n" + b"l" * rng.randint(0, 4999))
            elif how == "in-chunked":
                body = chunked(rng, 3000)
                coded = b"Transfer-Encoding: chunked\r\n\r\n" + body[: rng.randint(0, len(body) - 1)]
                connection.sendall(b"POST /" + host + coded)
            elif how == "unanswered":
                connection.sendall(request(rng, self.sizes)[0])
            elif how == "in-pipeline":
                connection.sendall(b"".join(rng.choice(self.batches)[0] for _ in range(3)))
            else:
                connection.sendall(rng.choice((b"GET /64k", b"GET /1m")) + host + b"\r\n")
            if how == "in-response" or (how != "in-head" and rng.random() < 0.3):
                connection.recv_into(BUFFER, rng.randint(1, 50_000))
            if rng.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                how += "-rst"
            else:
                how += "-fin"
        return how

    def keep_quiet(self) -> None:
        """Wait for the end of the quiet moment, if this is one."""
        since = time.monotonic() % PERIOD
        if since < QUIET:
            time.sleep(QUIET - since)

    def session(self) -> None:
        """One connection from its beginning to its end."""
        self.doing = "connecting"
        try:
            with self.connect() as connection:
                try:
                    for _ in range(self.rng.choice((0, 1, 2, 4, 8))):
                        self.keep_quiet()
                        self.batch(connection)
                    self.keep_quiet()
                    how = self.leave(connection)
                except TimeoutError:
                    raise LostError("no answer") from None
                self.counts[how] = self.counts.get(how, 0) + 1
        except (OSError, LostError) as error:
            self.lost.append(f"{self.doing}: {error or type(error).__name__}")


def main() -> None:
    """Sessions until so many exchanges are done, or time is up, or too much is lost."""
    port, seed, quota, deadline = (int(value) for value in sys.argv[1:5])
    client = Client(port, seed, json.loads(sys.argv[5]))
    end = time.monotonic() + deadline
    while client.done < quota and time.monotonic() < end and len(client.lost) < 10:
        client.session()
    json.dump({"done": client.done, "leaves": client.counts, "lost": client.lost}, sys.stdout)


main()
