"""What the tests of ``freeze-proxy attach`` to containers share."""

import http.client
import threading
from concurrent.futures import Future

from tests.support.cluster.ticking import Command
from tests.support.ports import LOOPBACK
from tests.support.proxies import Proxy


def web(port: int) -> Command:
    """A web server that says hello, and ends well when it is told to."""
    return (
        "sh",
        "-c",
        'trap "echo terminated; exit 0" TERM; echo hello >/tmp/index.html; '
        f"httpd -f -p {LOOPBACK}:{port} -h /tmp & echo started; wait $!",
    )


def get_later(proxy: Proxy) -> Future[bytes]:
    """A request in a thread of its own; the future has the answer's body, or why there is none."""
    port, future = proxy.port, Future[bytes]()

    def get() -> None:
        client = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
        try:
            client.request("GET", "/")
            answer = client.getresponse()
            assert answer.status == 200, answer.status
            future.set_result(answer.read())
        except BaseException as error:
            future.set_exception(error)
        finally:
            client.close()

    threading.Thread(target=get, daemon=True).start()
    return future
