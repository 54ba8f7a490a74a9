"""Freezing a container through containerd's Tasks service.

gRPC is spoken by grpclib, which is asynchronous: for each socket one thread with a loop of its own carries out the
calls of all freezers. The connection is made at the first call, and anew when containerd has been started again.

Field numbers are those of containerd's api/services/tasks/v1/tasks.proto, api/services/namespaces/v1/namespace.proto
and api/types/task/task.proto.
"""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from freeze_proxy.freezers import FreezeError, Gone
from freeze_proxy.freezers.runtime import EXTRA, PATIENCE, Refused, RuntimeFreezer, Seen, Shared, unreachable

try:
    from grpclib.client import Channel
    from grpclib.const import Status
    from grpclib.exceptions import GRPCError

    from freeze_proxy.protobuf import Service, Table, classes
except ImportError as error:
    raise FreezeError(
        f"containerd is asked by the libraries grpclib and protobuf, which are not installed: {EXTRA}."
    ) from error

SOCKET = "/run/containerd/containerd.sock"
"""Where containerd listens by default."""
_RUNNING, _STOPPED, _PAUSED, _PAUSING = 2, 3, 4, 5
"""Of a task's states; 0 is unknown, 1 created."""

_TABLE: Table = {
    "Empty": {},
    "Task": {"container_id": (1, "string"), "id": (2, "string"), "pid": (3, "uint32"), "status": (4, "int32")},
    "OfTask": {"container_id": (1, "string")},
    "GetResponse": {"process": (1, "Task")},
    "ListTasksRequest": {"filter": (1, "string")},
    "ListTasksResponse": {"tasks": (1, "repeated Task")},
    "ListNamespacesRequest": {"filter": (1, "string")},
    "Namespace": {"name": (1, "string")},
    "ListNamespacesResponse": {"namespaces": (1, "repeated Namespace")},
}
_MESSAGES = classes("freeze_proxy.containerd", _TABLE)
_TASKS = Service(
    "containerd.services.tasks.v1.Tasks",
    _MESSAGES,
    {
        "Get": ("OfTask", "GetResponse"),
        "Pause": ("OfTask", "Empty"),
        "Resume": ("OfTask", "Empty"),
        "List": ("ListTasksRequest", "ListTasksResponse"),
    },
)
_NAMESPACES = Service(
    "containerd.services.namespaces.v1.Namespaces",
    _MESSAGES,
    {"List": ("ListNamespacesRequest", "ListNamespacesResponse")},
)


class _Line:
    """The thread that speaks to the containerd at one socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._channel: Channel | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="containerd", daemon=True)
        self._thread.start()

    def call(self, service: Service, method: str, fields: Mapping[str, Any], namespace: str | None = None) -> Any:
        """The response. Raises ``Gone`` for what is not there, ``Refused``, and ``FreezeError`` where there is none."""
        work = asyncio.run_coroutine_threadsafe(self._call(service, method, fields, namespace), self._loop)
        try:
            return work.result(PATIENCE + 1.0)
        except GRPCError as error:
            said = f"{(error.message or error.status.name).strip().rstrip('.')[:500]}."
            if error.status is Status.NOT_FOUND:
                raise Gone(f"containerd has nothing of the kind: {said}") from error
            if error.status is Status.DEADLINE_EXCEEDED:
                raise unreachable("containerd", self._socket, TimeoutError()) from error
            if error.status is Status.UNAVAILABLE:
                raise unreachable("containerd", self._socket, error) from error
            raise Refused(said) from error
        except TimeoutError as error:
            work.cancel()
            raise unreachable("containerd", self._socket, TimeoutError()) from error
        except Exception as error:  # a connection that breaks comes in many shapes
            raise unreachable("containerd", self._socket, error) from error

    async def _call(self, service: Service, method: str, fields: Mapping[str, Any], namespace: str | None) -> Any:
        metadata = {"containerd-namespace": namespace} if namespace else {}
        async with asyncio.timeout(PATIENCE):
            try:
                return await service.call(self._connected(), method, fields, timeout=PATIENCE, metadata=metadata)
            except (GRPCError, TimeoutError):
                raise
            except Exception:
                # A kept connection whose containerd has ended, and perhaps been started again.
                self._hang_up()
                return await service.call(self._connected(), method, fields, timeout=PATIENCE, metadata=metadata)

    def _connected(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(path=self._socket)
        return self._channel

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def close(self) -> None:
        """Ends the thread."""

        async def end() -> None:
            self._hang_up()
            # The socket is closed in the next round. Were it left to the garbage collector, that might come round in a
            # forked process, and close what has this number there.
            await asyncio.sleep(0)
            self._loop.call_soon(self._loop.stop)

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            self._loop.close()


_lines = Shared(_Line)


class ContainerdFreezer(RuntimeFreezer):
    """Pauses a container of the containerd that listens at ``socket``."""

    kind = "containerd"
    runtime = "containerd"

    def __init__(self, socket: str, namespace: str, container_id: str) -> None:
        super().__init__(container_id)
        self.where = f"the container {container_id}"
        self.way = (self.kind, socket, namespace, container_id)
        self._socket = socket
        self._namespace = namespace
        self._line = _lines.take(socket)
        self._closed = False

    def close(self) -> None:
        """Gives the connection back."""
        if not self._closed:
            self._closed = True
            _lines.give_back(self._socket)

    def _pause(self) -> None:
        self._call("Pause")

    def _resume(self) -> None:
        self._call("Resume")

    def _look(self) -> Seen:
        task = self._call("Get").process
        if task.status == _STOPPED or not task.pid:
            raise Gone(f"The container {self._id} does not run.")
        return Seen(task.pid, task.status == _PAUSED)

    def _call(self, method: str) -> Any:
        try:
            return self._line.call(_TASKS, method, {"container_id": self._id}, self._namespace)
        except Gone as error:
            raise Gone(f"containerd runs no container {self._id} in its namespace {self._namespace}.") from error


def running(socket: str, namespace: str | None = None) -> list[tuple[str, str, int]]:
    """Namespace, id and PID of the containers that run or are paused, in one namespace or all; or ``FreezeError``."""
    line = _lines.take(socket)
    try:
        names = [namespace] if namespace else [each.name for each in line.call(_NAMESPACES, "List", {}).namespaces]
        return [
            (name, task.container_id or task.id, task.pid)
            for name in names
            for task in line.call(_TASKS, "List", {}, name).tasks
            if task.status in (_RUNNING, _PAUSED, _PAUSING)
        ]
    finally:
        _lines.give_back(socket)
