"""``sidecar/listeners.py``: the sockets that listen on a port, as the kernel has them."""

import os
import socket

import pytest

from freeze_proxy.sidecar import listeners
from freeze_proxy.sidecar.listeners import listening
from tests.support.ports import LOOPBACK, free_port


def inode(of: socket.socket) -> int:
    return os.fstat(of.fileno()).st_ino


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, LOOPBACK), (socket.AF_INET6, "::")])
def test_who_listens_is_seen_by_its_inode(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listening(port) == {inode(server)}
        with socket.create_connection(("::1" if host == "::" else host, port)), server.accept()[0]:
            assert listening(port) == {inode(server)}, "connections are none"
    assert listening(port) == frozenset()


def test_all_who_share_a_port_are_seen_and_another_has_another_inode() -> None:
    with socket.create_server((LOOPBACK, 0), reuse_port=True) as one:
        port = one.getsockname()[1]
        with socket.create_server((LOOPBACK, port), reuse_port=True) as other:
            assert listening(port) == {inode(one), inode(other)}
        assert listening(port) == {inode(one)}


def test_nobody() -> None:
    assert listening(free_port()) == frozenset()


def test_where_the_kernel_has_no_tables_nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_TABLES", ("/nonexistent", "/dev/null"))
    assert listening(80) == frozenset()
