"""A real queue-proxy before a server, and what the rule of ``daemon/ambient/idle.py`` makes of its reports.

``python -m tests.cluster.reports QUEUE``, in a network of its own: its ports are fixed. Prints a line of JSON a look:
seconds, whether the server has a request, whether the rule says that none is in flight.
"""

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from freeze_proxy.daemon.ambient.idle import Proof
from freeze_proxy.daemon.ambient.statistics import Silent, Statistics

SERVER, QUEUE = 8080, 8012
REQUESTS = ((4.0, 0.0), (7.5, 3.0), (14.0, 0.3))
"""When they begin and how long they take, in seconds."""
LASTS, LOOK_EVERY = 18.0, 0.5

_ENVIRONMENT = {
    "CONTAINER_CONCURRENCY": "0",
    "QUEUE_SERVING_PORT": str(QUEUE),
    "QUEUE_SERVING_TLS_PORT": "8112",
    "USER_PORT": str(SERVER),
    "REVISION_TIMEOUT_SECONDS": "300",
    "SERVING_LOGGING_CONFIG": "",
    "SERVING_LOGGING_LEVEL": "",
    "SERVING_CONFIGURATION": "configuration",
    "SERVING_NAMESPACE": "namespace",
    "SERVING_POD": "pod",
    "SERVING_POD_IP": "127.0.0.1",
    "SERVING_REVISION": "revision",
    "SERVING_SERVICE": "service",
    "SERVING_READINESS_PROBE": json.dumps({"tcpSocket": {"port": SERVER, "host": "127.0.0.1"}}),
    "OBSERVABILITY_CONFIG": "{}",
    "HOST_IP": "127.0.0.1",
    "SYSTEM_NAMESPACE": "knative-serving",
}


class Server:
    """Answers after the seconds that the path says; ``packets`` counts heads of requests, as a program would.

    ``open``: how many it has and has not answered.
    """

    def __init__(self) -> None:
        self.packets = self.open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.packets += 1
                self.open += 1
                await asyncio.sleep(float(head.split()[1].strip(b"/") or 0))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                self.open -= 1
        writer.close()


@contextlib.contextmanager
def queue_proxy(program: str) -> Iterator[None]:
    """One that runs."""
    process = subprocess.Popen([program], env=os.environ | _ENVIRONMENT, stdout=sys.stderr)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _get(seconds: float) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", QUEUE, timeout=30)
    connection.request("GET", f"/{seconds}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


async def main(program: str) -> None:
    """Look until the end."""
    server, statistics, proof = Server(), Statistics(), Proof()
    await asyncio.start_server(server.answer, "127.0.0.1", SERVER)
    began, to_come = time.monotonic(), list(REQUESTS)
    under_way: list[asyncio.Task[int]] = []
    with queue_proxy(program):
        while (now := time.monotonic() - began) < LASTS:
            while to_come and now >= to_come[0][0]:
                under_way.append(asyncio.create_task(asyncio.to_thread(_get, to_come.pop(0)[1])))
            proof.asking(server.packets)
            try:
                proof.heard(await statistics.of("127.0.0.1"))
            except Silent:
                proof.again()
            print(json.dumps([round(now, 2), server.open > 0, proof.holds(server.packets)]), flush=True)
            for task in [task for task in under_way if task.done()]:
                assert await task == 200
                under_way.remove(task)
            await asyncio.sleep(LOOK_EVERY)
    await statistics.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
