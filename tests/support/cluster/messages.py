"""CRI v1 messages of which a kubelet makes more use than the daemon: to run pods, to look into them, to end them.

Field numbers as in ``runtime/v1/api.proto`` of k8s.io/cri-api. Enums stand as the integers that they are on the wire.
"""

from freeze_proxy.protobuf import Table, classes

RUNNING, EXITED = 1, 2
"""Container states."""
POD, NODE = 0, 2
"""Namespace modes: the pod's own, and the node's own."""

_ID = {"container_id": (1, "string")}
_POD_ID = {"pod_sandbox_id": (1, "string")}

TABLE: Table = {
    "ImageSpec": {"image": (1, "string")},
    "Image": {"id": (1, "string")},
    "ImageStatusRequest": {"image": (1, "ImageSpec")},
    "ImageStatusResponse": {"image": (1, "Image")},
    "NamespaceOption": {"network": (1, "int32"), "pid": (2, "int32"), "ipc": (3, "int32")},
    "SandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
    "LinuxPodSandboxConfig": {"cgroup_parent": (1, "string"), "security_context": (2, "SandboxSecurityContext")},
    "PodSandboxStatusRequest": _POD_ID,
    "PodSandboxNetworkStatus": {"ip": (1, "string")},
    "PodSandboxStatus": {"id": (1, "string"), "network": (5, "PodSandboxNetworkStatus")},
    "PodSandboxStatusResponse": {"status": (1, "PodSandboxStatus"), "info": (2, "map string string")},
    "PodSandboxMetadata": {
        "name": (1, "string"),
        "uid": (2, "string"),
        "namespace": (3, "string"),
        "attempt": (4, "uint32"),
    },
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "log_directory": (3, "string"),
        "labels": (6, "map string string"),
        "annotations": (7, "map string string"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig"), "runtime_handler": (2, "string")},
    "RunPodSandboxResponse": _POD_ID,
    "StopPodSandboxRequest": _POD_ID,
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": _POD_ID,
    "RemovePodSandboxResponse": {},
    "KeyValue": {"key": (1, "string"), "value": (2, "string")},
    "Mount": {"container_path": (1, "string"), "host_path": (2, "string"), "readonly": (3, "bool")},
    "LinuxContainerResources": {
        "cpu_period": (1, "int64"),
        "cpu_quota": (2, "int64"),
        "cpu_shares": (3, "int64"),
        "memory_limit_in_bytes": (4, "int64"),
    },
    "Capability": {"add_capabilities": (1, "repeated string"), "drop_capabilities": (2, "repeated string")},
    "SecurityProfile": {"profile_type": (1, "int32")},
    "ContainerSecurityContext": {
        "capabilities": (1, "Capability"),
        "namespace_options": (3, "NamespaceOption"),
        "readonly_rootfs": (7, "bool"),
        "no_new_privs": (11, "bool"),
        "seccomp": (15, "SecurityProfile"),
    },
    "LinuxContainerConfig": {
        "resources": (1, "LinuxContainerResources"),
        "security_context": (2, "ContainerSecurityContext"),
    },
    "ContainerMetadata": {"name": (1, "string"), "attempt": (2, "uint32")},
    "ContainerConfig": {
        "metadata": (1, "ContainerMetadata"),
        "image": (2, "ImageSpec"),
        "command": (3, "repeated string"),
        "envs": (6, "repeated KeyValue"),
        "mounts": (7, "repeated Mount"),
        "labels": (9, "map string string"),
        "annotations": (10, "map string string"),
        "log_path": (11, "string"),
        "linux": (15, "LinuxContainerConfig"),
    },
    "CreateContainerRequest": {**_POD_ID, "config": (2, "ContainerConfig"), "sandbox_config": (3, "PodSandboxConfig")},
    "CreateContainerResponse": _ID,
    "StartContainerRequest": _ID,
    "StartContainerResponse": {},
    "StopContainerRequest": {**_ID, "timeout": (2, "int64")},
    "StopContainerResponse": {},
    "RemoveContainerRequest": _ID,
    "RemoveContainerResponse": {},
    "UpdateContainerResourcesRequest": {**_ID, "linux": (2, "LinuxContainerResources")},
    "UpdateContainerResourcesResponse": {},
    "ContainerStatusRequest": {**_ID, "verbose": (2, "bool")},
    "ContainerStatus": {
        "id": (1, "string"),
        "metadata": (2, "ContainerMetadata"),
        "state": (3, "int32"),
        "started_at": (5, "int64"),
        "finished_at": (6, "int64"),
        "exit_code": (7, "int32"),
        "reason": (10, "string"),
        "message": (11, "string"),
        "log_path": (15, "string"),
    },
    "ContainerStatusResponse": {"status": (1, "ContainerStatus"), "info": (2, "map string string")},
    "ExecSyncRequest": {**_ID, "cmd": (2, "repeated string"), "timeout": (3, "int64")},
    "ExecSyncResponse": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int32")},
    "UInt64Value": {"value": (1, "uint64")},
    "CpuUsage": {"timestamp": (1, "int64"), "usage_core_nano_seconds": (2, "UInt64Value")},
    "MemoryUsage": {"timestamp": (1, "int64"), "working_set_bytes": (2, "UInt64Value")},
    "ContainerStats": {"cpu": (2, "CpuUsage"), "memory": (3, "MemoryUsage")},
    "ContainerStatsRequest": _ID,
    "ContainerStatsResponse": {"stats": (1, "ContainerStats")},
}

MESSAGES = classes("runtime.v1", TABLE)
"""The message classes, by their names."""
