"""What connections leave behind in the relay once they are closed: nothing that waits, and nothing to collect."""

import gc

from freeze_proxy.connection import Connection
from freeze_proxy.gate import Settings
from tests.support.house import House, Upstream, read_exactly, read_to_end
from tests.support.wait import until

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
MANY = 50


def test_closed_connections_leave_one_timer_and_no_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        with Upstream() as upstream, House(upstream.port, Settings(grace=3600.0)) as house:
            for _ in range(MANY):
                with house.client() as client:
                    client.sendall(GET)
                    with upstream.accept() as server:
                        read_exactly(server, len(GET))
                        server.sendall(OK)
                    assert read_to_end(client) == OK
            until(lambda: not house.connections(), "the relay has closed all connections")
            left = [one for one in gc.get_objects() if isinstance(one, Connection)]
            assert len(left) < MANY / 2, "they wait for the collector"
            timers = house.on_loop(lambda: len(house.loop._timers))
            assert timers < MANY / 2, "each has left a timer behind"
    finally:
        gc.enable()
