"""The real servers that the tests put behind freeze-proxy. All of them listen on ``$PORT``."""

import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.needs import need_program

_HERE = Path(__file__).parents[1] / "traffic" / "servers"

Command = list[str]


def http_server(_tmp_path: Path) -> Command:
    """Python's http.server, with threads."""
    return [sys.executable, "-m", "tests.traffic.servers.http_server"]


def uvicorn(_tmp_path: Path) -> Command:
    # The shell puts the port in; exec makes the server take its place.
    run = f'exec {sys.executable} -m uvicorn --port "$PORT" --log-level warning --lifespan off'
    return ["sh", "-c", f"{run} tests.traffic.servers.asgi:app"]


def gunicorn(_tmp_path: Path) -> Command:
    """Two worker processes with threads, and a long keep-alive."""
    run = f'exec {sys.executable} -m gunicorn --bind "127.0.0.1:$PORT" --log-level warning'
    workers = "--workers 2 --worker-class gthread --threads 8 --keep-alive 60 --worker-tmp-dir /dev/shm"
    return ["sh", "-c", f"{run} {workers} tests.traffic.servers.wsgi:app"]


def node(_tmp_path: Path) -> Command:
    return [need_program("node", "nodejs"), str(_HERE / "node.js")]


def nginx_h2c(tmp_path: Path) -> Command:
    """nginx that speaks HTTP/2 with prior knowledge, and nothing else."""
    return nginx(tmp_path, "http2")


def grpc_server(_tmp_path: Path) -> Command:
    return [sys.executable, "-m", "tests.traffic.servers.grpc_server"]


def websocket_server(_tmp_path: Path) -> Command:
    return [sys.executable, "-m", "tests.traffic.servers.websocket_server"]


def ticker(_tmp_path: Path) -> Command:
    """Prints the time every 20 ms, whatever else happens."""
    return [sys.executable, "-m", "tests.traffic.servers.ticker"]


def nginx(tmp_path: Path, protocol: str = "") -> Command:
    """A master and two workers, with their own directory for each start."""
    program = need_program("nginx", "nginx-light")
    root = tmp_path / "nginx"
    files = root / "files"
    files.mkdir(parents=True, exist_ok=True)
    for size in (0, 10, 100_000, 1_000_000):
        path = files / f"fixed-{size}"
        if not path.exists():
            path.write_bytes((b"0123456789abcde\n" * (size // 16 + 1))[:size])
    big = files / "big"
    if not big.exists():
        with big.open("wb") as file:
            file.truncate(1 << 30)  # sparse: costs no disk
    template = (_HERE / "nginx.conf").read_text().replace("@FILES@", str(files)).replace("@PROTOCOL@", protocol)
    (root / "template").write_text(template)
    make = f'd=$(mktemp -d {root}/run-XXXXXX); sed -e "s|@PORT@|$PORT|g" -e "s|@ROOT@|$d|g" {root}/template > $d/conf'
    return ["sh", "-c", f"{make}; exec {program} -p $d -c $d/conf"]


SERVERS: dict[str, Callable[[Path], Command]] = {
    "http.server": http_server,
    "uvicorn": uvicorn,
    "gunicorn": gunicorn,
    "node": node,
    "nginx": nginx,
}
