"""What the webhook is told. What a setting means is said where it is an option, in ``cli.webhook``."""

from dataclasses import dataclass

SECRET = "freeze-proxy-webhook-certs"  # noqa: S105 - its name
CONFIGURATION = "freeze-proxy"
"""The MutatingWebhookConfiguration."""
NAMESPACE, WEBHOOK, DAEMON = "freeze-proxy", "freeze-proxy-webhook", "freeze-proxy-daemon"
AMBIENT = f"{DAEMON}-ambient"
"""What the manifests call the namespace, and what belongs to the webhook and to the daemon."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds."""

    image: str
    listen: tuple[str, int] = ("0.0.0.0", 8443)  # noqa: S104 - the API server comes from elsewhere
    health_listen: tuple[str, int] = ("0.0.0.0", 9697)  # noqa: S104 - so do the kubelet and Prometheus
    namespace: str = NAMESPACE
    service: str = WEBHOOK
    config_dir: str | None = None
    cert_dir: str | None = None
    certificate_lifetime: float = 90 * 86400.0
    check_every: float = 60.0
    settle: float = 5.0
    linger: float = 5.0
    request_timeout: float = 10.0
    native_sidecars: str = "auto"
    sandboxed: tuple[str, ...] = ()
    daemon_port: int = 9696
    kubeconfig: str | None = None
    context: str | None = None
    log_level: str = "info"


class Failure(Exception):
    """The webhook cannot go on; the text is a sentence for whoever started it."""
