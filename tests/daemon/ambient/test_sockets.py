"""What /proc tells of sockets agrees with what netlink tells, and with who has opened them."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from freeze_proxy.ambient.sockets import Seen, Sockets
from freeze_proxy.daemon.ambient import sockets
from freeze_proxy.freezers import FreezeError
from tests.support.ambience import made_cgroup, need_ambient, running_in
from tests.support.wait import until


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener, a client and its connection at the server's."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((request.param, 0))
        listener.listen()
        client = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        yield listener, client, stack.enter_context(listener.accept()[0])


def test_they_agree(ends: tuple[socket.socket, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_MOST_BYTES", 1 << 30)  # other tests may have closed thousands
    listener, client, _ = ends
    port = listener.getsockname()[1]
    netlink, here = Sockets((port,)), sockets.PodSockets((port,), os.getpid())
    assert here.open() == netlink.open() != []
    assert here.look() == netlink.look() == Seen(True, frozenset(netlink.open()), frozenset())
    client.sendall(b"hello")
    until(lambda: netlink.look().waiting, "the bytes have come")
    ((_, count),) = here.look().waiting
    assert count == 5
    assert here.look() == netlink.look()
    with socket.create_connection(listener.getsockname()[:2]):
        until(lambda: len(netlink.look().waiting) == 2, "another one waits to be accepted")
        assert here.look() == netlink.look()
    netlink.close()
    here.close()
    assert port in sockets.listening(os.getpid())
    client.close()


def test_more_than_can_be_looked_at_is_not_taken_for_all(
    ends: tuple[socket.socket, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a connection that is missing among them would count as closed, and its request as over."""
    port = ends[0].getsockname()[1]
    here = sockets.PodSockets((port,), os.getpid())
    monkeypatch.setattr(sockets, "_MOST_BYTES", 100)
    with pytest.raises(FreezeError, match="too many sockets"):
        here.open()
    with pytest.raises(FreezeError, match="too many sockets"):
        here.look()


def test_nobody_listens_in_a_process_that_is_gone() -> None:
    assert sockets.listening(1 << 22) == {}
    assert sockets.of("/nowhere", {}) == frozenset()
    assert sockets.PodSockets((80,), 1 << 22).open() == []


def test_only_a_containers_own_ports_are_its_own() -> None:
    need_ambient()
    with made_cgroup() as place, socket.create_server(("127.0.0.1", 0)) as other:
        told, heard = os.pipe()

        def serve() -> None:
            with (
                socket.create_server(("127.0.0.1", 0)) as tcp,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
            ):
                udp.bind(("127.0.0.1", 0))
                client.connect(("127.0.0.1", 9))
                ports = [each.getsockname()[1] for each in (tcp, udp, client)]
                os.write(heard, " ".join(map(str, ports)).encode())
                tcp.accept()

        port_of_another = other.getsockname()[1]

        def alone() -> None:
            other.close()
            serve()

        with running_in(place, alone) as pid:
            tcp, udp, _client = map(int, os.read(told, 100).split())
            found = sockets.of(place, sockets.listening(pid))
            assert tcp in found
            assert port_of_another not in found
            # A datagram socket whose port the kernel has chosen is a client's, as a rule.
            assert (udp in found) == (udp < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
        os.close(told)
        os.close(heard)
