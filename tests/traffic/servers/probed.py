"""A server that is probed, in a pod: on all addresses, as Knative has it, with the backlog of a modest one.

    python -m tests.traffic.servers.probed http|https|tcp|grpc PORT FOLDER [DELAY]

Over http and https, ``/fail`` answers 500, and ``/ready`` wants the header ``X-Probe``. Over tcp it is an HTTP server
all the same: what is probed is another thing than what it does. Over grpc it has the health service. FOLDER has the
certificate; it listens after DELAY seconds.
"""

import http.server
import os
import signal
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        refused = self.path == "/fail" or (self.path == "/ready" and self.headers.get("X-Probe") != "yes")
        body = f"{self.path}\n".encode()
        self.send_response(500 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 5
    daemon_threads = True


def serve(kind: str, port: int, folder: Path) -> None:
    if kind == "grpc":
        import grpc

        class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
            def service(self, details: Any) -> Any:
                good = details.method == "/grpc.health.v1.Health/Check"
                answer = b"\x08\x01" if good else b"hello"
                return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)

        server = grpc.server(ThreadPoolExecutor(4), handlers=(Health(),))
        assert server.add_insecure_port(f"0.0.0.0:{port}") == port
        server.start()
        server.wait_for_termination()
    made = Server(("0.0.0.0", port), Handler)
    if kind == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        made.socket = context.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    made.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container ends by nothing else
    time.sleep(float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
