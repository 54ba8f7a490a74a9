"""A stand-in for a container runtime that knows a thousand containers: ``python -m bench.cri_stand_in SPEC.json``.

It answers the CRI calls that the daemon makes, for containers that are listed in the file: ``{"socket": …,
"pods": [{"uid", "namespace", "name", "containers": [{"id", "name", "pid"}]}]}``. It says ``{"ready": true}`` when it
serves, and ends with its standard input.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from freeze_proxy.daemon.cri import METHODS, POD_UID, READY, RUNNING, TABLE
from freeze_proxy.protobuf import classes

_MESSAGES = classes("bench.cri", TABLE)

Json = dict[str, Any]


class Runtime:
    """The service, over a list of pods."""

    def __init__(self, pods: list[Json]) -> None:
        self._pods = {pod["uid"]: pod for pod in pods}
        self._pids = {container["id"]: container["pid"] for pod in pods for container in pod["containers"]}

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib's server asks for: a handler for each path."""
        answers = {
            "Version": lambda _: {"runtime_name": "stand-in", "runtime_version": "1"},
            "ListPodSandbox": self._sandboxes,
            "ListContainers": self._containers,
            "ContainerStatus": self._status,
        }

        def handler(method: str) -> Handler:
            request, response = (_MESSAGES[name] for name in METHODS[method])

            async def handle(stream: Stream[Any, Any]) -> None:
                asked = await stream.recv_message()
                await stream.send_message(response(**answers[method](asked)))

            return Handler(handle, Cardinality.UNARY_UNARY, request, response)

        return {f"/runtime.v1.RuntimeService/{method}": handler(method) for method in answers}

    def _selected(self, selector: Any) -> list[Json]:
        if POD_UID not in selector:
            return list(self._pods.values())
        return [self._pods[selector[POD_UID]]] if selector[POD_UID] in self._pods else []

    def _sandboxes(self, asked: Any) -> Json:
        pods = self._selected(asked.filter.label_selector)
        named = [{name: pod[name] for name in ("uid", "namespace", "name")} for pod in pods]
        return {"items": [{"id": f"sandbox-{metadata['uid']}", "metadata": metadata} for metadata in named]}

    def _containers(self, asked: Any) -> Json:
        found = [
            {
                "id": container["id"],
                "pod_sandbox_id": f"sandbox-{pod['uid']}",
                "metadata": {"name": container["name"]},
                "state": RUNNING,
            }
            for pod in self._selected(asked.filter.label_selector)
            for container in pod["containers"]
        ]
        return {"containers": found}

    def _status(self, asked: Any) -> Json:
        pid = self._pids.get(asked.container_id)
        if pid is None:
            raise GRPCError(Status.NOT_FOUND, f"no container {asked.container_id}")
        return {"status": {"state": RUNNING}, "info": {"info": json.dumps({"pid": pid})}}


async def _serve(spec: Json) -> None:
    assert READY == 0  # all sandboxes are, so the filter by state need not be looked at
    server = Server([Runtime(spec["pods"])])
    await server.start(path=spec["socket"])
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text())))
