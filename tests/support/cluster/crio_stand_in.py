"""A stand-in for CRI-O, which Debian 12 does not have: CRI-O's words, on containers that a containerd runs.

Like CRI-O it serves CRI and its own HTTP endpoints on one socket, and pauses by asking runc or crun. Paths, statuses
and texts are those of ``server/inspect.go`` in CRI-O 1.3x; CRI goes on to containerd, all but the runtime's name.
"""

import contextlib
import http.server
import json
import shutil
import socket
import socketserver
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from freeze_proxy.protobuf import classes
from tests.support.cluster import cgroups
from tests.support.cluster.containerd import Containerd

_HTTP2 = b"PRI * HTTP/2.0"

_VERSION = classes(
    "runtime.v1",
    {
        "VersionResponse": {
            "version": (1, "string"),
            "runtime_name": (2, "string"),
            "runtime_version": (3, "string"),
            "runtime_api_version": (4, "string"),
        }
    },
)["VersionResponse"]


class _State:
    """What CRI-O has in mind about a container: it remembers the status, and asks its runtime only after acting."""

    def __init__(self, program: str, root: Path, identity: str) -> None:
        self._command = [program, "--root", str(root)]
        self._id = identity
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        told = json.loads(self._run("state"))
        self.status: str = told["status"]
        self.pid: int = told["pid"]

    def _run(self, verb: str) -> str:
        command = [*self._command, verb, self._id]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise _Failed(f"`{' '.join(command)}` failed: {done.stderr} : exit status {done.returncode}")
        return done.stdout

    def act(self, verb: str) -> None:
        with self._lock:
            self._run(verb)
            self.refresh()


class _Failed(Exception):
    """The runtime's command failed."""


class _NotFound(Exception):
    """There is no such container."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    crio: "CrioStandIn"

    def handle(self) -> None:
        if self.connection.recv(len(_HTTP2), socket.MSG_PEEK | socket.MSG_WAITALL) == _HTTP2:
            self.crio.pass_on(self.connection)
        else:
            super().handle()

    def address_string(self) -> str:
        return "a unix socket"

    def log_message(self, format: str, *args: Any) -> None:
        self.crio.requests.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        match self.path.strip("/").split("/"):
            case ["info"]:
                self._answer(200, json.dumps(self.crio.info()), "application/json")
            case ["containers", identity]:
                self._about(identity, self._show)
            case ["pause", identity]:
                self._about(identity, self._pause)
            case ["unpause", identity]:
                self._about(identity, self._unpause)
            case _:
                self._error(404, "404 page not found")

    def _about(self, identity: str, what: Any) -> None:
        try:
            what(identity, self.crio.state(identity))
        except _NotFound:
            self._error(404, f"can't find the container with id {identity}")
        except _Failed as error:
            self._error(500, str(error))

    def _show(self, identity: str, state: _State) -> None:
        self._answer(200, json.dumps({"name": identity, "pid": state.pid}), "application/json")

    def _pause(self, _identity: str, state: _State) -> None:
        if state.status not in ("running", "created"):
            self._error(409, f"container is not in running or created state, now is {state.status}")
            return
        state.act("pause")
        self._answer(200, "200 OK", "text/html")

    def _unpause(self, _identity: str, state: _State) -> None:
        if state.status != "paused":
            self._error(409, f"container is not in paused state, now is {state.status}")
            return
        state.act("resume")
        self._answer(200, "200 OK", "text/html")

    def _error(self, status: int, text: str) -> None:
        self._answer(status, text + "\n", "text/plain; charset=utf-8")

    def _answer(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, path: str, handler: type[_Handler]) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(path, handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.discard(request)

    def server_close(self) -> None:
        """As when a process ends: its connections do, too."""
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Forward(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every call goes to containerd as it came; only to the question for its name the answer is another."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def service(self, details: Any) -> Any:
        ask = self._channel.unary_unary(details.method)

        def answer(request: bytes, context: Any) -> bytes:
            try:
                said: bytes = ask(request, timeout=context.time_remaining() or 30)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            if details.method.endswith("/Version"):
                version = _VERSION.FromString(said)
                version.runtime_name, version.runtime_version = "cri-o", "1.34.0"
                said = version.SerializeToString()
            return said

        return grpc.unary_unary_rpc_method_handler(answer)


class CrioStandIn:
    """Serves from ``start`` to ``close``; ``requests`` are those that came by HTTP, as ``GET /pause/…``."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._folder = containerd.folder / "crio-stand-in"
        self.socket = self._folder / "crio.sock"
        self.requests: list[str] = []
        self._states: dict[str, _State] = {}

    def start(self) -> None:
        """Start, or start again with nothing remembered."""
        self._folder.mkdir()
        self._states.clear()
        inner = self._folder / "cri.sock"
        self._grpc = grpc.server(ThreadPoolExecutor(8), handlers=[_Forward(self._containerd.channel)])
        self._grpc.add_insecure_port(f"unix://{inner}")
        self._grpc.start()
        self._server = _Server(str(self.socket), type("Handler", (_Handler,), {"crio": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """As ``close``; it may be started again."""
        self.close()

    def ensure(self) -> None:
        """Start it if it has been ended."""
        if not self._folder.exists():
            self.start()

    def close(self) -> None:
        """Stop; containers stay as they are."""
        if not self._folder.exists():
            return
        self._server.shutdown()
        self._server.server_close()
        self._grpc.stop(None).wait(5)
        shutil.rmtree(self._folder)

    def info(self) -> dict[str, Any]:
        return {
            "storage_driver": "overlay",
            "storage_root": str(self._containerd.folder),
            "cgroup_driver": "cgroupfs",
            "default_id_mappings": {},
        }

    def state(self, identity: str) -> _State:
        """What is known of a container; of one that has ended only if it was asked about before."""
        known = self._states.get(identity)
        if known is not None:
            if not cgroups.lives(known.pid):
                known.status = "stopped"
            return known
        for name, program in self._containerd.programs.items():
            root = self._containerd.folder / name / self._containerd.namespace
            if "/" not in identity and (root / identity).is_dir():
                return self._states.setdefault(identity, _State(program, root, identity))
        raise _NotFound

    def pass_on(self, connection: socket.socket) -> None:
        """Both directions of a gRPC connection, until either side ends it."""
        with socket.socket(socket.AF_UNIX) as inner:
            inner.connect(str(self._folder / "cri.sock"))
            threading.Thread(target=_copy, args=(connection, inner), daemon=True).start()
            _copy(inner, connection)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass  # ended by the other direction
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
