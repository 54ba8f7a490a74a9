"""A real server in a real cgroup, its packets seen by the program in the kernel."""

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from freeze_proxy.ambient import Watch, Watcher
from freeze_proxy.ambient.bpf import BpfError, attached
from freeze_proxy.ambient.program import ACK, ENDS, FROM_SERVER, HEADER, KIND_AT, LEAVES, WAKES
from tests.support.ambience import frozen, made_cgroup, need_ambient, running_in
from tests.support.wait import until

WAKE_PATIENCE = 5.0


@pytest.fixture(autouse=True)
def _possible() -> None:
    need_ambient()


class Server:
    """One that says ``pong`` to whatever it is sent, by TCP and UDP, over one family, in a cgroup that is watched."""

    def __init__(self, stack: ExitStack, host: str, observe: bool, ends: bool = False) -> None:
        self.host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.cgroup = stack.enter_context(made_cgroup())
        ready, told = socket.socketpair()
        stack.enter_context(ready)

        def serve() -> None:
            with socket.create_server((host, 0), family=family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
                port = tcp.getsockname()[1]
                udp.bind((host, port))
                told.sendall(str(port).encode())
                poll, connections = select.poll(), {}
                poll.register(tcp, select.POLLIN)
                poll.register(udp, select.POLLIN)
                while True:
                    for fd, _ in poll.poll():
                        if fd == tcp.fileno():
                            connection, _ = tcp.accept()
                            connections[connection.fileno()] = connection
                            poll.register(connection, select.POLLIN)
                        elif fd == udp.fileno():
                            udp.sendto(b"pong", udp.recvfrom(100)[1])
                        else:
                            asked = b""
                            with suppress(ConnectionResetError):
                                asked = connections[fd].recv(1 << 16)
                            if asked:
                                connections[fd].sendall(b"pong")
                            if asked in (b"", b"the last"):
                                poll.unregister(fd)
                                connections.pop(fd).close()

        stack.enter_context(running_in(self.cgroup, serve))
        told.close()
        self.port = int(ready.recv(10))
        self.records: list[bytes | None] = []
        self.watcher = Watcher()
        stack.callback(self.watcher.close)
        self.watch: Watch = self.watcher.watch(self.cgroup, (self.port,), self.records.append, observe, ends)
        stack.callback(self.watch.close)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=WAKE_PATIENCE)

    def ping(self, client: socket.socket) -> None:
        client.sendall(b"ping")
        assert client.recv(100) == b"pong"

    def woken(self, within: float = WAKE_PATIENCE) -> bool:
        """Whether the watcher is told of a packet."""
        poll = select.poll()
        poll.register(self.watcher.fd, select.POLLIN)
        return bool(poll.poll(within * 1e3)) and self.watcher.read() > 0


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with ExitStack() as stack:
        yield Server(stack, request.param, observe=False)


def _datagram(server: Server) -> Callable[[], None]:
    client = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET, socket.SOCK_DGRAM)
    client.sendto(b"ping", (server.host, server.port))
    return client.close


def _ping(client: socket.socket) -> Callable[[], object]:
    client.send(b"ping")
    return lambda: client.recv(100)


def test_a_connection_a_request_and_a_datagram_wake_a_frozen_server(server: Server) -> None:
    with server.connect() as client:
        server.ping(client)
        sends: list[Callable[[], Callable[[], object]]] = [
            lambda: server.connect().close,
            lambda: _ping(client),
            lambda: _datagram(server),
        ]
        for send in sends:
            server.watcher.read()
            server.watch.arm()
            with frozen(server.cgroup) as freezer:
                before = server.watch.packets
                finish = send()
                assert server.woken()
                assert server.watch.packets > before
                freezer.thaw()
                server.watch.disarm()
                finish()


def test_nobody_is_told_while_the_watch_is_not_armed_but_packets_are_counted(server: Server) -> None:
    with server.connect() as client:
        for _ in range(10):
            server.ping(client)
    assert not server.records
    assert server.watch.packets == 11  # a SYN and ten pings
    assert not server.woken(0.0)


def test_keep_alives_do_not_wake(server: Server) -> None:
    with server.connect() as client:
        server.ping(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        server.watch.arm()
        with frozen(server.cgroup):
            before = server.watch.packets
            assert not server.woken(1.3)  # one has been sent, and answered
            assert server.watch.packets == before
            client.shutdown(socket.SHUT_WR)
            client.close()
            assert not server.woken(0.05)


def test_who_is_woken_is_let_run_before_anybody_is_told() -> None:
    with ExitStack() as stack:
        server = Server(stack, "127.0.0.1", observe=False)
        runs = [True, False]
        server.watch.close()
        watch = server.watcher.watch(server.cgroup, (server.port,), server.records.append, hurry=lambda: runs.pop(0))
        stack.callback(watch.close)
        watch.arm()
        assert server.watcher.hasten(), "nothing has come"
        with server.connect() as client:
            assert server.watcher.hasten()
            assert (runs, server.records) == ([False], [])
            server.ping(client)
            assert not server.watcher.hasten()
            assert (runs, server.records) == ([], [])
        assert server.watcher.read() == 2
        assert [None if record is None else record[KIND_AT] for record in server.records] == [WAKES, WAKES]
        assert server.watcher.read() == 0


def test_who_is_told_may_have_the_rest_read_and_the_order_stays() -> None:
    with ExitStack() as stack:
        server = Server(stack, "127.0.0.1", observe=False)
        server.watch.close()
        told: list[int] = []

        def tell(record: bytes | None) -> None:
            assert record is not None
            told.append(struct.unpack_from(HEADER, record)[3])
            server.watcher.read()

        watch = server.watcher.watch(server.cgroup, (server.port,), tell)
        stack.callback(watch.close)
        watch.arm()
        with server.connect() as client:
            for size in (1, 2, 3):
                client.sendall(b"x" * size)
                assert client.recv(100) == b"pong"
                if size == 2:
                    server.watcher.hasten()
        assert server.watcher.read() == 1
        assert told == [0, 1, 2, 3]


def test_where_only_what_wakes_is_waited_for_the_rest_is_told_of_and_wakes_nobody() -> None:
    with ExitStack() as stack:
        server = Server(stack, "127.0.0.1", observe=True)
        leaving, staying = server.connect(), stack.enter_context(server.connect())
        server.watcher.read()
        poll = stack.enter_context(select.epoll())
        poll.register(server.watcher.fd, select.EPOLLIN | select.EPOLLET)
        server.watch.arm(WAKES)
        with frozen(server.cgroup):
            before = server.watch.packets
            leaving.close()
            until(lambda: server.watch.packets > before, "it is counted")
            assert not poll.poll(0.05)
            staying.send(b"ping")
            assert poll.poll(WAKE_PATIENCE)
            server.watcher.read()
            kinds = [record[KIND_AT] for record in server.records if record]
            assert kinds[-2:] == [LEAVES, WAKES]


@pytest.mark.parametrize("offset", [-1, -4, 0])
def test_a_keep_alive_with_a_byte_and_a_repetition_do_not_wake_and_new_bytes_do(offset: int) -> None:
    """Made by hand, past the client's own TCP: some systems' keep-alives carry the byte before the expected one."""
    with ExitStack() as stack:
        server = Server(stack, "127.0.0.1", observe=True)
        client = stack.enter_context(server.connect())
        server.ping(client)
        server.watcher.read()
        heads = [struct.unpack_from(HEADER, record) for record in server.records if record is not None]
        expected, acknowledged = (
            max((head[2] + head[3]) & 0xFFFFFFFF for head in heads if bool(head[5] & FROM_SERVER) == from_server)
            for from_server in (False, True)
        )
        raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
        server.watch.arm()
        with frozen(server.cgroup):
            before = server.watch.packets
            ports = struct.pack(">HH", client.getsockname()[1], server.port)
            rest = struct.pack(">IIBBH", expected + offset, acknowledged, 0x50, ACK, 1000)
            segment = ports + rest + b"\0\0\0\0" + b"x"
            checksum = _checksum(socket.inet_aton("127.0.0.1") * 2 + struct.pack(">BBH", 0, 6, len(segment)) + segment)
            raw.sendto(segment[:16] + checksum + segment[18:], ("127.0.0.1", 0))
            assert server.woken(0.05 if offset else WAKE_PATIENCE) == (offset == 0)
            assert server.watch.packets - before == (offset == 0)


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def test_other_ports_of_the_cgroup_do_not_matter_unless_all_do(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, made_cgroup() as path:
        seen: list[bytes | None] = []
        done, theirs = socket.socketpair()

        def talk() -> None:
            theirs.recv(1)
            with socket.create_connection(other.getsockname()) as client:
                client.recv(100)
            theirs.send(b"x")

        with running_in(path, talk):
            watcher = Watcher(servers=2)
            one = watcher.watch(path, (server.port,), seen.append)
            all_ = watcher.watch(path, (), seen.append)
            one.arm()
            all_.arm()
            done.send(b"x")
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"hello")
                done.recv(1)
            until(lambda: watcher.read() or seen, "somebody is told")
            assert one.packets == 0
            assert all_.packets == 2  # the SYN with its ACK, and the bytes
            one.close()
            all_.close()
            watcher.close()


def test_the_programs_go_with_the_watch(server: Server) -> None:
    directory = os.open(server.cgroup, os.O_RDONLY)
    try:
        assert len(attached(directory, 0)) == 1
        server.watch.close()
        assert not attached(directory, 0)
        with server.connect() as client:
            server.ping(client)
    finally:
        os.close(directory)


def test_what_cannot_be_watched_is_refused_with_a_sentence() -> None:
    watcher = Watcher()
    try:
        with pytest.raises(BpfError, match="cannot be opened: No such file"):
            watcher.watch("/sys/fs/cgroup/nowhere", (80,), lambda _record: None)
        with pytest.raises(BpfError, match="can be attached"):
            watcher.watch("/tmp", (80,), lambda _record: None)
        with made_cgroup() as path:
            watch = watcher.watch(path, (80,), lambda _record: None)
            with pytest.raises(BpfError, match="More than 1 servers"):
                watcher.watch(path, (80,), lambda _record: None)
            watch.close()
            watcher.watch(path, (80,), lambda _record: None).close()
    finally:
        watcher.close()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("end", [socket.socket.close, _reset, lambda client: client.sendall(b"the last")])
def test_it_is_told_that_the_server_has_closed_a_connection(host: str, end: Callable[[socket.socket], None]) -> None:
    """Whoever was the first to; and of no other."""
    with ExitStack() as stack:
        server = Server(stack, host, observe=False, ends=True)

        def ends() -> set[bytes]:
            server.watcher.read()
            return {record[24:60] for record in server.records if record and record[KIND_AT] & ENDS}

        server.watch.arm()
        with server.connect() as kept, server.connect() as client:
            name = client.getsockname()
            for each in (kept, client):
                server.ping(each)
            assert not ends()
            before = server.watch.packets
            end(client)
            (key,) = until(ends, "it is told of")
            assert int.from_bytes(key[32:34], "big") == name[1]
            assert server.watch.packets - before == (client.fileno() >= 0)  # the bytes of the last request
            server.ping(kept)
            server.watcher.read()
            server.watch.disarm()
        assert server.watcher.read() == 0, "nobody waits for the end of that"
