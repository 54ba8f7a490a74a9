"""``sidecar/listeners.py``: the sockets that listen on a port, as the kernel has them."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from freeze_proxy.sidecar import listeners
from freeze_proxy.sidecar.listeners import _asked, _read, listening
from tests.support.ports import LOOPBACK, free_port


def inode(of: socket.socket) -> int:
    return os.fstat(of.fileno()).st_ino


@pytest.mark.parametrize("listening", [_asked, _read])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, LOOPBACK), (socket.AF_INET6, "::")])
def test_who_listens_is_seen_by_its_inode(
    family: socket.AddressFamily, host: str, listening: Callable[[int], frozenset[int]]
) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listening(port) == {inode(server)}
        with socket.create_connection(("::1" if host == "::" else host, port)), server.accept()[0]:
            assert listening(port) == {inode(server)}, "connections are none"
    assert listening(port) == frozenset()


@pytest.mark.parametrize("listening", [_asked, _read])
def test_all_who_share_a_port_are_seen_and_another_has_another_inode(
    listening: Callable[[int], frozenset[int]],
) -> None:
    with socket.create_server((LOOPBACK, 0), reuse_port=True) as one:
        port = one.getsockname()[1]
        with socket.create_server((LOOPBACK, port), reuse_port=True) as other:
            assert listening(port) == {inode(one), inode(other)}
        assert listening(port) == {inode(one)}


@pytest.mark.parametrize("listening", [_asked, _read])
def test_nobody(listening: Callable[[int], frozenset[int]]) -> None:
    assert listening(free_port()) == frozenset()


def test_many_who_listen_do_not_hide_one() -> None:
    """More than one part of an answer, and more than one read of a table."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((LOOPBACK, 0), reuse_port=True))]
        port = servers[0].getsockname()[1]
        servers += [stack.enter_context(socket.create_server((LOOPBACK, port), reuse_port=True)) for _ in range(400)]
        assert _asked(port) == _read(port) == set(map(inode, servers))


def test_a_pod_that_may_not_ask_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_BY_FAMILY", 99)
    with pytest.raises(OSError, match="sock_diag"):
        _asked(80)
    with socket.create_server((LOOPBACK, 0)) as server:
        assert listening(server.getsockname()[1]) == {inode(server)}


def test_where_the_kernel_has_no_tables_nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_TABLES", ("/nonexistent", "/dev/null"))
    assert _read(80) == frozenset()


def test_a_frozen_server_is_looked_at_in_no_time_whatever_the_nodes_size() -> None:
    """A probe may come every 50 ms, and has to be answered within 100: the tables took longer on a busy node."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        began = time.thread_time()
        for _ in range(20):
            listening(port)
        assert (time.thread_time() - began) / 20 < 0.003
