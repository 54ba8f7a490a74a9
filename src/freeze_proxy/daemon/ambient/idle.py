"""When nothing is in flight in a pod of Knative's: from queue-proxy's own statistics and the count of packets.

What queue-proxy says (``Stat`` of ``pkg/autoscaler/metrics/stat.proto``; ``pkg/queue/protobuf_stats_reporter.go`` in
knative.dev/serving and ``pkg/http/stats`` in knative.dev/networking make it; the same in the releases 0.42 to 0.51 of
those modules): once a second, when its ticker says so, it makes a *report* of the time since the last one, and answers
with the newest whenever it is asked. A report holds the average concurrency, the number of requests that have begun,
and the uptime of the process, taken just afterwards, which is different in every report and so tells them apart. Before
the first report all is zero, the uptime too.

A request is in flight there from before its first byte goes to the server until its handler has returned: a WebSocket
as long as it is open, a request that waits for its turn under a concurrency limit as well.

*One report.* Making it takes a lock, under which requests begin and end, too. Let p be that moment. If no request has
begun since the last report, and the average since then is zero, nothing is in flight at p: what had been in flight for
any part of that time would have left an average above zero. A request that begins and ends within one report shows in
its number, although its average may vanish; one of 30 s shows in the average of all reports that it touches. Such a
report is called *clean*. It says nothing about the time after p.

*From p until now.* A request that has begun after p has sent the server a packet, which has been counted, or will send
one: that will wake the server. So if the count now is what it was at some moment before p, nothing is in flight.

*Which moment is before p?* Making a report and publishing it are two steps with anything in between, for queue-proxy
may be held up anywhere. But one goroutine makes all reports, so a report is begun only after the last one has been
published. Somebody reads the count, then asks, and is answered report a. Asking again, he is answered a later one, b,
which was published after he had asked; then a later one still, c, which was begun after b was published. So the moment
at which he read the count is before the p of c, whatever has been slow. Hence the rule:

    Nothing is in flight if three different reports have been heard in answer to questions that were asked since the
    count was last seen to change, the newest is clean, and the count is still the same.

That takes between one second and three after the last packet, and needs no clock. Of queue-proxy's own probes, which it
does not count, and of what reaches the server past it, only packets tell: who wants those requests protected beyond a
second of silence must not use it.
"""

from dataclasses import dataclass
from math import isfinite

REPORTS = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What queue-proxy says: ``concurrency`` on average, ``requests`` begun, and the ``uptime`` then, in seconds."""

    concurrency: float
    requests: float
    uptime: float

    @property
    def made(self) -> bool:
        """Whether there has been one yet, and it is of this world."""
        return isfinite(self.uptime) and self.uptime > 0

    @property
    def clean(self) -> bool:
        """Nothing was in flight when it was made."""
        return self.concurrency == 0 and self.requests == 0


class Proof:
    """The rule above. ``asking`` before each question, ``heard`` for its answer, one question at a time."""

    __slots__ = ("_clean", "_different", "_packets", "_uptime")

    def __init__(self) -> None:
        self._packets: int | None = None
        self._different = 0
        self._uptime = 0.0
        self._clean = False

    def again(self) -> None:
        """All that was heard is forgotten; an answer that is still to come, too."""
        self._packets = None
        self._different = 0

    def asking(self, packets: int) -> None:
        """The question is sent next; so many packets have been counted."""
        if packets != self._packets:
            self._packets = packets
            self._different = 0

    def heard(self, report: Report) -> None:
        """The answer to it."""
        if self._packets is None:
            return
        if not report.made or (self._different and report.uptime < self._uptime):
            self._different = 0  # it has only just been started, or once more
        if not report.made:
            return
        if not self._different or report.uptime > self._uptime:
            self._different += 1
        self._uptime = report.uptime
        self._clean = report.clean

    def holds(self, packets: int) -> bool:
        """Whether nothing is in flight, now that so many packets have been counted."""
        return packets == self._packets and self._different >= REPORTS and self._clean
