"""Freezes and thaws containers in every way there is, one after another, and times each: ``python -m bench.pausing``.

A process of its own, as a sidecar is one. It takes a file ``SPEC.json``, prints a line of JSON a round, and in the end
one with the samples, in microseconds. Every call is a blocking one on something that is open already (a connection, a
channel, a file), but for the commands, which have to be started. After each call the kernel is asked, outside of the
measured time, whether it is so.

Every other round, a container that nobody measures is frozen besides. It matters: on cgroup v1 the kernel rewrites its
own code when the first cgroup of a machine is frozen and the last one thawed (the static key ``freezer_active`` in
kernel/cgroup/legacy_freezer.c).
"""

import gc
import http.client
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from freeze_proxy.freezers import Freezer, cgroup

Json = dict[str, Any]

PATIENCE = 10.0
REST = (0.001, 0.003)
"""Seconds between a freeze and its thaw, and between a thaw and the next freeze."""
WARM_UP = 4
"""Rounds that do not count."""
ALONE, AMONG = "alone", "among"
"""Nothing else is frozen; something else is."""


class Way(Protocol):
    """One way. Both calls return when it is done, and raise if it fails."""

    def freeze(self) -> None:
        """Until it stands still."""

    def thaw(self) -> None:
        """Until it runs."""


class Http:
    """One HTTP/1.1 connection that stays open, over TCP or a unix socket, with no library between."""

    def __init__(self, address: str | int) -> None:
        if isinstance(address, int):
            self._socket = socket.create_connection(("127.0.0.1", address), PATIENCE)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(PATIENCE)
            self._socket.connect(address)

    def call(self, request: bytes) -> bytes:
        """The whole answer; raises ``RuntimeError`` unless its status is 200 or 204."""
        self._socket.sendall(request)
        answer = self._socket.recv(65536)
        while not _whole(answer):
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError(f"The connection was closed after {answer[:200]!r}.")
            answer += more
        if answer[9:12] not in (b"200", b"204"):
            raise RuntimeError(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        """Closes it."""
        self._socket.close()


def _whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    _, found, after = head.lower().partition(b"content-length:")
    return not found or len(body) >= int(after.partition(b"\r\n")[0])


def order(path: str, token: str) -> bytes:
    """A control request as the sidecar sends it."""
    head = f"POST {path} HTTP/1.1\r\nHost: node\r\nToken: {token}\r\nLease: connection\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


class Daemon:
    """Our own daemon, on one open connection."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = Http(port)
        self._freeze, self._thaw = order("/freeze", token), order("/thaw", token)

    def freeze(self) -> None:
        """``POST /freeze``."""
        self._connection.call(self._freeze)

    def thaw(self) -> None:
        """``POST /thaw``."""
        self._connection.call(self._thaw)


class Tasks:
    """containerd's Tasks service, on one open channel."""

    def __init__(self, socket: str, namespace: str, id: str) -> None:
        import grpc

        channel = grpc.insecure_channel(f"unix://{socket}")
        service = "/containerd.services.tasks.v1.Tasks/"
        self._pause, self._resume = (channel.unary_unary(service + name) for name in ("Pause", "Resume"))
        # PauseTaskRequest and ResumeTaskRequest have one field: 1, the container's id.
        self._request = b"\n" + bytes([len(id)]) + id.encode()
        self._metadata = (("containerd-namespace", namespace),)

    def freeze(self) -> None:
        """``Pause``."""
        self._pause(self._request, timeout=PATIENCE, metadata=self._metadata)

    def thaw(self) -> None:
        """``Resume``."""
        self._resume(self._request, timeout=PATIENCE, metadata=self._metadata)


class Docker:
    """Docker's Engine API, on one open connection."""

    def __init__(self, socket: str, id: str) -> None:
        self._connection = Http(socket)
        self._pause, self._unpause = (
            f"POST /containers/{id}/{verb} HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n".encode()
            for verb in ("pause", "unpause")
        )

    def freeze(self) -> None:
        """``POST /containers/ID/pause``."""
        self._connection.call(self._pause)

    def thaw(self) -> None:
        """``POST /containers/ID/unpause``."""
        self._connection.call(self._unpause)


class Command:
    """A runtime's own command line, started for each call."""

    def __init__(self, program: str, root: str, id: str) -> None:
        self._pause, self._resume = ([program, "--root", root, verb, id] for verb in ("pause", "resume"))

    def freeze(self) -> None:
        """``runc pause ID``."""
        subprocess.run(self._pause, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)

    def thaw(self) -> None:
        """``runc resume ID``."""
        subprocess.run(self._resume, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)


class Write:
    """A write to the cgroup's own file, which is open; for a freeze, looking without pause until it is done."""

    def __init__(self, hierarchy: str, path: str) -> None:
        self._freezer: Freezer = (cgroup.Cgroup2Freezer if hierarchy == "cgroup2" else cgroup.Cgroup1Freezer)(path)

    def freeze(self) -> None:
        """Until the kernel says that all stands still."""
        still = self._freezer.freeze()
        end = time.monotonic() + PATIENCE
        while not still:
            if time.monotonic() > end:
                raise RuntimeError(f"{self._freezer.where} does not come to a stand.")
            still = self._freezer.frozen()

    def thaw(self) -> None:
        """The write alone."""
        self._freezer.thaw()


KINDS: dict[str, Callable[..., Way]] = {
    "daemon": Daemon, "tasks": Tasks, "docker": Docker, "command": Command, "write": Write,
}  # fmt: skip


def _frozen(state: str) -> bool:
    said = Path(state).read_text()
    return said == "FROZEN\n" or "frozen 1" in said


def _timed(call: Callable[[], None]) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1000


class Review:
    """What the API server takes for one review, asked as directly as can be."""

    def __init__(self, spec: Json) -> None:
        context = ssl.create_default_context(cafile=spec["ca"])
        self._connection = http.client.HTTPSConnection("127.0.0.1", spec["port"], timeout=PATIENCE, context=context)
        self._head = {"Authorization": f"Bearer {spec['credential']}", "Content-Type": "application/json"}

    def __call__(self, token: str) -> None:
        """One review."""
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": ["freeze"]},
        }
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        self._connection.request("POST", path, json.dumps(asked), self._head)
        answer = json.loads(self._connection.getresponse().read())
        if not answer["status"]["authenticated"]:
            raise RuntimeError(f"The stand-in refuses its own token: {answer}.")


def _first(port: int, token: str) -> float:
    """The first freeze of a pod that the daemon does not know, from connecting on; it is thawed afterwards."""
    begin = time.perf_counter_ns()
    connection = Http(port)
    connection.call(order("/freeze", token))
    took = (time.perf_counter_ns() - begin) / 1000
    connection.call(order("/thaw", token))
    connection.close()
    return took


def main() -> None:
    """Measure as the file says: ``ways`` by name, ``rounds``, ``firsts``."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    rng = random.Random(7)
    ways: dict[str, Way] = {name: KINDS[way["kind"]](*way["arguments"]) for name, way in spec["ways"].items()}
    samples: dict[str, dict[str, dict[str, list[float]]]] = {
        when: {name: {"freeze": [], "thaw": []} for name in ways} for when in (AMONG, ALONE)
    }
    neighbour = Write(*spec["neighbour"])
    firsts: dict[str, list[float]] = {"freeze": [], "review": []}
    unknown, review = spec["firsts"]["tokens"], Review(spec["firsts"]["api"])
    gc.collect()
    gc.freeze()
    gc.disable()
    names = list(ways)
    for turn in range(-WARM_UP, spec["rounds"]):
        print(json.dumps({"round": turn}), flush=True)
        if turn % 2:
            neighbour.freeze()
        taken = samples[AMONG if turn % 2 else ALONE]
        for name in names:
            way, states = ways[name], spec["ways"][name]["states"]
            for _ in range(spec["ways"][name]["often"]):
                time.sleep(rng.uniform(*REST))
                froze = _timed(way.freeze)
                if not all(_frozen(state) for state in states):
                    raise RuntimeError(f"{name}: said to be frozen, but the kernel says that it is not.")
                time.sleep(rng.uniform(*REST))
                thawed = _timed(way.thaw)
                if any(_frozen(state) for state in states):
                    raise RuntimeError(f"{name}: said to run, but the kernel says that it is frozen.")
                if turn >= 0:
                    taken[name]["freeze"].append(froze)
                    taken[name]["thaw"].append(thawed)
        neighbour.thaw()
        if turn % 2:
            names.append(names.pop(0))
        if unknown and turn >= 0:
            # As many turns apart as there is room for.
            due = turn * (len(firsts["freeze"]) + len(unknown)) // spec["rounds"]
            while unknown and len(firsts["freeze"]) <= due:
                token, other = unknown.pop(0)
                time.sleep(rng.uniform(*REST))
                firsts["freeze"].append(_first(spec["firsts"]["port"], token))
                firsts["review"].append(_timed(lambda other=other: review(other)))  # type: ignore[misc]
    print(json.dumps({"samples": samples, "firsts": firsts}), flush=True)


if __name__ == "__main__":
    main()
