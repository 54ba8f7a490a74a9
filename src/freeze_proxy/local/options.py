"""What ``run`` and ``attach`` are told, and how they say that they cannot go on."""

from freeze_proxy.gate import Settings
from freeze_proxy.local.status import Reporter
from freeze_proxy.tcp import Address

NEVER_LISTENED, CANNOT_WORK = 124, 125
"""Exit codes; COMMAND's own is passed on, 126 and 127 say that it could not be started, 2 that the usage was wrong."""
DEFAULT_LISTEN = ("127.0.0.1", 8080)
KINDS = ("auto", "cgroup2", "cgroup1", "process")


class Failure(Exception):
    """It cannot go on: a sentence for the user, and an exit code."""

    def __init__(self, sentence: str, code: int = CANNOT_WORK) -> None:
        super().__init__(sentence)
        self.code = code


class Options:
    """What both subcommands take. ``listen`` is where clients come in, if it was said; ``report`` a path.

    ``way``: ``ambient``, ``relay``, or ``auto``. ``any_socket``: what comes to any socket of the server's wakes it,
    where it is ambient. Times are seconds.
    """

    def __init__(
        self,
        listen: Address | None,
        settings: Settings,
        freezer: str,
        ready_path: str | None,
        start_timeout: float,
        report: str | None,
        reporter: Reporter,
        print_table: bool,
        way: str = "relay",
        any_socket: bool = False,
    ) -> None:
        self.listen = listen
        self.settings = settings
        self.freezer = freezer
        self.ready_path = ready_path
        self.start_timeout = start_timeout
        self.report = report
        self.reporter = reporter
        self.print_table = print_table
        self.way = way
        self.any_socket = any_socket
