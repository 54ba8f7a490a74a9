"""Prints ``tick`` and the monotonic time every 20 ms, and answers every request. Listens on ``$PORT``."""

import http.server
import os
import threading
import time

EVERY = 0.02


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        time.sleep(0.1)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")


def tick() -> None:
    while True:
        print(f"tick {time.monotonic():.6f}", flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    threading.Thread(target=tick, daemon=True).start()
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
