"""What every server of these tests answers, on Python's http.server. Listens on ``$PORT``."""

import hashlib
import http.server
import os
import sys
import time
import zlib
from collections.abc import Iterator

BLOCK = 1 << 20


def blocks(size: int) -> Iterator[bytes]:
    """So many bytes, in which every block of 1 MiB is different."""
    body = bytes(range(256)) * (BLOCK // 256 - 1)
    for number in range(0, size, BLOCK):
        stamp = number.to_bytes(8, "big") * 32
        yield (stamp + body)[: size - number]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() != b"\r\n":
                pass
        left = int(self.headers.get("Content-Length", "0"))
        while left:
            part = self.rfile.read1(min(left, BLOCK))
            if not part:
                return
            left -= len(part)
            yield part

    def _head(self, status: int, *fields: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.end_headers()

    def _say(self, body: bytes) -> None:
        self._head(200, ("Content-Type", "text/plain"), ("Content-Length", str(len(body))))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self) -> None:
        name, _, argument = self.path.partition("?")[0].lstrip("/").partition("/")
        number = int(argument) if argument.isdigit() else 0
        if name == "upload":
            size = crc = 0
            for part in self._body():
                size += len(part)
                crc = zlib.crc32(part, crc)
            self._say(f"{size} bytes, {crc:08x}\n".encode())
            return
        body = b"".join(self._body())
        if name == "echo":
            digest = hashlib.sha256(body).hexdigest()
            told = self.headers.get("X-Test", "-")
            self._say(f"{self.command} {self.path}\nX-Test: {told}\n{len(body)} {digest}\n".encode())
        elif name == "fixed":
            self._say(b"".join(blocks(number)))
        elif name == "download":
            self._head(200, ("Content-Length", str(number)))
            for block in blocks(number):
                self.wfile.write(block)
        elif name == "slow":
            self._head(200, ("Content-Length", "13"))
            self.wfile.write(b"first\n")
            self.wfile.flush()
            time.sleep(0.3)
            self.wfile.write(b"second\n")
        elif name == "chunked":
            self._head(200, ("Transfer-Encoding", "chunked"))
            for data in (b"one", b"two" * 1000, b"three"):
                self._chunk(data)
            self.wfile.write(b"0\r\n\r\n")
        elif name == "trailers":
            self._head(200, ("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum"))
            self._chunk(b"with trailers")
            self.wfile.write(b"0\r\nX-Sum: 13\r\n\r\n")
        elif name == "close":
            self._head(200, ("Connection", "close"))
            self.wfile.write(b"to the end")
        elif name == "sse":
            self._head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
            for event in range(3):
                self._chunk(b"data: %d\n\n" % event)
                time.sleep(number / 1000)
            self.wfile.write(b"0\r\n\r\n")
        elif name in ("204", "304"):
            self._head(int(name))
        else:
            self._head(404, ("Content-Length", "0"))

    # The names are http.server's.
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer  # noqa: N815


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


if __name__ == "__main__":
    sys.stderr.write("The server's own words.\n")
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
