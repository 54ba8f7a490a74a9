"""A server that talks in its sleep: it prints a tick every 500 ms, and takes two seconds for a request.

The ticks stand for all that a server does unasked: timers, housekeeping, garbage collection. Each bears the monotonic
time at which it was made, so whoever froze the server can tell for certain that it did not run meanwhile.

``GET /healthz`` answers at once. Any other ``GET`` sends a first line at once and a second one two seconds later.
The port comes from the environment variable ``PORT`` (8081 without it), the address from ``HOST`` (127.0.0.1).
"""

import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TICK_SECONDS = 0.5
REQUEST_SECONDS = 2.0
FIRST_LINE, SECOND_LINE = "Hm? One moment.", "Here you are."


class Busy:
    """Counts the requests that are being answered."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_until_none(self) -> None:
        """Returns when all that began have been answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


BUSY = Busy()


class Sleeptalker(BaseHTTPRequestHandler):
    """Answers on a connection; keep-alive and chunked for HTTP/1.1, until the connection closes for HTTP/1.0."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer now (/healthz), or at length."""
        with BUSY:
            if self.path == "/healthz":
                self._answer_at_once("awake\n")
            else:
                self._answer_at_length()

    def _answer_at_once(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _answer_at_length(self) -> None:
        chunked = self.request_version != "HTTP/1.0"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self._send_line(FIRST_LINE, chunked)
        time.sleep(REQUEST_SECONDS)
        self._send_line(SECOND_LINE, chunked)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_line(self, line: str, chunked: bool) -> None:
        data = f"{line}\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the ticks are what one listens to here."""


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True  # an idle keep-alive connection must not keep the process; BUSY waits for the others
    request_queue_size = 128


def tick(ended: threading.Event) -> None:
    """Print a tick every TICK_SECONDS, until told to end."""
    number = 0
    while not ended.wait(TICK_SECONDS):
        number += 1
        print(f"tick {number} at {time.monotonic():.6f}", flush=True)


def main() -> None:
    """Serve until SIGTERM or SIGINT, finish what is being answered, and leave with 0."""
    server = Server((os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8081"))), Sleeptalker)
    ended = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        ended.set()
        threading.Thread(target=server.shutdown).start()  # it waits for serve_forever, which this thread is in

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    ticker = threading.Thread(target=tick, args=(ended,))
    ticker.start()
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    ticker.join()
    BUSY.wait_until_none()


if __name__ == "__main__":
    main()
