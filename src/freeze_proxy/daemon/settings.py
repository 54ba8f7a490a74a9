"""What the daemon is told. What a setting means is said where it is an option, in ``cli.daemon``.

The supervisor reads this too, so it imports nothing heavy.
"""

from dataclasses import dataclass, field

from freeze_proxy.annotations import SIDECARS
from freeze_proxy.control.messages import AUDIENCE, HOOK_AUDIENCE
from freeze_proxy.tcp import Address


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds."""

    listen: Address = ("127.0.0.1", 9696)
    health_listen: Address = ("127.0.0.1", 9697)
    node_name: str | None = None
    identity: str = "tokenreview"
    audience: str = AUDIENCE
    hook_audience: str = HOOK_AUDIENCE
    kubeconfig: str | None = None
    context: str | None = None
    issuer: str | None = None
    runtime_socket: str = "auto"
    freezer: str = "auto"
    exclude: tuple[str, ...] = field(default_factory=lambda: tuple(sorted(SIDECARS)))
    state_dir: str = "/run/freeze-proxy"
    freeze_timeout: float = 2.0
    claim_timeout: float = 3.0
    ambient: bool = False
    config_dir: str | None = None
    log_level: str = "info"


class Failure(Exception):
    """The daemon cannot go on; the text is a sentence for whoever started it."""
