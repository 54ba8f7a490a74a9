"""Which pod is asking: what is remembered of tokens, and who may ask for a review.

Touches no network: a ``Reviewer`` does (``reviews``, ``keys``). What stands here holds for every kind of review: the
limits against hostile tokens, the check of the node, and that a token reviewed once needs no call until it expires.
"""

import asyncio
import base64
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.control.messages import MOST_TOKEN

MOST_CALLERS, MOST_REFUSALS = 4096, 1024
"""How many tokens are remembered, accepted and refused ones; beyond that the oldest is forgotten."""
REFUSAL_LASTS = 5.0
"""Seconds for which a refusal is remembered."""
UNDATED_LASTS = 600.0
"""Seconds for which a token that names no expiry is remembered."""
MOST_REVIEWS, MOST_WAITING = 16, 256
"""How many reviews go on at a time, and how many more may wait for their turn."""
AT_ONCE_FROM_ONE, MOST_FROM_ONE = 2, 128
"""The same for those who ask from one address: reviews at a time, and all with those that wait."""
REST = 0.1
"""Seconds for which a refusal keeps its address's turn taken: forged tokens cost the API server 20 reviews a second."""
PATIENCE = 5.0
"""Seconds after which a review, its time of waiting included, has failed."""
ACCEPTED, REFUSED, UNREACHABLE = "accepted", "refused", "unreachable"
"""How a review ends."""

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Caller:
    """The pod that a token speaks for.

    ``uid`` is empty where the token is bound to no pod, ``node`` is ``None`` where it does not say; ``expires`` is in
    seconds of Unix time.
    """

    uid: str
    namespace: str
    name: str
    node: str | None
    expires: float


class Refused(Exception):
    """The token does not prove which pod of this node asks; the text is a sentence for who sent it."""


class Reviewer(Protocol):
    """Finds out whom a token speaks for."""

    async def review(self, token: str, audience: str) -> Caller:
        """The caller to whom this token was given, for this audience. Raises ``Refused`` and ``Unreachable``."""

    async def close(self) -> None:
        """Give back connections."""


class Observer:
    """Is told what happens, for metrics. This one ignores it."""

    def remembered(self) -> None:
        """A token was known; no review was needed."""

    def reviewed(self, outcome: str, seconds: float) -> None:
        """A review has ended: ``ACCEPTED``, ``REFUSED`` or ``UNREACHABLE``, so many seconds after it was asked for."""


T = TypeVar("T")


class _Memory(Generic[T]):
    """At most ``most`` values, each until its time comes, and none for more than ``longest`` seconds."""

    SWEEP_EVERY = 60.0

    def __init__(self, most: int, longest: float = float("inf")) -> None:
        self._most = most
        self._longest = longest
        self._kept: dict[bytes, tuple[float, T]] = {}
        self._swept = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float) -> T | None:
        found = self._kept.get(key)
        if found is None:
            return None
        until, value = found
        # A clock that is set back must not make a value last for longer than it may.
        if 0 < until - now <= self._longest:
            return value
        del self._kept[key]
        return None

    def put(self, key: bytes, value: T, until: float, now: float) -> None:
        if until <= now:
            return
        if abs(now - self._swept) >= self.SWEEP_EVERY:
            self._swept = now
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > now}
        self._kept.pop(key, None)
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (until, value)


class _Origin:
    """Those who ask from one address. ``busy``: how many are under way, or rest."""

    __slots__ = ("busy", "turns")

    def __init__(self) -> None:
        self.busy = 0
        self.turns = asyncio.Semaphore(AT_ONCE_FROM_ONE)


class Identities:
    """Whom tokens speak for: remembered, or found out by ``reviewer``. ``node`` is the name of this node, if known.

    ``clock`` gives Unix time in seconds. Tokens are kept as hashes only.
    """

    def __init__(
        self,
        reviewer: Reviewer,
        node: str | None,
        observe: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reviewer = reviewer
        self._node = node
        self._observe = observe or Observer()
        self._clock = clock
        self._callers: _Memory[Caller] = _Memory(MOST_CALLERS)
        self._refusals: _Memory[str] = _Memory(MOST_REFUSALS, REFUSAL_LASTS)
        self._flights: dict[bytes, asyncio.Task[Caller]] = {}
        self._turns = asyncio.Semaphore(MOST_REVIEWS)
        self._origins: dict[str, _Origin] = {}

    def known(self, token: str, audience: str) -> Caller | None:
        """The caller, if the token has been accepted before and has not expired. Takes microseconds.

        Raises ``Refused`` where it was refused a moment ago, or cannot be a token at all.
        """
        return self._recall(_key(token, audience))

    def still(self, caller: Caller) -> bool:
        """Whether the token of a caller who is known has not expired meanwhile."""
        if caller.expires <= self._clock():
            return False
        self._observe.remembered()
        return True

    async def identify(self, token: str, audience: str, address: str = "") -> Caller:
        """The caller, from memory or by a review; one review for all who ask for the same meanwhile.

        ``address`` is where it is asked from: who sends unknown tokens in great number has to wait, and nobody else.
        Raises ``Refused`` and ``Unreachable``. Who stops waiting does not stop the review for the others.
        """
        key = _key(token, audience)
        caller = self._recall(key)
        if caller is not None:
            return caller
        if not _JWT.fullmatch(token):
            raise Refused("The token is not a service account token: three parts in base64url with dots between.")
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= MOST_REVIEWS + MOST_WAITING:
                raise Unreachable("Too many unknown tokens wait for a review; try again in a moment.")
            origin = self._origins.get(address)
            if origin is None:
                origin = self._origins[address] = _Origin()
            elif origin.busy >= MOST_FROM_ONE:
                raise Unreachable("Too many unknown tokens from this address wait for a review; try again in a moment.")
            origin.busy += 1
            flight = asyncio.create_task(self._fly(key, token, audience, address))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._left(address, origin))
            flight.add_done_callback(lambda done: self._landed(key, done))
        try:
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            if flight.cancelled():
                raise Unreachable("The daemon is ending; its successor will review the token.") from None
            raise

    async def close(self) -> None:
        """End reviews that are under way, and the reviewer's connections."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._reviewer.close()

    def _recall(self, key: bytes) -> Caller | None:
        now = self._clock()
        caller = self._callers.get(key, now)
        if caller is not None:
            self._observe.remembered()
            return caller
        refusal = self._refusals.get(key, now)
        if refusal is not None:
            self._observe.remembered()
            raise Refused(refusal)
        return None

    async def _fly(self, key: bytes, token: str, audience: str, address: str) -> Caller:
        began = time.monotonic()
        outcome = UNREACHABLE
        try:
            async with asyncio.timeout(PATIENCE), self._turn_at(address), self._turns:
                caller = self._admit(await self._reviewer.review(token, audience))
            outcome = ACCEPTED
            now = self._clock()
            self._callers.put(key, caller, caller.expires, now)
            return caller
        except Refused as refusal:
            outcome = REFUSED
            now = self._clock()
            self._refusals.put(key, str(refusal), now + REFUSAL_LASTS, now)
            raise
        except Unreachable:
            raise
        except TimeoutError:
            raise Unreachable(
                f"The token was not reviewed within {PATIENCE:g} s; is the API server reachable?"
            ) from None
        except Exception as error:  # its text may hold the token
            raise Unreachable(f"Reviewing the token failed unexpectedly: {type(error).__name__}.") from None
        finally:
            self._observe.reviewed(outcome, time.monotonic() - began)

    @asynccontextmanager
    async def _turn_at(self, address: str) -> AsyncIterator[None]:
        """A turn of this address, which rests after a refusal; only the next from there waits for that."""
        origin = self._origins[address]
        await origin.turns.acquire()
        rest = 0.0
        try:
            yield
        except Refused:
            rest = REST
            raise
        finally:
            origin.busy += 1
            asyncio.get_running_loop().call_later(rest, self._rested, address, origin)

    def _rested(self, address: str, origin: _Origin) -> None:
        origin.turns.release()
        self._left(address, origin)

    def _admit(self, caller: Caller) -> Caller:
        """The same caller, if it is a pod of this node."""
        if not caller.uid:
            raise Refused(
                "The token is not bound to a pod; mount one as a projected volume, "
                "with the source serviceAccountToken and this audience."
            )
        if self._node is not None and caller.node is not None and caller.node != self._node:
            raise Refused(
                f"The token belongs to a pod on node {caller.node}, and this is node {self._node}; "
                "ask the daemon of the pod's own node."
            )
        return caller

    def _left(self, address: str, origin: _Origin) -> None:
        origin.busy -= 1
        if not origin.busy:
            del self._origins[address]

    def _landed(self, key: bytes, flight: asyncio.Task[Caller]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # seen, even if everybody who waited has gone


def expiry(token: str, now: float) -> float:
    """When a token expires that has been accepted, in seconds of Unix time; soon if it does not say."""
    try:
        expires = float(_claims(token)["exp"])
    except (LookupError, TypeError, ValueError, OverflowError):
        expires = math.nan
    return expires if math.isfinite(expires) else now + UNDATED_LASTS


def claimed_pod(token: str) -> str:
    """The UID of the pod that a token says it is of, which proves nothing; empty if it does not say."""
    try:
        uid = _claims(token)["kubernetes.io"]["pod"]["uid"]
    except (LookupError, TypeError, ValueError):
        uid = ""
    return uid if isinstance(uid, str) else ""


def _claims(token: str) -> Any:
    """Raises ``LookupError`` and ``ValueError``."""
    payload = token.split(".")[1]
    try:
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except RecursionError:
        raise ValueError from None


def without_token(text: str, token: str) -> str:
    """The first words of ``text``, which others have written, as one line that holds no part of the token."""
    if any(part in text for part in token.split(".")):
        return "it says why, but quotes the token"
    return " ".join(text.split())[:200].rstrip(". ")


def _key(token: str, audience: str) -> bytes:
    """What a token is remembered by. Raises ``Refused`` for what is too long or cannot be a token."""
    if len(token) > MOST_TOKEN:
        raise Refused(f"The token is longer than {MOST_TOKEN} bytes.")
    if not token.isascii():
        raise Refused("The token has characters that no token has.")
    return sha256(f"{audience}\0{token}".encode()).digest()
