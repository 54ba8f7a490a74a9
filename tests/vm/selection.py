"""Which tests run in the virtual machine, and which of those beside them do not, each with the reason.

A folder of tests is added to ``FOLDERS``; what it needs besides the root file system, to ``rootfs``.
"""

FOLDERS = ("tests/containers", "tests/freezers")

LEFT_OUT = {
    "tests/containers/test_attach_docker.py": "There is no dockerd in the machine, as on nodes of today's clusters.",
}
"""Files, or tests by their node id without parameters."""
