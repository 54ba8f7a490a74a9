"""The sidecar, assembled: relay and gate, driven by the node's daemon; probes, numbers, and the way out.

Exit codes: 0 when it has drained, or its grace is over · 2 a setting is wrong, and a sentence says which · 125 it
cannot listen.
"""

import posix
import sys
import time

from freeze_proxy.control.client import Client
from freeze_proxy.control.names import is_address
from freeze_proxy.control.token import TokenFile
from freeze_proxy.gate import Gate
from freeze_proxy.keeper import Driver, Keeper, Witness
from freeze_proxy.loop import READ, Loop
from freeze_proxy.relay import Relay
from freeze_proxy.settings import written
from freeze_proxy.sidecar.admin import Admin
from freeze_proxy.sidecar.config import Config, Wrong
from freeze_proxy.sidecar.drain import Drain
from freeze_proxy.sidecar.health import Health
from freeze_proxy.sidecar.listeners import listening
from freeze_proxy.sidecar.log import Log
from freeze_proxy.sidecar.numbers import Numbers
from freeze_proxy.sidecar.probing import Probing
from freeze_proxy.tcp import Address, listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping

    from freeze_proxy.sidecar.probes import Probe

WRONG_SETTING, CANNOT_WORK = 2, 125
_TERM, _INT = 15, 2


class Telling(Witness):
    """Counts what happens, and writes it to the log."""

    __slots__ = ("_log", "_numbers", "_reason")

    def __init__(self, numbers: Numbers, log: Log) -> None:
        self._numbers = numbers
        self._log = log
        self._reason = ""

    def frozen(self, at: float, took: float) -> None:
        """Counted; and said where each is wanted."""
        self._numbers.frozen(at, took)
        self._log.debug("frozen", took_ms=round(took * 1e3, 3))

    def thawing(self) -> None:
        """Counted."""
        self._numbers.thawing()

    def thawed(self, at: float, waited: float | None) -> None:
        """Counted; and said where each is wanted."""
        self._numbers.thawed(at, waited)
        self._reason = ""
        took, waited_ms = time.monotonic() - at, None if waited is None else round(waited * 1e3, 3)
        self._log.debug("thawed", took_ms=round(took * 1e3, 3), waited_ms=waited_ms)

    def failed(self, what: str, reason: str) -> None:
        """Counted, and said once for each reason: it is tried again and again."""
        self._numbers.failed(what, reason)
        if reason != self._reason:
            self._reason = reason
            self._log.debug(f"a {what} failed", why=reason)

    def refused(self, exchanges: int) -> None:
        """Counted, and said."""
        self._numbers.refused(exchanges)
        self._log.error("the thaw took too long: requests were answered 503", requests=exchanges)


class Nobody(Driver):
    """Where nothing is to be frozen (``mode`` is ``off``), nobody is asked."""

    __slots__ = ()

    def freeze(self, ticket: int) -> None:
        """Does nothing; the gate does not ask."""
        self.keeper.failed(ticket, "Nothing is frozen with mode off.")

    def thaw(self, ticket: int) -> None:
        """It runs."""
        self.keeper.done(ticket)


class Sidecar:
    """One pod's. ``run`` it."""

    __slots__ = ("_admin", "_client", "_config", "_drain", "_health", "_ids", "_keeper", "_log", "_loop", "_relay")

    def __init__(self, config: Config, log: Log) -> None:
        """Raises ``OSError`` where it cannot listen."""
        self._config = config
        self._log = log
        self._ids: tuple[str, ...] = ()
        loop = self._loop = Loop()
        listener = _listen("LISTEN", config.listen)
        door = _listen("ADMIN", config.admin)
        numbers = Numbers(loop.now)
        self._client: Client | None = None
        driver: Driver = Nobody()
        if config.daemon is not None and config.settings.mode != "off":
            driver = self._client = Client(
                loop,
                config.daemon,
                TokenFile(config.token_file),
                self._say,
                containers=config.containers,
                mode="" if config.settings.mode == "freeze" else config.settings.mode,
                seen=self._seen,
                numbers=numbers.as_json,
            )
        self._keeper = Keeper(loop, Gate(config.settings), driver, Telling(numbers, log))
        numbers.keeper = self._keeper
        dry = config.settings.mode in ("dry-run", "off")
        self._relay = Relay(loop, self._keeper, listener, config.target, stands_still=not dry)
        self._health = Health(
            loop,
            self._keeper,
            config.readiness,
            config.liveness,
            self._probe,
            lambda: listening(config.target[1]),
            config.await_exchange,
            self._say,
        )
        self._drain = Drain(
            loop,
            self._keeper,
            self._relay,
            url=config.drain_probe,
            quiet=config.drain_quiet,
            grace=config.termination_grace,
            ended=loop.stop,
            say=self._say,
        )
        self._admin = Admin(
            loop,
            door,
            ready=self._health.ask_ready,
            live=self._health.ask_live,
            metrics=numbers.as_text,
            drain=self._drain.on_drained,
            nonce=config.nonce,
        )

    def run(self) -> None:
        """Serve until it has drained after SIGTERM."""
        config = self._config
        self._watch_signals()
        self._relay.start(config.settings.idle_stream)
        if self._client is not None:
            self._client.start()
        self._health.start()
        self._log.info(
            "serving",
            listen=written(self._relay.listener.getsockname()[:2]),
            target=written(config.target),
            daemon=written(config.daemon) if config.daemon else None,
            mode=config.settings.mode,
            grace_ms=round(config.settings.grace * 1e3, 3),
        )
        self._loop.run()
        self._log.info("ended", requests=self._keeper.requests)
        self._admin.close()
        if self._client is not None:
            self._client.close()

    def _say(self, sentence: str) -> None:
        self._log.warning(sentence)

    def _probe(self, probe: "Probe", done: "Callable[[str], None]") -> Probing:
        return Probing(self._loop, probe, self._config.pod_ip, done)

    def _seen(self, ids: tuple[str, ...]) -> None:
        """The daemon says which containers it froze: one that is new has not shown that it is ready."""
        before, self._ids = self._ids, ids
        if before and before != ids:
            self._health.restarted("A container has restarted.")

    def _watch_signals(self) -> None:
        import _signal  # type: ignore[import-not-found]  # the enumerations of signal are a megabyte

        ours, theirs = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        for number in (_TERM, _INT):
            _signal.signal(number, lambda *_: None)
        _signal.set_wakeup_fd(theirs)

        def read(_events: int) -> None:
            for number in posix.read(ours, 64):
                if number in (_TERM, _INT):
                    self._drain.begin(leave=True)

        self._loop.watch(ours, READ, read)


def _listen(variable: str, address: Address) -> "socket":
    host, port = address
    if not is_address(host):
        raise OSError(0, f"FREEZE_PROXY_{variable} names {host}, which is no address: write an IPv4 or IPv6 address.")
    try:
        try:
            return listen(address)
        except OSError:
            if host != "::":
                raise
            return listen(("0.0.0.0", port))  # noqa: S104 - there is no IPv6 here
    except OSError as error:
        raise OSError(error.errno, f"It cannot listen on {written(address)} ({error.strerror}).") from error


def run(environ: "Mapping[str, str]") -> int:
    """A sidecar as these variables say; returns its exit code."""
    try:
        config = Config(environ)
    except Wrong as error:
        for sentence in str(error).splitlines():
            Log().error(sentence)
        return WRONG_SETTING
    log = Log(config.log_level)
    try:
        sidecar = Sidecar(config, log)
    except OSError as error:
        log.error(error.strerror or str(error))
        return CANNOT_WORK
    import gc

    gc.freeze()  # what is here now stays: no collection needs to look at it
    sidecar.run()
    return 0


def main() -> None:
    """The process: what the image runs, and ``freeze-proxy sidecar``."""
    environ = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in posix.environ.items()
    }
    sys.exit(run(environ))
