"""HTTP to a container runtime that listens at a unix socket, every call bounded in time."""

from freeze_proxy.freezers import FreezeError
from freeze_proxy.freezers.runtime import EXTRA, PATIENCE, Shared, unreachable

try:
    import httpx2
except ImportError as error:
    raise FreezeError(f"Docker and CRI-O are asked by the library httpx2, which is not installed: {EXTRA}.") from error


def _client(socket: str) -> httpx2.Client:
    # Nothing is encrypted: without verify=False all certificates of the machine would be read.
    transport = httpx2.HTTPTransport(uds=socket, verify=False)
    return httpx2.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE, trust_env=False)


_clients = Shared(_client)


class UnixHttp:
    """A runtime, named as it is spoken of, at its socket."""

    def __init__(self, runtime: str, socket: str) -> None:
        self._runtime = runtime
        self._socket = socket
        self._client = _clients.take(socket)
        self._closed = False

    def ask(self, method: str, path: str) -> httpx2.Response:
        """The answer, whatever its status. Raises ``FreezeError`` where there is none."""
        try:
            try:
                return self._client.request(method, path)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # A kept connection that the runtime has closed since: it has ended, and perhaps been started again.
                return self._client.request(method, path)
        except httpx2.TimeoutException as error:
            raise unreachable(self._runtime, self._socket, TimeoutError()) from error
        except httpx2.HTTPError as error:
            raise unreachable(self._runtime, self._socket, error) from error

    def close(self) -> None:
        """Gives the connection back."""
        if not self._closed:
            self._closed = True
            _clients.give_back(self._socket)
