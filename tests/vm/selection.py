"""Which tests run in the virtual machine, and why the others do not.

A file, or a folder of tests, is added to ``CHOSEN``; what it needs besides the root file system, to ``rootfs``.
"""

ALL: tuple[str, ...] = ()

CHOSEN: dict[str, tuple[str, ...]] = {
    "tests/freezers/test_freezers.py": ALL,
    "tests/freezers/test_places_real.py": ALL,
    "tests/freezers/test_signals.py": ALL,
    "tests/containers/on_cgroup2": ALL,
    "tests/containers/test_rig.py": ("test_a_container_is_placed_as_a_kubelet_places_it",),
    "tests/containers/test_pods_real.py": (
        "test_a_pod_is_found_with_all_its_running_containers",
        "test_throttling_is_of_the_container_s_own_cgroup",
    ),
    "tests/containers/test_daemon.py": ("test_a_pod_is_frozen_and_thawed",),
    "tests/containers/test_daemon_confined.py": ("test_from_a_cgroup_namespace_of_its_own",),
    "tests/containers/test_daemon_killed.py": ("test_while_all_are_frozen",),
    "tests/containers/test_daemon_recovery.py": ("test_what_its_pod_claims_stays_frozen_and_the_rest_is_thawed",),
    "tests/containers/test_daemon_requests.py": (
        "test_modes",
        "test_what_is_deleted_while_frozen_ends_in_about_a_second",
    ),
    "tests/containers/test_client_and_daemon.py": ("test_requests_thaw_and_silence_freezes",),
    "tests/containers/test_sidecar_and_daemon.py": (
        "test_it_freezes_and_thaws_and_probes_pass_all_the_time",
        "test_the_hook_thaws_and_nothing_is_frozen_after_it",
    ),
    "tests/containers/test_hostile_pods.py": ("test_nobody_else_moves_the_victim",),
    "tests/containers/test_doctor_real.py": ("test_a_node_where_all_works",),
    "tests/containers/test_ambient.py": (
        "test_it_is_frozen_when_idle_and_a_request_wakes_it",
        "test_a_signal_to_end_is_heard_without_the_api_server",
        "test_one_without_queue_proxy_is_frozen_by_what_its_packets_say",
        "test_throttled_it_goes_on_slowly_where_there_is_a_quota",
    ),
    "tests/containers/test_attach_ambient.py": ALL,
    "tests/containers/test_attach_containerd.py": (
        "test_frozen_between_requests",
        "test_exec_into_a_frozen_one_is_refused",
    ),
    "tests/containers/test_runtime_freezers.py": (
        "test_there_and_back",
        "test_paused_and_then_thawed_through_its_cgroup",
    ),
}
"""By file or folder, its tests, or ``ALL`` of them."""

_V1 = ("cgroup1", "v1", "freezer-", "[freezer]", "throttling_writes")
BUT = " and ".join(f"not {word}" for word in ("docker", "process]", *_V1))
"""pytest's ``-k``. There is no dockerd in the machine, as on nodes of today's clusters, and no cgroup v1; stopping by
signals is the same everywhere."""

REST = {
    "tests/containers/test_attach_docker.py": "there is no dockerd in the machine",
    "tests/containers/test_frozen_behaviour.py": "facts about the v1 freezer; on_cgroup2 has those about cgroup2",
    "tests/containers/test_away.py": "about the API server; what freezes and how makes no difference",
    "tests/containers/test_hostile_pods.py": "floods, whose bounds are in time; what freezes makes no difference",
    "tests/containers/test_rig.py": "about the tests' own tools",
    "tests/containers/test_pods_real.py": "about CRI; the systemd driver makes no difference",
    "tests/containers/test_runtime_freezers.py": "about the runtimes' API; the systemd driver makes no difference",
    "tests/containers/test_attach_containerd.py": "the freezers are the same as the daemon's",
    "tests/containers/test_daemon.py": "about the end of a daemon",
    "tests/containers/test_daemon_confined.py": "about what a daemon may not do",
    "tests/containers/test_daemon_killed.py": "dozens of kills at random moments, which take minutes here",
    "tests/containers/test_daemon_recovery.py": "about the journal",
    "tests/containers/test_daemon_requests.py": "about the protocol",
    "tests/containers/test_client_and_daemon.py": "about the protocol, under a load that is too much here",
    "tests/containers/test_sidecar_and_daemon.py": "under a load that is too much here, or about metrics",
    "tests/containers/test_doctor_real.py": "what it says where something is missing",
    "tests/containers/test_ambient.py": "about the API server, and statistics; the systemd driver makes no difference",
    "tests/freezers/test_places.py": "pure",
}
"""By file, why those of its tests that are not chosen are left out: there is no time for all of them."""


def arguments() -> list[str]:
    """Of pytest's, for what is chosen."""
    chosen = [f"{file}::{name}" if name else file for file, names in CHOSEN.items() for name in names or [""]]
    return ["-k", BUT, *chosen]
