"""A node of a cluster: real containers, an API server's stand-in that knows their pods, and daemons."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.support.api_server import ApiServer
from tests.support.cluster.containerd import Containerd
from tests.support.cluster.kubelet import Kubelet, Pod
from tests.support.daemons import Control, Daemon
from tests.support.ports import LOOPBACK

NAME = "this-node"


class Node:
    """What the tests of the daemon are about. ``check_logs`` at the end: JSON only, and no token in them."""

    def __init__(self, folder: Path, containerd: Containerd, kubelet: Kubelet, api_server: ApiServer) -> None:
        self.folder = folder
        self.containerd = containerd
        self.kubelet = kubelet
        self.api_server = api_server
        self._daemons: list[Daemon] = []
        self._tokens: list[str] = []

    def daemon(
        self,
        *options: str,
        name: str = "daemon",
        runtime_socket: Path | str = "",
        prefix: Iterable[str] = (),
        host: str = LOOPBACK,
    ) -> Daemon:
        """One for this node, to be used in a ``with``."""
        made = Daemon(
            self.folder / name,
            self.api_server.kubeconfig(),
            runtime_socket or self.containerd.socket,
            *("--node-name", NAME, *options),
            prefix=prefix,
            host=host,
        )
        self._daemons.append(made)
        return made

    def token(self, pod: Pod, audience: str = "freeze") -> str:
        """A token of a pod here."""
        token = self.api_server.token(pod.uid, pod.name, pod.namespace, NAME, audience)
        self._tokens.append(token)
        return token

    def pod(self, *containers: str, runtime: str = "runc") -> tuple[Pod, str]:
        """A pod whose containers tick, and its token."""
        pod = self.kubelet.pod(containers or ("user-container", "queue-proxy"), runtime)
        return pod, self.token(pod)

    def check_logs(self) -> None:
        """What all daemons have written, whatever was done to them."""
        for daemon in self._daemons:
            for line in daemon.log().splitlines():
                if not line.startswith("freeze-proxy: "):
                    json.loads(line)
                for token in self._tokens:
                    signature = token.rpartition(".")[2]
                    assert signature not in line, f"A token is in the log: {line}"


@contextlib.contextmanager
def frozen(pod: Pod, token: str, connect: Callable[[], Control], lease: bool = True) -> Iterator[Control]:
    """A pod's first container, frozen by its own order on a connection that stays."""
    with connect() as control:
        answer = control.call("/freeze", token, lease)
        assert answer.status == 200, answer
        assert all(pod[name].frozen for name in answer.states), answer
        yield control
