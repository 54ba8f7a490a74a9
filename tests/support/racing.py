"""Requests at random moments around a freeze, and whether freezing makes any of them late.

With a grace of 2 ms the next freeze is ordered 2 ms after a response. Each try sends a request at a random moment from
1 ms before that to some milliseconds after it, so that it meets a server awake, about to be frozen, half frozen, and
frozen. In the pause before each try there is another, at a random moment too: the same request, by the same way, to a
server that is never frozen. This is the *yardstick*: as many tries, at the same pace, in the same run.

A try is *late* if it takes longer than the yardstick's median and all that is allowed for a thaw, with 10 ms on top. On
a machine whose processors are few or not its own, a pause of a scheduler's does that to any request now and then. If
nothing else does, it strikes each moment for which a request is under way alike. So the late ones divide between the
two in proportion to the time for which the others were under way, by chance (binomially). A race fails

- if what races freezes has so many late ones that this chance would give as many or more in less than one of
  ``ONE_IN`` races: freezing makes requests late. Where other tests run meanwhile (``make test``) it takes more: their
  load strikes what goes through more processes more often;
- if one of these takes ``STALL`` or longer, whatever the yardstick has: as long as TCP waits to send again what has
  found nobody (RTO_MIN of Linux, 200 ms; a SYN waits for a second), and no thaw takes.
"""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from tests.support.running import Beside, Event, Running
from tests.support.starting import Start

GRACE = 0.002
EARLY = 0.001
STALL = 0.2
USUAL = 0.02
"""Seconds that more than half of the requests are to stay below, whatever the machine is busy with."""
ON_TOP = 0.010
SOAK = os.environ.get("FREEZE_PROXY_SOAK") == "yes"
"""Whether it is a long run, with the machine to itself: ``make race``, ``make soak``."""
ONE_IN = 1_000 if SOAK else 1_000_000

Ask = Callable[[int], None]
"""Sends the request of this number, and returns when the response is there."""


@dataclass(frozen=True)
class Pace:
    """How long after a response a freeze may still be under way, and what a thaw may take, in seconds."""

    latest: float
    thaw: float


def pace_of(start: Start) -> Pace:
    """What the goals are for this way. Ambient looks at a response's packets half a millisecond later or more; in a pod
    a freeze takes a message to the daemon and its answer."""
    if start is Running:
        return Pace(0.003, 0.0015)
    return Pace(0.008, 0.0015) if start is Beside else Pace(0.005, 0.003)


@dataclass(frozen=True)
class Outcome:
    """One race, as it is shown. Times are milliseconds."""

    tries: int
    freezes: int
    awake_p50: float
    p50: float
    p99: float
    longest: float
    late_beyond: float
    late: int
    yardstick_longest: float
    yardstick_late: int
    chance: float


class Race:
    """``raced`` and ``yardstick`` are the latencies of requests, in seconds."""

    def __init__(self, pace: Pace, seed: int) -> None:
        self.pace = pace
        self.raced: list[float] = []
        self.yardstick: list[float] = []
        self.chance = random.Random(seed)

    def run(self, tries: int, ask: Ask, ask_unfrozen: Ask) -> None:
        """One after another."""
        for number in range(tries):
            pause = GRACE + self.chance.uniform(-EARLY, self.pace.latest)
            end = time.monotonic() + pause
            time.sleep(self.chance.uniform(0, pause))
            self.yardstick.append(_timed(ask_unfrozen, number))
            time.sleep(max(0.0, end - time.monotonic()))
            self.raced.append(_timed(ask, number))

    def outcome(self, report: Event) -> Outcome:
        """What there is to be shown, and judged."""
        awake = statistics.median(self.yardstick)
        bound = awake + self.pace.thaw + ON_TOP
        late = [took for took in self.raced if took > bound]
        excused = [took for took in self.yardstick if took > bound]
        under_way = sum(took for took in self.raced if took <= bound)
        in_all = under_way + sum(took for took in self.yardstick if took <= bound)
        return Outcome(
            tries=len(self.raced),
            freezes=int(report["freezes"]),
            awake_p50=awake * 1e3,
            p50=statistics.median(self.raced) * 1e3,
            p99=sorted(self.raced)[len(self.raced) * 99 // 100] * 1e3,
            longest=max(self.raced) * 1e3,
            late_beyond=bound * 1e3,
            late=len(late),
            yardstick_longest=max(self.yardstick) * 1e3,
            yardstick_late=len(excused),
            chance=chance_of(len(late), len(late) + len(excused), under_way / in_all if in_all else 0.5),
        )


def judge(outcome: Outcome, around: int, one_in: int = ONE_IN) -> None:
    """See above. The tries were made around so many freezes as ``around``."""
    shown = asdict(outcome)
    assert outcome.longest < STALL * 1e3, f"A request stalled: {shown}"
    assert outcome.p50 < USUAL * 1e3, f"The usual request is slow: {shown}"
    assert outcome.chance >= 1 / one_in, f"Freezing makes requests late: {shown}"
    assert outcome.freezes > around / 4, f"The tries did not meet freezes: {shown}"


def table(outcomes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of what races have come to, by their names."""
    heads = ("tries", "freezes", "awake p50", "p50", "p99", "longest", "late: beyond", "raced", "yardstick", "longest")
    rows = [["ms, unless a number of", *heads]]
    for name, one in outcomes.items():
        times = [f"{one[each]:.2f}" for each in ("awake_p50", "p50", "p99", "longest", "late_beyond")]
        late = [f"{one[each]:,}" for each in ("late", "yardstick_late")]
        rows.append(
            [name, f"{one['tries']:,}", f"{one['freezes']:,}", *times, *late, f"{one['yardstick_longest']:.2f}"]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def chance_of(least: int, of: int, share: float) -> float:
    """How likely ``least`` or more of so many are where each is with this chance, from 0 to 1."""
    if not least:
        return 1.0
    if not 0 < share < 1:
        return float(share == 1)
    logs = (
        math.lgamma(of + 1)
        - math.lgamma(some + 1)
        - math.lgamma(of - some + 1)
        + some * math.log(share)
        + (of - some) * math.log1p(-share)
        for some in range(least, of + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _timed(ask: Ask, number: int) -> float:
    since = time.monotonic()
    ask(number)
    return time.monotonic() - since
