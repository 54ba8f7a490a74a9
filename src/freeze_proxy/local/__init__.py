"""``freeze-proxy run`` and ``freeze-proxy attach``: everything in one process, on one machine."""

import contextlib
import os
import socket
from collections.abc import Sequence

from freeze_proxy.local.guard import Command
from freeze_proxy.local.options import Failure, Options
from freeze_proxy.local.plans import plan_for_cgroup, plan_for_command, plan_for_process
from freeze_proxy.local.session import Session, free_port, open_listener
from freeze_proxy.relay import Address

__all__ = ["Failure", "Options", "attach", "run"]


def run(options: Options, argv: Sequence[str], port: int | None) -> int:
    """Start a server, keep it until it ends, and return its exit code. Raises ``Failure``.

    ``port`` is where it will listen; by default a free one. It is told in the variable ``PORT``.
    """
    if port is None:
        port = free_port()
    elif taken(port):
        raise Failure(f"Port {port}, where the server is to listen, is in use already: choose another with --port.")
    with contextlib.closing(open_listener(options.listen)) as listener:
        plan, about = plan_for_command(options.freezer, options.settings.mode == "throttle")
        try:
            session = Session(options, listener, plan, Command(argv, {**os.environ, "PORT": str(port)}))
            return session.keep([("127.0.0.1", port), ("::1", port)], about)
        finally:
            plan.clear()


def attach(options: Options, pid: int | None, path: str | None, target: Address) -> int:
    """Keep a server that runs, known by its process or its cgroup, until a signal or its end. Raises ``Failure``."""
    throttle = options.settings.mode == "throttle"
    plan = plan_for_process(pid, options.freezer, throttle) if pid else plan_for_cgroup(path or "", throttle)
    with contextlib.closing(open_listener(options.listen)) as listener:
        session = Session(options, listener, plan, None)
        return session.keep([target], "")


def taken(port: int) -> bool:
    """Whether somebody listens on this port already."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
