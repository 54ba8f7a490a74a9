"""Control requests: who asks, for which pod and containers, and what comes of it, as an answer.

In the order of the checks: path and method, token, body, pod, containers. Nothing but the token says which pod it is.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from functools import partial

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.control.messages import (
    AUDIENCE,
    AWAKE,
    CONNECTION,
    FREEZE,
    FROZEN,
    HOOK,
    HOOK_AUDIENCE,
    LEASE,
    MODES,
    NUMBERS,
    PAUSE,
    RESUME,
    THAW,
    THROTTLED,
    TOKEN,
)
from freeze_proxy.control.server import Answer, Connection, Request, answer, error
from freeze_proxy.daemon.freezing import Freezing, Overtaken, Stuck, TooSlow
from freeze_proxy.daemon.identity import Caller, Identities, Refused, claimed_pod
from freeze_proxy.daemon.metrics import Metrics
from freeze_proxy.daemon.pods import Container, NoContainer, NoPod, Pod, Pods, RuntimeAway
from freeze_proxy.daemon.sidecars import Full, Numbers, Sidecars
from freeze_proxy.freezers import FreezeError, Gone

_MOST_TRUSTED = 16
"""Connections that one pod may keep open."""
_MOST_NAMES = 64
_SAY_AGAIN = 10.0
"""Seconds for which a refusal of one address is logged once."""
_LATER = "Retry-After: 1\r\n"

_log = logging.getLogger(__name__)


class _Wrong(Exception):
    """A request that cannot be carried out as it is: status and sentence."""

    def __init__(self, status: int, sentence: str, more: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.more = more


class Order:
    """What a request asks for. ``names``: of containers, ``None`` for all that are not excluded."""

    __slots__ = ("mode", "names", "thaw")

    def __init__(self, thaw: bool, names: list[str] | None = None, mode: str = "freeze") -> None:
        self.thaw = thaw
        self.names = names
        self.mode = mode


def order_in(path: str, body: bytes) -> Order:
    """What path and body ask for. Pure. Raises ``ValueError`` with a sentence."""
    try:
        facts = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise ValueError("The body is not JSON; leave it out, or send an object.") from None
    if not isinstance(facts, dict):
        raise ValueError("The body must be a JSON object, or be left out.")
    if path == HOOK:
        if facts.get("action") not in (PAUSE, RESUME):
            raise ValueError(f'The body must say what to do: {{"action": "{PAUSE}"}} or {{"action": "{RESUME}"}}.')
        return Order(facts["action"] == RESUME)
    names, mode = facts.get("containers"), facts.get("mode", "freeze")
    if names is not None and not (
        isinstance(names, list) and 0 < len(names) <= _MOST_NAMES and all(isinstance(name, str) for name in names)
    ):
        raise ValueError('"containers" must be a list of container names.')
    if mode not in MODES:
        raise ValueError(f'"mode" must be one of {", ".join(MODES)}.')
    return Order(path == THAW, names, mode)


class Asked:
    """What a request means: who asks for what, and whether with a lease."""

    __slots__ = ("caller", "lease", "order")

    def __init__(self, caller: Caller, order: Order, lease: bool) -> None:
        self.caller = caller
        self.order = order
        self.lease = lease


class Service:
    """Answers the control requests of this node's pods; the server's ``Handler``."""

    def __init__(
        self,
        identities: Identities,
        pods: Pods,
        freezing: Freezing,
        metrics: Metrics,
        sidecars: Sidecars,
        audience: str = AUDIENCE,
        hook_audience: str = HOOK_AUDIENCE,
    ) -> None:
        self._identities = identities
        self._pods = pods
        self._freezing = freezing
        self._metrics = metrics
        self._sidecars = sidecars
        self._audiences = {FREEZE: audience, THAW: audience, NUMBERS: audience, HOOK: hook_audience}
        self._trusted: dict[Connection, Caller] = {}
        self._connections: Counter[str] = Counter()
        self._said: dict[tuple[str, int], float] = {}

    async def answer(self, request: Request) -> Answer:
        """200, or an error with a sentence; see the table of the control protocol."""
        try:
            return await self._carry_out(request)
        except _Wrong as wrong:
            self._refused(request, wrong)
            return error(wrong.status, str(wrong), wrong.more)

    def closed(self, connection: Connection) -> None:
        """What it held is thawed."""
        self._freezing.release(connection)
        self._sidecars.closed(connection)
        caller = self._trusted.pop(connection, None)
        if caller is not None:
            self._connections[caller.uid] -= 1
            if not self._connections[caller.uid]:
                del self._connections[caller.uid]

    # One step after another.

    async def _carry_out(self, request: Request) -> Answer:
        if request.path == NUMBERS:
            self._count(request, self._token(request))
            return answer({})
        asked: Asked | None = request.meaning
        if asked is None:
            asked = await self._understood(request)
            request.keep(asked, partial(self._identities.still, asked.caller))
        caller, order = asked.caller, asked.order
        try:
            states = await (self._thaw if order.thaw else self._freeze)(request, asked)
        except (NoPod, NoContainer) as reason:
            raise _Wrong(404, str(reason)) from reason
        except RuntimeAway as reason:
            raise _Wrong(503, str(reason), _LATER) from reason
        except Overtaken:
            raise _Wrong(409, "A newer order has come, or the connection was closed; nothing was frozen.") from None
        except (TooSlow, Stuck) as reason:
            raise _Wrong(504, str(reason)) from reason
        except FreezeError as reason:
            raise _Wrong(503, str(reason), _LATER) from reason
        took = time.monotonic() - request.at
        state = AWAKE
        if not order.thaw and order.mode != "dry-run":
            state = THROTTLED if order.mode == "throttle" else FROZEN
        # Counted when the answer has left: somebody may wait for that.
        asyncio.get_running_loop().call_soon(self._metrics.carried_out, "thaw" if order.thaw else "freeze", took)
        if _log.isEnabledFor(logging.DEBUG):
            facts = {"pod": f"{caller.namespace}/{caller.name}", "state": state, "took_us": round(took * 1e6)}
            _log.debug("carried out", extra={"facts": facts})
        return answer({"state": state, "containers": states, "took_us": round(took * 1e6)})

    def _token(self, request: Request) -> str:
        """The token, of a request that we know what to do with."""
        audience = self._audiences.get(request.path)
        if audience is None:
            raise _Wrong(404, f"There is nothing at {request.path[:80]!r}: send POST {FREEZE} or POST {THAW}.")
        if request.method != "POST":
            raise _Wrong(405, f"{request.path} takes POST, not {request.method}.", "Allow: POST\r\n")
        token = request.headers.get(TOKEN)
        if not token:
            raise _Wrong(
                400,
                f"The header Token is missing: send the pod's service account token for the audience {audience!r}.",
            )
        return token

    async def _understood(self, request: Request) -> Asked:
        caller = await self._caller(request, self._token(request), self._audiences[request.path])
        self._trust(request.connection, caller)
        try:
            order = order_in(request.path, request.body)
        except ValueError as reason:
            raise _Wrong(400, str(reason)) from None
        return Asked(caller, order, request.headers.get(LEASE, "").lower() == CONNECTION)

    def _count(self, request: Request, token: str) -> None:
        """Keep what a sidecar has counted. Without a wait: the answer to a thaw may come behind the one to this."""
        caller = self._seen(request.connection, token)
        if caller is None:
            raise _Wrong(403, f"Numbers are taken of a pod that has sent {FREEZE} or {THAW} on the same connection.")
        try:
            numbers = Numbers(request.body)
        except ValueError as reason:
            raise _Wrong(400, str(reason)) from None
        pod = self._pods.known(caller.uid)
        if pod is None and not self._sidecars.knows(caller.uid):
            self._pods.look_for(caller.uid)
            raise _Wrong(503, "Which pod this is has to be looked up first; try again in a moment.", _LATER)
        try:
            if pod is not None:
                pod.expect(caller.namespace, caller.name)
            self._sidecars.heard(caller.uid, request.connection, numbers)
        except NoPod as reason:
            raise _Wrong(403, str(reason)) from reason
        except Full as reason:
            raise _Wrong(503, str(reason), _LATER) from reason

    def _seen(self, connection: Connection, token: str) -> Caller | None:
        """The pod that this token names, if it has shown on this connection that it is that."""
        before = self._trusted.get(connection)
        return before if before is not None and claimed_pod(token) == before.uid else None

    async def _caller(self, request: Request, token: str, audience: str) -> Caller:
        try:
            known = self._identities.known(token, audience)
            if known is None and request.path == THAW:
                # A token that was renewed while its pod was frozen. Whoever closes the connection has the pod thawed
                # as well, so a pod that was once seen on it needs no review to thaw itself, nor an API server.
                known = self._seen(request.connection, token)
            return known or await self._identities.identify(token, audience, request.connection.peer)
        except Refused as reason:
            raise _Wrong(403, str(reason)) from reason
        except Unreachable as reason:
            raise _Wrong(503, str(reason), _LATER) from reason

    async def _freeze(self, request: Request, asked: Asked) -> list[dict[str, str]]:
        caller, order = asked.caller, asked.order
        lease = request.connection if asked.lease else None
        for last_try in (False, True):
            pod = await self._pod(caller)
            try:
                containers = pod.chosen(order.names)
                if order.mode == "dry-run":
                    return [_dry(container) for container in containers]
                return await self._freezing.freeze(pod, containers, order.mode, request.number, lease)
            except NoContainer:
                if last_try or await self._pods.renewed(caller.uid) is pod:
                    raise
            except Gone:
                # A container has been restarted: its name stands for another one now.
                self._pods.forget(caller.uid)
                if last_try:
                    raise
        raise AssertionError("the second try returns or raises")

    async def _thaw(self, request: Request, asked: Asked) -> list[dict[str, str]]:
        caller, order = asked.caller, asked.order
        pod = self._pods.known(caller.uid)
        if pod is None:
            # What was frozen here must not wait for a look-up.
            ours = self._freezing.knows(caller.uid)
            await self._freezing.thaw(caller.uid, (), request.number)
            try:
                pod = await self._pod(caller)
            except RuntimeAway:
                if ours:
                    return []
                raise
        containers: list[Container] = []
        try:
            containers = pod.chosen(order.names)
        except NoContainer:
            if order.names is not None:
                await self._freezing.thaw(caller.uid, (), request.number)
                raise
        states = await self._freezing.thaw(caller.uid, containers, request.number)
        if len(states) < len(containers):
            self._pods.forget(caller.uid)
        return states

    async def _pod(self, caller: Caller) -> Pod:
        pod = self._pods.known(caller.uid) or await self._pods.find(caller.uid)
        pod.expect(caller.namespace, caller.name)
        return pod

    def _trust(self, connection: Connection, caller: Caller) -> None:
        if connection not in self._trusted and not connection.closed and self._connections[caller.uid] < _MOST_TRUSTED:
            self._trusted[connection] = caller
            self._connections[caller.uid] += 1
            connection.trust()

    def _refused(self, request: Request, wrong: _Wrong) -> None:
        self._metrics.refused(wrong.status)
        now = time.monotonic()
        key = (request.connection.peer, wrong.status)
        if now < self._said.get(key, 0.0):
            return
        if len(self._said) > 1024:
            self._said.clear()
        self._said[key] = now + _SAY_AGAIN
        level = logging.DEBUG if wrong.status == 409 else logging.WARNING
        facts = {"status": wrong.status, "peer": request.connection.peer, "path": request.path[:80], "why": str(wrong)}
        _log.log(level, "a request was refused", extra={"facts": facts})


def _dry(container: Container) -> dict[str, str]:
    container.freezer("freeze").alive()  # that it could be frozen
    return {"name": container.name, "id": container.id, "state": AWAKE}
