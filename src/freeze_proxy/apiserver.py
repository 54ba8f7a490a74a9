"""How the Kubernetes API server is reached, inside a cluster and outside, and what its failures mean.

Nothing from the environment decides where our credentials go: no proxy, no ``.netrc``.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx2
from lightkube import ConfigError, KubeConfig, SingleConfig
from lightkube.config.client_adapter import user_auth, verify_cluster

PATIENCE = 3.0
"""Seconds for one call, its connection included."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet puts a pod's own credentials."""
KEPT_ALIVE = 60.0
"""Seconds for which an idle connection stays open for the next call."""

_NOT_FOUND = 404

_NOTICES_ITS_END = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""TCP keep-alive within half a minute: who only listens, to a watch say, would never notice otherwise."""

T = TypeVar("T")


class NotConfigured(Exception):
    """It cannot be known how to reach the API server; the text is a sentence for who starts us."""


class Unreachable(Exception):
    """Nobody can be asked just now; the text is a sentence, for the log and for whoever waits."""


class ApiServer:
    """The API server of one cluster.

    From the file ``kubeconfig`` and its ``context`` (the current one if not given), or, without a file, from the
    service account of the pod that this runs in. ``who`` asks, in sentences. Raises ``NotConfigured``.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None, who: str = "daemon") -> None:
        self._who = who
        self.config = _from_file(kubeconfig, context) if kubeconfig else _from_service_account()
        self.address = self.config.cluster.server
        if self.config.user is None:
            raise NotConfigured(f"The context {self.config.context_name} of {kubeconfig} names no user.")
        try:
            self._trust = verify_cluster(self.config.cluster, self.config.user, self.config.abs_file, trust_env=False)
            self.auth = user_auth(self.config.user)
        except (ConfigError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise NotConfigured(
                f"The certificates or credentials for {self.address} cannot be used: {type(error).__name__}. "
                "Check that the files named by the configuration exist, may be read and are PEM."
            ) from None

    def transport(self, most: int = 16) -> httpx2.AsyncHTTPTransport:
        """A pool of connections of its own: so many at most. One whose other end is gone ends by itself."""
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=4, keepalive_expiry=KEPT_ALIVE)
        return httpx2.AsyncHTTPTransport(
            verify=self._trust, trust_env=False, limits=limits, socket_options=_NOTICES_ITS_END
        )

    async def call(self, ask: Callable[[], Awaitable[T]], what: str, grant: str) -> T:
        """The answer of ``ask()``, which does ``what`` and may be asked twice: a connection kept alive may have ended.

        Raises ``Unreachable``, with a sentence that says ``what`` failed; ``grant`` is the permission that it needs.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    return await ask()
                except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                    return await ask()
        except (TimeoutError, httpx2.TimeoutException):
            why = f"no answer within {PATIENCE:g} s"
        except httpx2.TransportError as error:
            why = str(error) or type(error).__name__
        except (ConfigError, OSError) as error:  # our own credentials are read when they are needed
            why = f"the {self._who}'s own credentials cannot be read ({error})"
        except Unreachable:
            raise
        except Exception as error:  # whatever a decoder raises; its text may hold what was answered
            status = _status(error)
            why = (
                f"its answer cannot be understood ({type(error).__name__})"
                if status is None
                else _reason(status, grant, self._who)
            )
        raise Unreachable(f"The API server {self.address} could not {what}: {why}.")

    async def find(self, ask: Callable[[], Awaitable[T]], what: str, grant: str) -> T | None:
        """Like ``call``, for an object that may not be there: nothing, then."""

        async def look() -> T | None:
            try:
                return await ask()
            except httpx2.HTTPStatusError as error:
                if error.response.status_code == _NOT_FOUND:
                    return None
                raise

        return await self.call(look, what, grant)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that led to this error: lightkube fails over a response that is no ``Status`` object."""
    while error is not None:
        if isinstance(error, httpx2.HTTPStatusError):
            return error.response.status_code
        error = error.__context__
    return None


def _reason(status: int, grant: str, who: str) -> str:
    if status == 401:
        return f"it does not accept the {who}'s own credentials (401); check its service account token or kubeconfig"
    if status == 403:
        return f"the {who} may not (403); grant its service account the permission to {grant}"
    if status == 429:
        return "it is overloaded (429)"
    return f"it answered {status}"


def _from_file(path: str, context: str | None) -> SingleConfig:
    try:
        config = KubeConfig.from_file(path).get(context)
    except ConfigError as error:
        raise NotConfigured(f"The kubeconfig {path} cannot be used: {error}.") from None
    except OSError as error:
        raise NotConfigured(f"The kubeconfig {path} cannot be read: {error.strerror}.") from None
    except KeyError as error:
        raise NotConfigured(f"The kubeconfig {path} cannot be used: it lacks {error}.") from None
    except Exception as error:  # of the YAML reader, whose text shows lines of the file
        raise NotConfigured(f"The kubeconfig {path} cannot be understood: {type(error).__name__}.") from None
    if config is None:
        raise NotConfigured(f"The kubeconfig {path} has no current context; name one with --context.")
    return config


def _from_service_account() -> SingleConfig:
    if "KUBERNETES_SERVICE_HOST" not in os.environ or "KUBERNETES_SERVICE_PORT" not in os.environ:
        raise NotConfigured(
            "This does not run in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); "
            "name a kubeconfig with --kubeconfig."
        )
    try:
        config = KubeConfig.from_service_account(SERVICE_ACCOUNT).get()
    except (ConfigError, OSError) as error:
        raise NotConfigured(
            f"The pod's service account cannot be read ({error}); is automountServiceAccountToken off?"
        ) from None
    assert config is not None  # made with a current context
    return config
