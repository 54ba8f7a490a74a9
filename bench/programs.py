"""The backend, and the proxies that are compared, configured as someone who knows them would."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import LOAD_CORE, PROXY_CORE, ROOT, interpreter, listening, running, wait_until

SMALL = b"Hello world\n"
SIZES = {"64k": 64 * 1024, "1m": 1024 * 1024}

_NGINX_COMMON = """
    daemon off;
    worker_processes 1;
    pid {folder}/pid;
    error_log stderr crit;
    worker_rlimit_nofile 16384;
    events {{ worker_connections 8192; }}
    http {{
        access_log off;
        tcp_nodelay on;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
        client_body_temp_path {folder}/body;
        proxy_temp_path {folder}/proxy;
"""

_BACKEND = (
    _NGINX_COMMON
    + """
        sendfile on;
        open_file_cache max=16 inactive=1h;
        default_type application/octet-stream;
        root {folder}/files;
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            location = / {{ return 200 "{small}"; }}
            location = /varied {{ add_header X-Request-Id $request_id; return 200 "{small}"; }}
            location = /chunked {{ ssi on; ssi_types *; try_files /4k =404; }}
        }}
    }}
"""
)

_PROXY = (
    _NGINX_COMMON
    + """
        upstream server {{
            server 127.0.0.1:{target};
            keepalive 256;
            keepalive_requests 1000000000;
            keepalive_timeout 1h;
        }}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            location / {{
                proxy_pass http://server;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                {extra}
            }}
        }}
    }}
"""
)

_HAPROXY = """
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend server
backend server
    server one 127.0.0.1:{target}
"""

LARGE_BUFFERS = "proxy_buffer_size 16k; proxy_buffers 8 256k; proxy_busy_buffers_size 512k; proxy_max_temp_file_size 0;"


@dataclass(frozen=True)
class Candidate:
    """A proxy to measure. ``command`` makes its command line from a folder of its own, its port and the target's.

    ``only``: the scenarios it takes part in, or ``None`` for all. ``missing``: why it cannot be measured here.
    """

    name: str
    title: str
    command: Callable[[Path, int, int], Sequence[str]]
    only: tuple[str, ...] | None = None
    missing: str | None = None
    env: tuple[tuple[str, str], ...] = ()


def _nginx(text: str, folder: Path, **values: object) -> Sequence[str]:
    config = folder / "nginx.conf"
    config.write_text(text.format(folder=folder, **values))
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]


def _relay(mode: str) -> Callable[[Path, int, int], Sequence[str]]:
    def command(_folder: Path, port: int, target: int) -> Sequence[str]:
        return [interpreter(), "-I", "-S", str(ROOT / "bench/relay_alone.py"), str(port), str(target), mode]

    return command


def _haproxy(folder: Path, port: int, target: int) -> Sequence[str]:
    config = folder / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port, target=target))
    return ["haproxy", "-db", "-q", "-f", str(config)]


def _go(binary: Path, idle: int = 0) -> Callable[[Path, int, int], Sequence[str]]:
    def command(_folder: Path, port: int, target: int) -> Sequence[str]:
        listen, server = f"127.0.0.1:{port}", f"127.0.0.1:{target}"
        return [str(binary), "-listen", listen, "-target", server, "-idle", str(idle)]

    return command


def build_go(folder: Path) -> tuple[Path, str | None]:
    """Builds the Go proxy; returns where it is and, if that was not possible, why."""
    binary = folder / "goproxy"
    if shutil.which("go") is None:
        return binary, "There is no Go toolchain on this machine."
    source = ROOT / "bench/goproxy"
    env = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-trimpath"}
    built = subprocess.run(["go", "build", "-o", str(binary), "."], cwd=source, env=env, capture_output=True, text=True)
    return binary, None if built.returncode == 0 else f"go build failed: {built.stderr.strip()[-200:]}"


def candidates(folder: Path) -> list[Candidate]:
    """All proxies, in the order of the tables."""
    binary, no_go = build_go(folder)
    one_core = (("GOMAXPROCS", "1"),)
    no_nginx = None if shutil.which("nginx") else "nginx is not installed."
    no_haproxy = None if shutil.which("haproxy") else "HAProxy is not installed."

    def nginx(extra: str) -> Callable[[Path, int, int], Sequence[str]]:
        return lambda own, port, target: _nginx(_PROXY, own, port=port, target=target, extra=extra)

    return [
        Candidate("relay", "freeze-proxy, gate at work", _relay("gate")),
        Candidate("relay-off", "freeze-proxy, not freezing", _relay("off")),
        Candidate("nginx", "nginx", nginx(""), missing=no_nginx),
        Candidate("nginx-buffers", "nginx, large buffers", nginx(LARGE_BUFFERS), ("64k", "1m"), missing=no_nginx),
        Candidate("haproxy", "HAProxy", _haproxy, missing=no_haproxy),
        Candidate("go", "Go ReverseProxy", _go(binary), missing=no_go, env=one_core),
        Candidate("go-pool", "Go, 256 idle connections", _go(binary, 256), ("small-16",), no_go, one_core),
    ]


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of the run's own, in memory where there is a tmpfs, that nginx's workers can read."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="freeze-proxy-bench-", dir=base) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def backend_command(own: Path, port: int) -> Sequence[str]:
    """The command line of the server behind the proxies: nginx with one worker, in a folder of its own."""
    files = own / "files"
    files.mkdir(parents=True)
    for name, size in {**SIZES, "4k": 4096}.items():
        (files / name).write_bytes(os.urandom(size))
    return _nginx(_BACKEND, own, port=port, small=SMALL.decode().replace("\n", "\\n"))


@contextlib.contextmanager
def backend(folder: Path, port: int) -> Iterator[None]:
    """The server behind the proxies, on the core of the load."""
    with running(backend_command(folder / "backend", port), core=LOAD_CORE):
        wait_until(lambda: listening(port), 10, "the backend to listen")
        yield


@contextlib.contextmanager
def proxy(candidate: Candidate, folder: Path, port: int, target: int) -> Iterator[subprocess.Popen[bytes]]:
    """A candidate at work on the proxy's core."""
    own = folder / candidate.name
    own.mkdir(exist_ok=True)
    env = os.environ | dict(candidate.env)
    output = subprocess.DEVNULL
    with running(candidate.command(own, port, target), core=PROXY_CORE, env=env, stdout=output) as process:
        wait_until(lambda: listening(port), 10, f"{candidate.title} to listen")
        yield process
