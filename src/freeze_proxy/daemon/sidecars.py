"""What has been counted of this node's pods, mostly by their sidecars, so that one scrape of the daemon has it all.

A pod can say what it likes of itself, and of nobody else: its namespace, name and revision are those that the runtime
knows. Kept is the last that was said by each pod, a few hundred bytes, for as long as the connection lasts on which it
came and anybody is left in the pod.

The text is not made by the library that makes the rest of the metrics: for hundreds of pods it takes tens of
milliseconds at a stretch, and a pod that wants to be thawed would wait for that.
"""

import asyncio
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from math import isfinite
from typing import Any, Protocol

from freeze_proxy.control.messages import COUNTS, SECONDS, WAIT_BOUNDS, WAITS
from freeze_proxy.daemon.pods import Pod, Pods
from freeze_proxy.daemon.rounds import Rounds

_SWEPT = 32
"""Pods looked at in a sweep."""
MOST_PODS = 1024
"""Of which something is kept; a kubelet runs a few hundred."""
_MOST = 2.0**53
"""No number is as large: beyond, a float is not exact."""
_AT_ONCE = 32
"""Pods of which a metric is written before others have their turn."""

_LES = (*(str(bound) for bound in WAIT_BOUNDS), "+Inf")


class Full(Exception):
    """There are too many pods to keep what this one says; the text is a sentence."""


class Counted(Protocol):
    """What has been counted of one pod: by a sidecar, or by this daemon. What is missing cannot be known."""

    counts: dict[str, int]
    seconds: dict[str, float]

    @property
    def waits(self) -> Sequence[int]:
        """By the buckets of ``WAIT_BOUNDS``."""


class Numbers:
    """What one sidecar has counted since it has started: ``counts``, ``seconds`` by their names, and ``waits``."""

    __slots__ = ("counts", "seconds", "waits")

    def __init__(self, body: bytes) -> None:
        """Raises ``ValueError`` with a sentence unless it is what a sidecar says."""
        try:
            facts = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("The body is not JSON.") from None
        if not isinstance(facts, dict):
            raise ValueError("The body must be a JSON object.")
        self.counts = {name: _count(name, facts.get(name)) for name in COUNTS}
        self.seconds = {name: _seconds(name, facts.get(name)) for name in SECONDS}
        waits = facts.get(WAITS)
        if not isinstance(waits, list) or len(waits) != len(_LES):
            raise ValueError(f'"{WAITS}" must be a list of {len(_LES)} counts.')
        self.waits = tuple(_count(WAITS, each) for each in waits)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        raise ValueError(f'"{name}" must be a count.')
    return value


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST or not isfinite(value):
        raise ValueError(f'"{name}" must be a number of seconds.')
    return float(value)


Reader = Callable[[Counted], float | None]


def _of_counts(name: str) -> Reader:
    return lambda numbers: numbers.counts.get(name)


def _of_seconds(name: str) -> Reader:
    return lambda numbers: numbers.seconds.get(name)


_FAMILIES: tuple[tuple[str, str, str, tuple[tuple[str, Reader], ...]], ...] = (
    # name, kind, what it is, and for each sample what follows the pod's labels and where it is from
    ("start_time_seconds", "gauge", "Since when the sidecar counts, in Unix time", (("", _of_seconds("started")),)),
    ("requests_total", "counter", "Requests that have begun", (("", _of_counts("requests")),)),
    ("in_flight_seconds_total", "counter", "For how long requests were in flight, those at once counted each",
     (("", _of_seconds("in_flight_seconds")),)),
    ("freezes_total", "counter", "Freezes that were carried out", (("", _of_counts("freezes")),)),
    ("thaws_total", "counter", "Thaws that were carried out", (("", _of_counts("thaws")),)),
    ("failed_orders_total", "counter", "Freezes and thaws that failed, each try counted",
     ((',order="freeze"', _of_counts("failed_freezes")), (',order="thaw"', _of_counts("failed_thaws")))),
    ("refused_total", "counter", "Requests answered 503, for the thaw took too long", (("", _of_counts("refused")),)),
    ("frozen_seconds_total", "counter", "For how long it stood still, up to the last thaw",
     (("", _of_seconds("frozen_seconds")),)),
)  # fmt: skip
_WAIT = ("wait_seconds", "From the first byte that had to wait for a thaw until it might pass")


class _Said:
    __slots__ = ("by", "labels", "numbers", "pod")

    def __init__(self, pod: Pod, by: Hashable) -> None:
        self.pod = pod
        self.by = by
        parts = (("namespace", pod.namespace), ("pod", pod.name), ("revision", pod.revision))
        self.labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in parts)
        self.numbers: Counted


def _escaped(value: str) -> str:
    """As a label's value (Prometheus documentation, "Text format details")."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Sidecars:
    """Keeps what they say. ``pods`` says who is there."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._said: dict[str, _Said] = {}
        self._uids: dict[Hashable, str] = {}
        self._in_turn = Rounds(self._said.values, _SWEPT)

    def __len__(self) -> int:
        return len(self._said)

    def knows(self, uid: str) -> bool:
        """Whether something is kept of this pod, and with it who it is."""
        return uid in self._said

    def heard(self, uid: str, by: Hashable, numbers: Counted) -> None:
        """A pod that is known, here or to ``pods``, has said this on the connection ``by``. Raises ``Full``."""
        said, pod = self._said.get(uid), self._pods.known(uid)
        if said is None or (pod is not None and said.pod is not pod):
            assert pod is not None, "who is not known is not heard"
            if said is None and len(self._said) >= MOST_PODS:
                raise Full(f"The numbers of {MOST_PODS} pods are kept already; those of {pod} are not.")
            said = self._said[uid] = _Said(pod, by)
        said.by, said.numbers = by, numbers
        self._uids[by] = uid

    def closed(self, by: Hashable) -> None:
        """This connection has ended."""
        uid = self._uids.pop(by, None)
        if uid is not None and (said := self._said.get(uid)) is not None and said.by is by:
            del self._said[uid]

    async def sweep(self) -> None:
        """Forget those who are gone, whoever holds their connection. To be called every few seconds."""
        async for said in self._in_turn.turn():
            uid = said.pod.uid
            # Whoever is known is alive, or will soon be forgotten.
            if self._said.get(uid) is said and self._pods.known(uid) is None and not said.pod.alive():
                del self._said[uid]

    async def text(self) -> bytes:
        """All of it in Prometheus' text format; others have their turn meanwhile."""
        parts: list[str] = []
        everyone = [(said.labels, said.numbers) for said in self._said.values()]
        for name, kind, about, samples in _FAMILIES:
            full = f"freeze_proxy_pod_{name}"
            parts.append(f"# HELP {full} {about}\n# TYPE {full} {kind}\n")
            for place, (labels, numbers) in enumerate(everyone):
                if place % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                parts += (
                    f"{full}{{{labels}{more}}} {float(value)!r}\n"
                    for more, read in samples
                    if (value := read(numbers)) is not None
                )
        name, about = _WAIT
        full = f"freeze_proxy_pod_{name}"
        parts.append(f"# HELP {full} {about}\n# TYPE {full} histogram\n")
        for place, (labels, numbers) in enumerate(everyone):
            if place % (_AT_ONCE // 4) == 0:
                await asyncio.sleep(0)
            parts += _histogram(full, labels, numbers)
        return "".join(parts).encode()


def _histogram(full: str, labels: str, numbers: Counted) -> Iterator[str]:
    count = 0
    for le, more in zip(_LES, numbers.waits, strict=True):
        count += more
        yield f'{full}_bucket{{{labels},le="{le}"}} {float(count)!r}\n'
    yield f"{full}_count{{{labels}}} {float(count)!r}\n"
    yield f"{full}_sum{{{labels}}} {numbers.seconds['waited_seconds']!r}\n"
