"""What freeze-proxy says, and that saying it never stands in the way."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.proxies import SERVER, Proxies, Proxy
from tests.support.wait import until

PROMPT = 1.0
"""Seconds in which any request must be answered, even on a busy machine; a stall would be for ever."""


def test_json_lines(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--log-format", "json"])
    first = proxy.event("frozen")
    proxy.get()
    second = proxy.event("frozen", 1)
    thawed = proxy.event("thawed")
    assert first["monotonic"] < thawed["monotonic"] < second["monotonic"] < time.monotonic()
    assert 0 <= thawed["waited_us"] < 1e6
    assert 0 <= first["took_us"] < 1e6
    assert proxy.end() == 143
    assert [event["event"] for event in proxy.events()] == ["start", "frozen", "thawed", "frozen", "thawed", "end"]
    for event in proxy.events():
        when = datetime.fromisoformat(event["time"])
        assert when.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert all(line.startswith("{") for line in proxy.err().splitlines())


def test_auto_is_json_and_the_table_elsewhere_than_on_a_terminal(proxies: Proxies) -> None:
    proxy = proxies.run()
    assert proxy.start
    proxy.await_frozen()
    proxy.end()
    lines = proxy.err().splitlines()
    assert [json.loads(line)["event"] for line in lines[:4]] == ["start", "frozen", "thawed", "end"]
    assert lines[4].strip() == "freeze-proxy"
    assert any("share of time frozen" in line for line in lines)


def test_text(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--log-format", "text"])
    until(lambda: "frozen (in" in proxy.err(), "it is frozen")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    said = proxy.err()
    assert re.search(r"^freeze-proxy: frozen \(in \d+\.\d\d ms\)$", said, re.MULTILINE)
    assert re.search(r"^freeze-proxy: thawed$", said, re.MULTILINE)
    assert "share of time frozen" in said
    assert re.search(r"thaw, p50 +│ +– │", said)  # no request has waited
    assert "{" not in said


def test_none(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--log-format", "none"])
    proxy.say("serving")
    until(lambda: proxy.cgroups() and _frozen(proxy.cgroups()[0]), "it is frozen")
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    assert proxy.err() == ""
    proxy.assert_nothing_left()


def _frozen(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.events", encoding="ascii") as file:
            return "frozen 1" in file.read()
    except OSError:
        return False


# Nobody reads.


def _keep_asking(proxy: Proxy, port: int, turns: int = 30) -> None:
    """Requests with a freeze between any two, each of which is a line or two to say."""
    for _ in range(turns):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET /here HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(1000).endswith(b"/here")
        assert time.monotonic() - began < PROMPT
        until(lambda: _frozen(proxy.cgroups()[0]), "it is frozen")


def _port(tmp: str) -> int:
    return int(json.loads(tmp)["listen"].rpartition(":")[2])


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_log_that_nobody_reads(proxies: Proxies, kind: str) -> None:
    """A pipe or a socket that is full. What could not be said is counted, and the server is not made to wait."""
    if kind == "pipe":
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    else:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        read, write = ours.detach(), theirs.detach()
    proxy = proxies.run(options=["--grace", "2ms", "--log-format", "json"], stderr=write)
    os.close(write)
    try:
        start = b""
        while not start.endswith(b"\n"):
            start += os.read(read, 1)
        _keep_asking(proxy, _port(start.decode()), turns=60)
        said = b""
        while b'"dropped"' not in said:
            said += os.read(read, 65536)
            _keep_asking(proxy, _port(start.decode()), turns=1)
        dropped = next(line for line in said.splitlines() if b'"dropped"' in line)
        assert json.loads(dropped)["dropped"] > 10
        assert all(isinstance(json.loads(line), dict) for line in said.splitlines()[:-1])  # no line is cut
    finally:
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 143
        assert time.monotonic() - began < 3
        os.close(read)


def test_at_the_end_nobody_reads(proxies: Proxies) -> None:
    """It waits a second for a reader of the table, and then ends all the same."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    proxy = proxies.run(options=["--grace", "2ms"], stderr=write)
    start = b""
    while not start.endswith(b"\n"):
        start += os.read(read, 1)
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write, b"x" * 512):
            pass
    os.close(write)
    _keep_asking(proxy, _port(start.decode()), turns=3)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait(5) == 143
    proxy.assert_nothing_left()
    os.close(read)


def test_the_reader_goes_away(proxies: Proxies) -> None:
    read, write = os.pipe()
    proxy = proxies.run(stderr=write)
    os.close(write)
    start = b""
    while not start.endswith(b"\n"):
        start += os.read(read, 1)
    os.close(read)
    _keep_asking(proxy, _port(start.decode()), turns=5)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 143
    proxy.assert_nothing_left()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-"])
def test_closed_descriptors(proxies: Proxies, closed: str) -> None:
    """They stay closed for the server, and none of ours takes their place in it."""
    words = ["handle=5"] if ">&-" not in closed.replace("2>&-", "") else []
    proxy = proxies.run(*words, wrap=["sh", "-c", f'exec "$@" {closed}', "sh"])
    until(lambda: proxy.cgroups() and _frozen(proxy.cgroups()[0]), "it is frozen")
    with open(f"{proxy.cgroups()[0]}/cgroup.procs", encoding="ascii") as file:
        server = int(file.read())
    descriptors = set(os.listdir(f"/proc/{server}/fd"))
    gone = {number for number, word in (("0", "<&-"), ("1", " >&-"), ("2", "2>&-")) if word in f" {closed}"}
    names = {number: os.readlink(f"/proc/{server}/fd/{number}") for number in descriptors & gone}
    # The server itself may have opened something since, such as the socket that it listens on.
    assert all(name.startswith("socket:") for name in names.values()), names
    assert sum(os.readlink(f"/proc/{server}/fd/{number}").startswith("socket:") for number in descriptors) == 1
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == (5 if words else 143)
    proxy.assert_nothing_left()


def test_a_log_file_is_appended_to(proxies: Proxies) -> None:
    """A file is not opened anew: both write where the other has ended."""
    proxy = proxies.run(command=["sh", "-c", 'echo first >&2; exec "$@"', "sh", *SERVER])
    assert proxy.start
    proxy.await_frozen()
    assert proxy.err().startswith("first\n{")
    proxy.end()
    assert proxy.err().startswith("first\n{")
    assert "share of time frozen" in proxy.err()
