"""What a sidecar is told, all of it by environment variables.

``VARIABLES`` is the one list of them; the table in ``docs/sidecar.md`` is made from it.
"""

from freeze_proxy import settings
from freeze_proxy.gate import MODES, Settings
from freeze_proxy.plain_json import parse
from freeze_proxy.sidecar.log import LEVELS
from freeze_proxy.sidecar.probes import Probe, named_probes, probes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

PREFIX = "FREEZE_PROXY_"
_LONG = 24 * 3600.0
_LINKS = ("_SERVICE_", "_PORT")  # of the kubelet, about a Service freeze-proxy-… in the pod's namespace: none is ours

VARIABLES = (
    # name after the prefix, default (None: it must be there), what it is
    ("TARGET", None, "Where the server listens: the user container's port on 127.0.0.1."),
    ("DAEMON", "", "The node's daemon, such as `$(HOST_IP):9696`; needed unless the mode is `off`."),
    ("LISTEN", "127.0.0.1:9999", "Where queue-proxy comes in: its `USER_PORT`."),
    ("ADMIN", ":9998", "Where `/ready`, `/live`, `/metrics` and the preStop path are; no host: all addresses."),
    ("TOKEN_FILE", "/var/run/secrets/freeze-proxy/token", "The projected token; read again when it changes."),
    ("CONTAINERS", "", "Names of the containers to freeze, with commas between; empty: the daemon's default."),
    ("MODE", "freeze", "`freeze`, `throttle`, `dry-run` or `off`."),
    ("GRACE", "100ms", "Quiet time before a freeze."),
    ("THAW_TIMEOUT", "5s", "How long a request waits for a thaw before it is answered 503."),
    ("BREATHE", "off", "`30s/50ms`: while frozen, every 30 s let it run for 50 ms."),
    ("IDLE_STREAM", "off", "A WebSocket or a stream that has been silent for so long counts as idle."),
    ("READINESS_PROBE", "", "The original readiness probe, Kubernetes' JSON, or an array; empty: TCP."),
    ("LIVENESS_PROBES", "", "The original liveness probes, JSON: an object by containers' names; or one."),
    ("AWAIT_REQUEST", "false", "`true` with a startup or exec probe: the first freeze waits for the first request."),
    ("POD_IP", "127.0.0.1", "Where probes go that name no host."),
    ("NONCE", "", "The preStop hook is `GET /drain/NONCE` on the admin port; empty: there is none."),
    ("DRAIN_URL", "", "Answers when no request will come: `http://127.0.0.1:8022/wait-for-drain`."),
    ("DRAIN_QUIET", "2s", "Without such a URL: after so long without a request no more will come."),
    ("TERMINATION_GRACE", "30s", "The pod's terminationGracePeriodSeconds; the sidecar ends a second earlier."),
    ("LOG_LEVEL", "info", "`debug` (each freeze and thaw), `info`, `warning` or `error`."),
)  # fmt: skip


class Wrong(Exception):
    """Something that a sidecar was told cannot be; one sentence for each, a line each."""


class Config:
    """What a sidecar was told. Times are seconds."""

    __slots__ = (
        "admin",
        "await_exchange",
        "containers",
        "daemon",
        "drain_probe",
        "drain_quiet",
        "listen",
        "liveness",
        "log_level",
        "nonce",
        "pod_ip",
        "readiness",
        "settings",
        "target",
        "termination_grace",
        "token_file",
    )

    def __init__(self, environ: "Mapping[str, str]") -> None:
        """Raises ``Wrong``, with all that is wrong."""
        troubles: list[str] = []
        defaults = {name: default for name, default, _ in VARIABLES}

        def read(name: str, reader: "Callable[[str], T]") -> "T":
            text = environ.get(PREFIX + name, "").strip() or defaults[name]
            try:
                if text is None:
                    raise ValueError("it is not set, and has no default.")
                return reader(text)
            except ValueError as error:
                troubles.append(f"{PREFIX}{name}: {error}")
                return None  # type: ignore[return-value]  # it is raised below

        unknown = [
            each
            for each in environ
            if each.startswith(PREFIX)
            and each[len(PREFIX) :] not in defaults
            and not any(link in each for link in _LINKS)
        ]
        troubles += [f"{each} is no setting of a sidecar's." for each in unknown]
        self.target = read("TARGET", settings.address)
        port = self.target[1] if self.target else 0
        self.listen = read("LISTEN", settings.address)
        self.admin = read("ADMIN", _admin)
        self.daemon = read("DAEMON", lambda text: settings.address(text) if text else None)
        self.token_file = read("TOKEN_FILE", str)
        self.containers = read("CONTAINERS", _names)
        self.settings = Settings(
            read("GRACE", settings.duration),
            read("MODE", lambda text: _one_of(MODES, text)),
            read("THAW_TIMEOUT", settings.positive_duration),
            read("BREATHE", settings.breathe),
            read("IDLE_STREAM", settings.idle_stream),
        )
        self.readiness = read("READINESS_PROBE", lambda text: _readiness(text, port))
        self.liveness = read("LIVENESS_PROBES", lambda text: named_probes(parse(text), port) if text else {})
        self.await_exchange = read("AWAIT_REQUEST", lambda text: _one_of(("true", "false"), text) == "true")
        self.pod_ip = read("POD_IP", str)
        self.nonce = read("NONCE", _nonce)
        self.drain_probe = read("DRAIN_URL", _url)
        self.drain_quiet = read("DRAIN_QUIET", settings.duration)
        self.termination_grace = read("TERMINATION_GRACE", settings.positive_duration)
        self.log_level = read("LOG_LEVEL", lambda text: _one_of(LEVELS, text))
        if self.daemon is None and self.settings.mode != "off" and not troubles:
            troubles.append(
                f"{PREFIX}DAEMON: it is not set; write where the node's daemon listens, or set MODE to off."
            )
        if troubles:
            raise Wrong("\n".join(troubles))


def _one_of(words: "tuple[str, ...]", text: str) -> str:
    if text not in words:
        raise ValueError(f"{text!r} is none of {', '.join(words)}.")
    return text


def _admin(text: str) -> "tuple[str, int]":
    """Without a host: of both families, where there are both."""
    host, port = settings.address(text)
    return ("::" if text.startswith(":") else host), port


def _names(text: str) -> "list[str] | None":
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names or None


def _readiness(text: str, port: int) -> "list[Probe]":
    return probes(parse(text) if text else {"tcpSocket": {"port": port}}, port)


def _nonce(text: str) -> str:
    if not all(c.isalnum() or c in "-_" for c in text) or not text.isascii():
        raise ValueError("it may hold letters, digits, - and _ only.")
    return text


def _url(text: str) -> Probe | None:
    """A request that is answered when its time has come; it may last as long as a pod's grace, whatever that is."""
    if not text:
        return None
    authority, slash, path = text.removeprefix("http://").partition("/")
    if not text.startswith("http://"):
        raise ValueError(f"{text!r} is not a URL of this pod: write one such as http://127.0.0.1:8022/wait-for-drain.")
    host, port = settings.address(authority)
    probe = Probe("http", port, host, timeout=_LONG)
    probe.path = slash + path or "/"
    return probe
