"""What is going to be frozen, and in which way: for a COMMAND to be started, a process or a cgroup that is there."""

import os
from collections.abc import Callable
from functools import partial

from freeze_proxy.freezers import FreezeError, Freezer, cgroup, processes
from freeze_proxy.freezers.process import ProcessFreezer
from freeze_proxy.local.guard import Plan
from freeze_proxy.local.options import Failure


class GroupPlan(Plan):
    """A cgroup that was made for COMMAND, to be frozen in the way ``kind``.

    ``seat``: the cgroup of cgroup v2 in which its packets are seen, where that is another one.
    """

    def __init__(self, path: str, kind: str, seat: str = "") -> None:
        self._path = path
        self._kind = kind
        self.seat = seat or path
        self._all = list(dict.fromkeys((self._path, self.seat)))

    def freezer(self, guard: int) -> Freezer:
        """The freezer of the cgroup."""
        if self._kind == "process":
            return ProcessFreezer(guard, spare_root=True)
        return _FREEZERS[self._kind](self._path)

    def spec(self) -> list[str]:
        """Path, kind and seat."""
        return [self._path, self._kind, self.seat]

    def join(self) -> None:
        """Moves this process into it."""
        for path in self._all:
            with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write("0")

    def kill(self) -> None:
        """Kills all in it."""
        for path in self._all:
            cgroup.kill(path)

    def clear(self) -> bool:
        """Removes it."""
        return [cgroup.remove(path) for path in self._all].count(False) == 0


class TreePlan(Plan):
    """COMMAND's process tree, found through the guard."""

    def freezer(self, guard: int) -> Freezer:
        """All below the guard."""
        return ProcessFreezer(guard, spare_root=True)


class FoundPlan(Plan):
    """A target that was there before: it is only ever thawed."""

    def __init__(self, freezer: Callable[[], Freezer]) -> None:
        self._freezer = freezer

    def freezer(self, guard: int) -> Freezer:
        """The freezer for it."""
        return self._freezer()


_FREEZERS: dict[str, Callable[[str], Freezer]] = {
    "cgroup2": cgroup.Cgroup2Freezer,
    "cgroup1": cgroup.Cgroup1Freezer,
    "throttle": cgroup.ThrottleFreezer,
}


def plan_from(spec: list[str]) -> GroupPlan | TreePlan:
    """The plan for COMMAND that is like the one with this ``spec``, which another process has made."""
    return GroupPlan(*spec) if spec else TreePlan()


def clear_after(proxy: int) -> None:
    """Remove the cgroups that were made for a proxy, by a guard that has not lived to tell of them."""
    for hierarchy in ("cgroup2", "freezer", "cpu"):
        parent = cgroup.place(hierarchy)
        if parent is not None:
            cgroup.remove(os.path.join(parent, _name(proxy)))


def _name(proxy: int) -> str:
    return f"freeze-proxy-{proxy}"


def plan_for_command(wanted: str, throttle: bool, proxy: int, seated: bool = False) -> tuple[Plan, str]:
    """How the COMMAND of a proxy is going to be frozen, and why not in a better way (or nothing).

    Makes the cgroup; with ``seated``, one of cgroup v2 in any case. Raises ``Failure``.
    """
    plan, about = _plan_for_command(wanted, throttle, proxy)
    if not seated or (isinstance(plan, GroupPlan) and cgroup.is_v2(plan.seat)):
        return plan, about
    try:
        seat = cgroup.create("cgroup2", _name(proxy))
    except FreezeError as error:
        plan.clear()
        raise Failure(str(error)) from error
    return GroupPlan(*([*plan.spec()[:2], seat] if plan.spec() else [seat, "process"])), about


def _plan_for_command(wanted: str, throttle: bool, proxy: int) -> tuple[Plan, str]:
    name = _name(proxy)
    kinds = {"auto": ("cgroup2", "cgroup1")}.get(wanted, (wanted,))
    reasons = []
    for kind in kinds:
        try:
            if kind == "process" and throttle:
                raise FreezeError("A process tree cannot be throttled, only a cgroup can.")
            if kind == "process":
                return TreePlan(), ""
            if throttle:
                return _throttle_plan(kind, name), ""
            if kind == "cgroup2":
                return GroupPlan(cgroup.create("cgroup2", name), kind), ""
            return GroupPlan(cgroup.create("freezer", name), kind), ""
        except FreezeError as error:
            reasons.append(str(error))
    if wanted == "auto" and not throttle:
        return TreePlan(), reasons[0]
    raise Failure(" ".join(dict.fromkeys(reasons)))


def _throttle_plan(kind: str, name: str) -> Plan:
    if kind == "cgroup1":
        return GroupPlan(cgroup.create("cpu", name), "throttle")
    path = cgroup.create("cgroup2", name)
    if os.path.exists(os.path.join(path, "cpu.max")):
        return GroupPlan(path, "throttle")
    os.rmdir(path)
    raise FreezeError(f"The cpu controller is not enabled for cgroups in {os.path.dirname(path)}.")


def seat_of(pid: int, company: set[int]) -> str:
    """The cgroup of cgroup v2 in which a running server's packets are seen. Raises ``Failure``.

    Its own: no process is in it but ``company``.
    """
    path = cgroup.place("cgroup2", pid)
    if path is None:
        raise Failure("This machine has no cgroup v2 hierarchy for it, in which its packets could be seen.")
    if not cgroup.is_v2(path) or not company.issuperset(cgroup.members(path)):
        raise Failure(
            f"Its packets cannot be told from others': {path} is not its own cgroup. Leave --ambient out, or start it "
            "in a cgroup of cgroup v2 of its own."
        )
    return path


def plan_for_cgroup(path: str, throttle: bool) -> FoundPlan:
    """How the cgroup at this path is frozen. Raises ``Failure``."""
    path = os.path.realpath(path)
    if not os.path.exists(os.path.join(path, "cgroup.procs")):
        raise Failure(f"{path} is not a cgroup: there is no cgroup.procs in it.")
    if not cgroup.populated(path):
        raise Failure(f"There is no process in the cgroup {path}.")
    if os.getpid() in cgroup.members(path):
        raise Failure(f"freeze-proxy itself runs in {path} and would freeze with it; start it from another cgroup.")
    kinds: list[tuple[str, Callable[[str], Freezer]]] = [
        ("cgroup.freeze", cgroup.Cgroup2Freezer),
        ("freezer.state", cgroup.Cgroup1Freezer),
    ]
    if throttle:
        kinds = [("cpu.max", cgroup.ThrottleFreezer), ("cpu.cfs_quota_us", cgroup.ThrottleFreezer)]
    for file, freezer in kinds:
        if os.path.exists(os.path.join(path, file)):
            if not os.access(os.path.join(path, file), os.W_OK):
                raise Failure(f"{os.path.join(path, file)} cannot be written by this user; run freeze-proxy as root.")
            return FoundPlan(partial(freezer, path))
    names = " nor ".join(file for file, _ in kinds)
    raise Failure(f"{path} has neither {names}: the root of a hierarchy, or one without that controller.")


def plan_for_process(pid: int, wanted: str, throttle: bool) -> FoundPlan:
    """How a running process is frozen: by its cgroup if that is its own, else by SIGSTOP. Raises ``Failure``."""
    tree = {pid, *processes.descendants(pid)}
    if processes.started(pid) is None:
        raise Failure(f"There is no process {pid}.")
    if os.getpid() in tree:
        raise Failure(f"freeze-proxy itself descends from process {pid} and would be stopped with it.")
    reasons = []
    for kind in {"auto": ("cgroup2", "cgroup1"), "process": ()}.get(wanted, (wanted,)):
        hierarchy = "cgroup2" if kind == "cgroup2" else "cpu" if throttle else "freezer"
        path = cgroup.place(hierarchy, pid)
        if path is None:
            reasons.append(f"This machine has no {kind} hierarchy for it.")
            continue
        others = [other for other in cgroup.members(path) if other not in tree]
        if others:
            reasons.append(
                f"Its cgroup {path} also holds other processes ({processes.name(others[0])}, PID {others[0]}, "
                f"and {len(others) - 1} more)."
            )
            continue
        try:
            return plan_for_cgroup(path, throttle)
        except Failure as failure:
            reasons.append(str(failure))
    if throttle or wanted not in ("auto", "process"):
        raise Failure(" ".join(dict.fromkeys(reasons)) or "A process tree cannot be throttled, only a cgroup can.")
    return FoundPlan(lambda: ProcessFreezer(pid))
