"""Networks of pods: a veth pair for each, made by CNI's own plugins, and an address by which pods reach the node."""

import json
import os
import subprocess
from pathlib import Path

from tests.support.needs import need, need_program

_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class PodNetwork:
    """Of one containerd. ``node`` is the node's address, once it is ``up``."""

    def __init__(self, folder: Path) -> None:
        """Writes the configuration, which harms nobody: it is used for pods that want a network of their own."""
        number = os.getpid()
        self._net = f"198.{18 + number % 2}.{number // 2 % 256}"  # set aside for tests of networks (RFC 2544)
        self.node = f"{self._net}.254"
        self._plugins = next((path for path in _PLUGINS if (path / "ptp").exists()), None)
        self._forwarded: str | None = None
        if self._plugins is None:
            return
        (folder / "cni/conf").mkdir(parents=True)
        (folder / "cni/bin").symlink_to(self._plugins)
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": f"{self._net}.0/24", "rangeEnd": f"{self._net}.200"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(folder / "cni/ipam"),
        }
        plugins = [{"type": "ptp", "ipam": ipam, "dns": {}}]
        config = {"cniVersion": "0.4.0", "name": "freeze-proxy-test", "plugins": plugins}
        (folder / "cni/conf/10-test.conflist").write_text(json.dumps(config))

    def up(self) -> None:
        """Give the node its address; to be followed by ``down``."""
        need(self._plugins is not None, "There are no CNI plugins here (Debian package containernetworking-plugins).")
        self._ip = need_program("ip", "iproute2")
        self._forwarded = _FORWARDING.read_text()  # a plugin turns it on
        self._run("address", "add", f"{self.node}/32", "dev", "lo")

    def down(self) -> None:
        """Take it back."""
        if self._forwarded is not None:
            self._run("address", "del", f"{self.node}/32", "dev", "lo")
            if _FORWARDING.read_text() != self._forwarded:
                _FORWARDING.write_text(self._forwarded)
            self._forwarded = None

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([self._ip, *arguments], capture_output=True, text=True, timeout=10)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
