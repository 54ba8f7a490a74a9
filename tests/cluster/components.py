"""Kubernetes, as processes of this node: etcd, the API server and what it takes to run pods."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import runtime
from tests.cluster.api import Api, condition
from tests.cluster.certificates import Authority
from tests.cluster.images import PAUSE
from tests.cluster.inside import NODE_ADDRESS
from tests.support.cluster.cgroups import hierarchies
from tests.support.cluster.programs import Daemon
from tests.support.wait import until

NODE = "node"
SOCKET = Path("/run/containerd/containerd.sock")
"""Where users' nodes have it: the folder is this node's own."""
SERVICES, PODS = "10.96.0.0/16", "10.244.0.0/16"
FIRST_SERVICE = "10.96.0.1"
"""The API server's address for pods."""
SERVER = f"https://{NODE_ADDRESS}:6443"
ISSUER = "https://kubernetes.default.svc.cluster.local"
_PLUGINS = "/usr/lib/cni"

_CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE nobody may lower a score; with it nothing is lost here.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"""


def _answers(url: str) -> Callable[[], bool]:
    def look() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return look


class Cluster:
    """The processes, from ``start`` on; they end with the namespace."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.folder = folder
        self.cgroup = cgroup
        self.logs = folder / "logs"
        self.keys = folder / "keys"
        self.keys.mkdir()
        self.authority = Authority(self.keys)
        self.api = Api(SERVER, self._kubeconfig("admin", "test", "system:masters"))
        self.etcd = self._daemon("etcd", self._etcd(), _answers("http://127.0.0.1:2379/health"))
        self.api_server = self._daemon("kube-apiserver", self._api_server(), self.api.is_ready)
        self.controllers = self._daemon("kube-controller-manager", self._controllers(), lambda: True)
        self.scheduler = self._daemon("kube-scheduler", self._scheduler(), lambda: True)
        self.proxy = self._daemon("kube-proxy", self._proxy(), _answers("http://127.0.0.1:10256/healthz"))
        self.containerd = self._daemon("containerd", self._containerd(), self._runs_containers)
        self.kubelet = self._daemon("kubelet", self._kubelet(), _answers("http://127.0.0.1:10248/healthz"))

    def _daemon(self, name: str, command: list[str], ready: Callable[[], bool]) -> Daemon:
        return Daemon(name, command, self.logs / f"{name}.log", ready)

    def _kubeconfig(self, name: str, user: str, group: str = "") -> Path:
        return self.authority.kubeconfig(SERVER, name, user, group)

    def _config(self, name: str, content: Any) -> Path:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    def _etcd(self) -> list[str]:
        return ["etcd", f"--data-dir={self.folder}/etcd/data", "--log-outputs=stderr"]

    def _api_server(self) -> list[str]:
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", NODE_ADDRESS, FIRST_SERVICE]
        certificate, key = self.authority.sign("api-server", "kube-apiserver", hosts=names)
        client, client_key = self.authority.sign("api-server-as-client", "kube-apiserver", "system:masters")
        public, private = self.authority.key_pair("service-accounts")
        return [
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE_ADDRESS}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.certificate_file}",
            f"--kubelet-client-certificate={client}",
            f"--kubelet-client-key={client_key}",
            f"--kubelet-certificate-authority={self.authority.certificate_file}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--shutdown-delay-duration=0s",
        ]

    def _controllers(self) -> list[str]:
        kubeconfig = self._kubeconfig("controller-manager", "system:kube-controller-manager")
        return [
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--authentication-skip-lookup",
            f"--service-account-private-key-file={self.keys}/service-accounts.key",
            f"--root-ca-file={self.authority.certificate_file}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--node-monitor-grace-period=10m",  # a busy machine is no dead node, whose pods get no request
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]

    def _scheduler(self) -> list[str]:
        kubeconfig = self._kubeconfig("scheduler", "system:kube-scheduler")
        return [
            "kube-scheduler",
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--authentication-skip-lookup",
            "--leader-elect=false",
        ]

    def _proxy(self) -> list[str]:
        kubeconfig = self._kubeconfig("proxy", "system:kube-proxy")
        content = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": NODE,
            "mode": "iptables",
            "iptables": {"minSyncPeriod": "100ms"},
            "clusterCIDR": PODS,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
        }
        return ["kube-proxy", f"--config={self._config('proxy.json', content)}"]

    def _containerd(self) -> list[str]:
        pods = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",  # a link for each pod: without a bridge, replies cannot bypass the service's address
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/var/lib/cni",
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        self._config("cni/pods.conflist", pods)
        # overlayfs, unless the folder is on one itself: it cannot be laid over another.
        kind = subprocess.run(["stat", "-f", "-c", "%T", self.folder], check=True, capture_output=True, text=True)
        snapshotter = "native" if "overlay" in kind.stdout else "overlayfs"
        config = self.folder / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(
                socket=SOCKET,
                pause=PAUSE,
                plugins=_PLUGINS,
                folder=self.folder,
                snapshotter=snapshotter,
                runc=self._runc(),
            )
        )
        return ["containerd", f"--config={config}"]

    def _runc(self) -> Path | str:
        """What containerd starts as such."""
        mounted = hierarchies()
        if len(mounted) == 1 or "" not in mounted:
            return "runc"
        script = self.folder / "runc"
        runtime.write(script, self.cgroup, mounted[""])
        return script

    def _kubelet(self) -> list[str]:
        certificate, key = self.authority.sign("kubelet-server", NODE, hosts=[NODE, NODE_ADDRESS])
        (self.folder / "resolv.conf").write_text("")
        content = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"x509": {"clientCAFile": str(self.authority.certificate_file)}},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "resolvConf": f"{self.folder}/resolv.conf",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": False,
            "maxPods": 250,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        }
        return [
            "kubelet",
            f"--config={self._config('kubelet.json', content)}",
            f"--kubeconfig={self._kubeconfig('kubelet', f'system:node:{NODE}', 'system:nodes')}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
        ]

    def _runs_containers(self) -> bool:
        return SOCKET.exists() and self.ctr("version").returncode == 0

    def ctr(self, *arguments: str | Path, within: float = 120) -> subprocess.CompletedProcess[str]:
        """containerd's own command line, in CRI's namespace."""
        command = ["ctr", f"--address={SOCKET}", "--namespace=k8s.io", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=within)

    def _make_cgroups(self) -> None:
        """The kubelet makes its cgroups below ours, which has to be there."""
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            if hierarchy.is_symlink() or not (hierarchy / "cgroup.procs").exists():
                continue
            own = hierarchy / self.cgroup
            own.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # those of v1 begin empty
                if (own / name).exists():
                    (own / name).write_text((hierarchy / name).read_text())
            # All pods together would count as much as one process of the machine, and probes fail if it is busy.
            for name, most in (("cpu.shares", "262144"), ("cpu.weight", "10000")):
                if (own / name).exists():
                    (own / name).write_text(most)

    def start(self, archives: list[Path], say: Callable[[str], None]) -> None:
        """All of it; the node is ready and has the images of these archives when this returns."""
        self._make_cgroups()
        self.containerd.start()
        imports = [
            subprocess.Popen(
                ["ctr", f"--address={SOCKET}", "--namespace=k8s.io", "images", "import", archive],
                stdout=subprocess.DEVNULL,
            )
            for archive in archives
        ]
        self.etcd.start()
        self.api_server.start()
        say("The API server is ready.")
        for each in (self.controllers, self.scheduler, self.kubelet, self.proxy):  # which waits for the node
            each.start()
        for process, archive in zip(imports, archives, strict=True):
            assert process.wait(120) == 0, f"{archive} cannot be imported"
        until(self.node_is_ready, "the node is ready", within=60, every=0.2)
        say("The node is ready.")

    def node_is_ready(self) -> bool:
        """Whether the kubelet says so."""
        node = self.api.find(f"/api/v1/nodes/{NODE}")
        return node is not None and condition(node, "Ready") == "True"

    def stop(self, daemon: Daemon) -> None:
        """End one of them, as it wants to be ended."""
        daemon.end(signal.SIGTERM)


def from_environment() -> tuple[Cluster, list[Path]]:
    """What ``python -m tests.cluster`` has prepared: the cluster, not yet started, and the archives of its images."""
    cluster = Cluster(Path(os.environ["CLUSTER_FOLDER"]), os.environ["CLUSTER_CGROUP"])
    return cluster, [Path(name) for name in os.environ["CLUSTER_IMAGES"].split(os.pathsep)]
