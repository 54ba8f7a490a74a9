"""``freeze-proxy run`` and ``freeze-proxy attach``: everything in one process, on one machine."""

import _socket
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from freeze_proxy import ambient
from freeze_proxy.freezers import FreezeError, cgroup, processes
from freeze_proxy.local.addresses import free_port, is_taken, leads_to, open_listener, places, resolve
from freeze_proxy.local.containers import ContainerdId, DockerName, Wanted, plan_for_container, seat_of_container
from freeze_proxy.local.fronts import Seat
from freeze_proxy.local.guard import Command, Guard, Plan
from freeze_proxy.local.options import DEFAULT_LISTEN, Failure, Options
from freeze_proxy.local.plans import (
    GroupPlan,
    clear_after,
    plan_for_cgroup,
    plan_for_command,
    plan_for_process,
    plan_from,
    seat_of,
)
from freeze_proxy.local.session import Session
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address

__all__ = ["ContainerdId", "DockerName", "Failure", "Options", "attach", "run"]

_MOST_WATCHED = 16
"""How many processes of a cgroup, the oldest first, are looked at for signals while it is frozen."""


def run(options: Options, argv: Sequence[str], port: int | None) -> int:
    """Start a server, keep it until it ends, and return its exit code. Raises ``Failure``.

    ``port`` is where it will listen, told in the variable ``PORT``; by default a free one or, where nothing stands
    before it, the one that clients know.
    """
    _check_report(options)
    is_ambient = _is_ambient(options)
    with contextlib.ExitStack() as stack:
        listener = None
        if is_ambient:
            port = port or DEFAULT_LISTEN[1]
        else:
            listener = stack.enter_context(contextlib.closing(open_listener(options.listen or DEFAULT_LISTEN)))
            if listener.getsockname()[1] == port:
                raise Failure(
                    f"Port {port} cannot be both the server's and freeze-proxy's: choose another with --port."
                )
        if port is None:
            port = free_port()
        elif is_taken(port):
            raise Failure(f"Port {port}, where the server is to listen, is in use already: choose another with --port.")
        proxy, throttle = os.getpid(), options.settings.mode == "throttle"
        command = Command(argv, environment(port))
        try:
            guard = Guard(partial(plan_for_command, options.freezer, throttle, proxy, is_ambient), command)
        except Failure:
            clear_after(proxy)
            raise
        plan = plan_from(guard.spec)
        try:
            if isinstance(plan, GroupPlan) and is_ambient:
                way: _socket.socket | Seat = Seat(plan.seat, port, options.any_socket)
            else:
                assert listener is not None
                way = listener
            return Session(options, way, guard, plan, command).keep(places(port), guard.about)
        finally:
            if not plan.clear():
                options.reporter.note("left", "the server's cgroup cannot be removed: a process in it does not end.")


def _is_ambient(options: Options) -> bool:
    """Whether traffic goes straight to the server: where that was asked for, or can be and nothing else was."""
    if options.way == "relay" or (options.way == "auto" and options.listen is not None):
        return False
    obstacle = ambient.obstacle()
    if obstacle is not None and options.way == "ambient":
        raise Failure(f"{obstacle} --relay does without.")
    return obstacle is None


def attach(options: Options, target: Address, which: int | str | Wanted) -> int:
    """Keep a server that runs until a signal or its end. Raises ``Failure``.

    ``which`` is its process, the path of its cgroup, or its container.
    """
    _check_report(options)
    throttle = options.settings.mode == "throttle"
    targets = resolve(target)
    is_ambient = _is_ambient(options)
    with contextlib.ExitStack() as stack:
        about, what, pid, id = "", "the server", None, ""
        if isinstance(which, str):
            plan: Plan = plan_for_cgroup(which, throttle)
        elif isinstance(which, int):
            pid = which
            pidfd = stack.enter_context(_process(pid))
            plan = plan_for_process(pid, options.freezer, throttle)
        else:
            try:
                container = which.find()
                pid, what, id = container.pid, container.called, container.id
                pidfd = stack.enter_context(_process(pid))
                if which.find().pid != pid:
                    raise Failure(f"{what[0].upper()}{what[1:]} has just been started again: try once more.")
                plan, about = plan_for_container(container, options.freezer, throttle)
            except FreezeError as error:
                raise Failure(str(error)) from error
        _check_running(plan)
        way: _socket.socket | Seat
        if is_ambient:
            company = [pid, *processes.descendants(pid)] if pid is not None else cgroup.members(str(which))
            seat = seat_of_container(id, company[0]) if id else seat_of(company[0], set(company))
            way = Seat(seat, target[1], options.any_socket, company[0])
        else:
            way = stack.enter_context(contextlib.closing(open_listener(options.listen or DEFAULT_LISTEN)))
            if any(leads_to(way, place) for place in targets):
                raise Failure(f"{written(target)} is where freeze-proxy itself listens: choose another with --listen.")
        guard = Guard(lambda: (plan, ""), None, may_thaw=options.settings.mode in ("freeze", "throttle"))
        session = Session(options, way, guard, plan, None)
        if pid is not None:
            session.watch_process(pidfd, what)
            session.watch_endings(lambda: [pid])
        else:
            path = os.path.realpath(str(which))
            session.watch_cgroup(path)
            session.watch_endings(lambda: sorted(cgroup.members(path))[:_MOST_WATCHED])
        return session.keep(targets, about)


def environment(port: int) -> Mapping[str, str]:
    """COMMAND's environment: our own as it was handed to us, and ``PORT``."""
    ours = dict(os.environ)
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
        # In a C locale the interpreter sets this for itself (PEP 538).
        handed = [entry for entry in file.read().split(b"\0") if entry.startswith(b"LC_CTYPE=")]
        ours.pop("LC_CTYPE", None)
        for entry in handed:
            ours["LC_CTYPE"] = os.fsdecode(entry.partition(b"=")[2])
    return {**ours, "PORT": str(port)}


def _check_report(options: Options) -> None:
    if options.report is not None:
        directory = os.path.dirname(options.report) or "."
        if not os.access(options.report if os.path.exists(options.report) else directory, os.W_OK):
            why = "it cannot be written by this user" if os.path.isdir(directory) else f"there is no {directory}"
            raise Failure(f"The report {options.report} cannot be written: {why}.")


def _check_running(plan: Plan) -> None:
    """Whose target stands still already is not ours to thaw."""
    try:
        freezer = plan.freezer(0)
        try:
            if freezer.still():
                raise Failure(f"Somebody has stopped {freezer.where} already: let it run, then attach to it.")
        finally:
            freezer.close()
    except FreezeError as error:
        raise Failure(str(error)) from error


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor for a process."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise Failure(f"There is no process {pid}.") from error
    try:
        yield pidfd
    finally:
        os.close(pidfd)
