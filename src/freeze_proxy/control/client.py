"""The sidecar's side of the control protocol: carries out a gate's orders by asking the daemon of the node.

One connection is kept open, at all times if it can be had, and requests are pipelined on it: a thaw is written at once,
behind a freeze that has no answer yet. Every freeze bears the lease: when the connection closes, the daemon thaws. The
first thing said on a connection is a thaw, needed or not: by it the daemon learns whose connection this is and looks up
what there is to look up, before anybody waits for that. No freeze is sent before it has been answered: whoever listens
there may be silent, or be no daemon at all, and the pod is served all the same.

What is known of the target, and what leads from one state to the next::

    AWAKE ──a freeze is sent──▶ BOUND ──the connection is lost──▶ ADRIFT ──the daemon stays away──▶ PRESUMED
      ▲  ◀──thawed, or refused────┘                                 │                                  │
      └───────────────────────────connected again, and thawed───────┴──────────────────────────────────┘

AWAKE
    Nothing that could stop the target has been sent since the daemon said that it runs. A thaw is done at once, with or
    without a daemon: a pod whose daemon is away, or never was there, is served. A freeze needs the connection; where
    there is none it fails, and the gate tries again, less and less often.
BOUND
    A freeze has been sent on the connection that is open, and may have been carried out. If it is refused (503, or any
    4xx but 409) nothing was touched, and a thaw that was sent behind it is done, whatever becomes of that. If it fails
    in another way (409, 504, the connection is lost) it is undone by a thaw before it is called failed. A thaw that is
    refused ends the connection, and so the lease: that takes no token.
ADRIFT
    The connection of the lease is lost. If the daemon lives, it thaws by the lease; if it has died, its supervisor
    does. That is not known here, so the gate is told that the target is lost from sight, and stays shut: a new
    connection is made, and the answer to the first thaw on it counts.
PRESUMED
    There is no such answer to be had, and the guarantees of the daemon have had time to come true: for ``NOBODY``
    seconds nobody listened at its address, or a living daemon refused to know us; for ``HELPLESS`` seconds one lives
    that cannot do what it is asked; for ``AWAY`` seconds it could not be reached, or cannot know that the connection of
    the lease is lost. Then the target is held to run: a wedged pod is worse than one that, for want of both daemon and
    supervisor, makes its requests wait until the next daemon thaws what nobody claims. Until a thaw has been answered,
    nothing is frozen.

A daemon that accepts the connection and then is silent holds the lease: nothing is presumed then, until its supervisor
has ended it. After ``silence`` seconds without the answer to a thaw the connection is reset, and the next try made on a
new one.

What has been counted (``numbers``) is told on the same connection, not before ``REPORT_EVERY`` seconds after the last
time: when it has changed, and no order is unanswered. So an idle pod that stands still says nothing.

Two try to connect: the gate while it is shut, by a new order 10 ms to 1 s after the last has failed, and this file
itself, 10 ms to 5 s after each loss or failure.
"""

import _socket
import errno
import posix

from freeze_proxy.control.messages import (
    FREEZE,
    MOST_ANSWER,
    NUMBERS,
    THAW,
    Answers,
    Garbled,
    complaint,
    order,
    request,
)
from freeze_proxy.control.names import is_address, resolve
from freeze_proxy.control.token import NoToken, TokenFile
from freeze_proxy.keeper import Driver
from freeze_proxy.loop import WRITE, Loop, Timer
from freeze_proxy.plain_json import parse
from freeze_proxy.tcp import Address, Side, tcp_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

AWAKE, BOUND, ADRIFT, PRESUMED = "awake", "bound", "adrift", "presumed"

NOBODY = 2.0
"""Seconds after which a daemon whose address nobody listens at is gone, and its supervisor has thawed."""
HELPLESS = 10.0
"""Seconds after which a daemon that answers, but cannot thaw for us, has thawed what it found and nobody claimed."""
AWAY = 35.0
"""Seconds after which a daemon that cannot be reached, if it lives, has noticed the same and ended the lease: longer
than its own keep-alive takes."""
SILENCE = 2.0
"""Seconds that a thaw waits for its answer on one connection."""
CONNECT_TIME = 0.5
"""Seconds that a connection on the node may take to be made: one whose first packet met a daemon in the moment of its
end would be tried again by the kernel only after a second."""
SETTLED = 1.0
"""Seconds that a connection must have lasted, unless an order was carried out on it, to count as a good one."""
FIRST_REPORT, REPORT_EVERY = 1.0, 10.0
"""Seconds until numbers are told, from the first answer on a connection and from the last time."""
FIRST_PAUSE, LAST_PAUSE = 0.01, 5.0
"""Seconds between two tries to connect while nobody waits for it; doubled after each."""

_OPTIONS = (
    (_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1),
    (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 10),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPINTVL, 2),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPCNT, 2),
    (_socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT, 4000),  # ms, for bytes that are not acknowledged
)
_UNSEEN = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)  # ends of which the other side may not know
_OVERTAKEN = 409  # a freeze by a thaw, ours or the daemon's own, which may not be over yet
_UNKNOWN = 404
_TOO_LATE = 408  # no request came on a new connection: there was no token yet


class Client(Driver):
    """Carries out orders by the daemon at ``address``, whose host may be a name.

    ``say`` is called with a sentence when something has gone wrong, once and not again until it is another thing, and
    when all is well again. ``containers`` and ``mode`` go with every order, as the protocol has them. ``silence``: see
    above, in seconds. ``seen`` is called with the ids of the containers after each freeze, as the daemon names them.
    ``numbers`` gives what is to be told of what was counted, as JSON.
    Read ``state``; ``start`` once there is a keeper.
    """

    __slots__ = (
        "_answers",
        "_away_since",
        "_body",
        "_closed",
        "_connecting",
        "_end_seen",
        "_freeze",
        "_freeze_failed",
        "_greeted",
        "_host",
        "_ip",
        "_loop",
        "_name",
        "_nobody_since",
        "_numbers",
        "_only_reach",
        "_pause",
        "_port",
        "_report",
        "_reported",
        "_resolving",
        "_say",
        "_seen",
        "_settled",
        "_side",
        "_silence",
        "_thaw",
        "_thaw_in_words",
        "_thaw_owed",
        "_thaw_since",
        "_timer",
        "_token",
        "_troubles",
        "_unanswered",
        "_unheard",
        "_watching",
        "_worded",
        "state",
    )

    def __init__(
        self,
        loop: Loop,
        address: Address,
        token: TokenFile,
        say: "Callable[[str], None]",
        *,
        containers: "list[str] | None" = None,
        mode: str = "",
        silence: float = SILENCE,
        seen: "Callable[[tuple[str, ...]], None] | None" = None,
        numbers: "Callable[[], bytes] | None" = None,
    ) -> None:
        host, port = address
        self.state = AWAKE
        self._loop = loop
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._ip, self._name = (host, "") if is_address(host) else ("", host)
        self._port = port
        self._token = token
        self._body = order(containers, mode)
        self._silence = silence
        self._say = say
        self._seen = seen
        self._numbers = numbers
        self._troubles: set[object] = set()  # what has been said to be wrong since all was well
        self._only_reach = False  # it was about the connection, all of it
        # The connection.
        self._side: Side | None = None
        self._connecting = False
        self._resolving = False
        self._settled = False
        self._greeted = False  # it has answered
        self._closed = False
        self._timer: Timer | None = None  # the next try to connect, or the end of this one
        self._pause = FIRST_PAUSE
        self._answers = Answers()
        self._unanswered: list[str] = []  # what has been sent on this connection: perhaps NUMBERS, then FREEZE, THAW
        self._watching = False  # for the daemon's silence
        self._worded: bytes | None = None  # the token in them
        self._thaw_in_words = b""
        self._thaw_since = 0.0  # when the thaw was sent, or the last answer came
        self._report: Timer | None = None
        self._reported = b""  # the numbers that it knows
        self._unheard = False  # it is an older one, which takes none
        # The gate's orders, by their tickets; 0: none, or it is done.
        self._freeze = 0
        self._freeze_failed = ""  # why it is being undone
        self._thaw = 0
        self._thaw_owed = False  # an answer
        # After the connection of a lease is lost:
        self._end_seen = True  # the daemon, if it lives, knows that
        self._away_since = 0.0  # since when it was of no help
        self._nobody_since: float | None = None  # since when nobody was there

    def start(self) -> None:
        """Connect in advance, so that the first order finds a connection."""
        self._reach()

    def close(self) -> None:
        """End the connection; the daemon thaws what it froze for it. No order may come after this."""
        self._closed = True
        self._end_timer()
        self._forget()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the daemon."""
        return self._side is not None and not self._connecting

    # Orders.

    def freeze(self, ticket: int) -> None:
        """Ask for a freeze, if the target is known to run and there is a connection."""
        self._thaw, self._thaw_owed = 0, False
        self._freeze, self._freeze_failed = ticket, ""
        if not self.connected:
            reason = f"There is no connection to the daemon at {self._host}."
        elif self.state != AWAKE:
            self._send_thaw()
            reason = f"The daemon at {self._host} has not yet said that the server runs."
        elif not self._greeted:
            self._send_thaw()
            reason = f"The daemon at {self._host} has not answered yet."
        else:
            reason = self._send(FREEZE)
        if reason:
            self._end_freeze(reason)

    def thaw(self, ticket: int) -> None:
        """Ask for a thaw, on a new connection if need be; done at once where nothing can be frozen."""
        self._freeze = 0
        self._thaw, self._thaw_owed = ticket, True
        if self.state in (AWAKE, PRESUMED):
            self._end_thaw()
        elif self.connected:
            self._send_thaw()
        else:
            self._reach()

    def _end_freeze(self, reason: str = "") -> None:
        """Answer the gate's freeze, if there is one."""
        ticket, self._freeze = self._freeze, 0
        if ticket and reason:
            self.keeper.failed(ticket, reason)
        elif ticket:
            self.keeper.done(ticket)

    def _end_thaw(self) -> None:
        """The gate's thaw is done, even if it was called failed before."""
        ticket, self._thaw, self._thaw_owed = self._thaw, 0, False
        if ticket:
            self.keeper.done(ticket)

    def _fail_thaw(self, reason: str) -> None:
        """Not for now; the gate will come again."""
        if self._thaw_owed:
            self._thaw_owed = False
            self.keeper.failed(self._thaw, reason)

    def _send_thaw(self) -> None:
        """One that is unanswered and behind any freeze will do for a newer order, too."""
        if self._unanswered[-1:] != [THAW]:
            reason = self._send(THAW)
            if reason:
                self._fail_thaw(reason)

    def _send(self, path: str) -> str:
        """Write an order; returns why that was not possible, or nothing."""
        try:
            token = self._token.read()
        except NoToken as error:
            self._wrong("token", str(error))
            if path == FREEZE or self._token.last is None:
                return str(error)
            token = self._token.last  # it may well do for a thaw
        if path == FREEZE:
            self.state = BOUND
        else:
            self._thaw_since = self._loop.now
            self._watch()
        if path == FREEZE:
            data = request(path, self._host, token, self._body, lease=True)
        else:
            if token is not self._worded:
                self._worded, self._thaw_in_words = token, request(path, self._host, token, self._body)
            data = self._thaw_in_words
        self._write(path, data)
        return ""

    def _write(self, path: str, data: bytes) -> None:
        """Put a request on its way; what becomes of it is heard later."""
        side = self._side
        assert side is not None
        self._unanswered.append(path)
        try:
            sent = 0 if side.tail else side.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            reason = _reason(error)
            # At the end of the round: the answer to an order is not to come before the order has been given.
            self._loop.soon(lambda: self._lost_if(side, reason))
            return
        if sent != len(data):
            side.keep(data[sent:])

    # Answers.

    def _on_daemon(self, events: int) -> None:
        side = self._side
        assert side is not None
        try:
            if events & WRITE:
                side.flush()
            data = side.socket.recv(MOST_ANSWER)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(_reason(error), seen=error.errno not in _UNSEEN)
            return
        if not data:
            self._lost("the daemon has closed it")
            return
        self._answers.feed(data)
        try:
            while self._side is side and (answer := self._answers.next()) is not None:
                if not self._unanswered:
                    self._left(*answer)
                    return
                if answer[0] == 200:
                    self._settle()
                self._thaw_since = self._loop.now
                what = self._unanswered.pop(0)
                if what == NUMBERS:
                    self._numbers_answered(answer[0])
                    continue
                if not self._greeted:
                    self._greeted = True
                    self.keeper.hopeful()
                self._report_later(FIRST_REPORT)
                if what == FREEZE:
                    self._freeze_answered(*answer)
                else:
                    self._thaw_answered(*answer)
        except Garbled as error:
            self._drop("garbled", f"What answers at {self._host} is not the daemon: {error}.")

    def _freeze_answered(self, status: int, body: bytes) -> None:
        if status == 200:
            self._well()
            if (seen := self._seen) is not None and (ids := _ids(body)):
                self._loop.soon(lambda: seen(ids))
        elif status == 503 or (status < 500 and status != _OVERTAKEN):
            self.state = AWAKE
            self._end_freeze(self._refused(status, body))
            self._end_thaw()  # Whatever the answer to the one behind it will be: nothing was frozen.
            return
        if self._unanswered or not self._freeze:
            return  # A thaw is on its way, and only its answer counts.
        if status == 200:
            self._end_freeze()
        else:
            self._freeze_failed = self._refused(status, body)
            self._send_thaw()

    def _thaw_answered(self, status: int, body: bytes) -> None:
        if status == 200:
            if "token" not in self._troubles:  # An old token has done for this; it will not for ever.
                self._well()
            if not self._unanswered:
                self.state = AWAKE
                self._end_thaw()
                if self._freeze_failed:
                    self._end_freeze(self._freeze_failed)
            return
        if status == _UNKNOWN and self.state == AWAKE:
            return  # A sidecar is there before the containers are. Were it more than that, a freeze would say so.
        reason = self._refused(status, body)
        if self._unanswered:
            return  # It was the first on this connection; a freeze is on its way, and has its own answer.
        if self.state == BOUND and status < 500:
            self._drop(status, reason)  # What it does not do when we ask, it does when the lease ends.
        elif not self._despair(AWAY if not self._end_seen else NOBODY if status < 500 else HELPLESS):
            self._fail_thaw(reason)

    def _left(self, status: int, body: bytes) -> None:
        """An answer to nothing is the daemon's last word on a connection, about that."""
        if status < 400:
            self._drop("garbled", f"What answers at {self._host} is not the daemon: it answers what was not asked.")
        elif status == _TOO_LATE:
            self._forget()
            self._adrift(complaint(body))
        else:
            self._drop(status, self._refused(status, body))

    def _refused(self, status: int, body: bytes) -> str:
        """Why, in a sentence."""
        reason = complaint(body) or f"The daemon at {self._host} answers {status}."
        if status != _OVERTAKEN:
            self._wrong(status, reason)
        return reason

    # What has been counted.

    def _report_later(self, after: float) -> None:
        if self._report is None and self._numbers is not None and not self._unheard:
            self._report = self._loop.at(self._loop.now + after, self._tell)

    def _tell(self) -> None:
        """Tell the numbers, if that holds up no order."""
        self._report = None
        if not self.connected or self._numbers is None or self._unheard:
            return  # The first answer on the next connection sets the timer again.
        numbers = self._numbers()
        if not self._unanswered and numbers == self._reported and self.state != AWAKE:
            return  # Until it is thawed there will be no news.
        if not self._unanswered and numbers != self._reported and (token := self._token.last) is not None:
            self._reported = numbers
            self._write(NUMBERS, request(NUMBERS, self._host, token, numbers))
        self._report_later(REPORT_EVERY)

    def _numbers_answered(self, status: int) -> None:
        if status != 200:
            self._reported = b""  # to be told again
            self._unheard = status == _UNKNOWN

    # The daemon's silence.

    def _watch(self) -> None:
        # One timer at a time, set again when it has rung too early: a thaw costs none of its own.
        if not self._watching:
            self._watching = True
            self._loop.at(self._thaw_since + self._silence, self._listen)

    def _listen(self) -> None:
        self._watching = False
        if THAW in self._unanswered:
            if self._loop.now < self._thaw_since + self._silence:
                self._watch()
            else:
                sentence = f"The daemon at {self._host} does not answer; {self._silence:g} s have passed."
                self._drop("silent", sentence, seen=False)

    # The connection.

    def _reach(self) -> None:
        """Try to connect, unless that is being tried."""
        if self._side is not None or self._resolving or self._closed:
            return
        self._end_timer()
        try:
            if self._ip:
                self._connect()
            else:
                resolve(self._loop, self._name, self._resolved)
                self._resolving = True
        except OSError as error:
            self._unreachable(error.errno, _reason(error))

    def _resolved(self, ip: str, reason: str) -> None:
        self._resolving = False
        if ip:
            self._ip = ip
            self._reach()
        elif not self._closed:
            self._unreachable("name", f"its name does not resolve: {reason}")

    def _connect(self) -> None:
        """Raises ``OSError``."""
        address = (self._ip, self._port)
        daemon = tcp_socket(address)
        try:
            for option in _OPTIONS:
                daemon.setsockopt(*option)
            error = daemon.connect_ex(address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, posix.strerror(error))
        except OSError:
            daemon.close()
            raise
        self._connecting = True
        self._side = Side(self._loop, daemon, self._on_connected)
        self._side.keep(b"")  # to be told when it can be written to
        self._timer = self._loop.at(self._loop.now + CONNECT_TIME, self._too_slow)

    def _on_connected(self, _events: int) -> None:
        side = self._side
        assert side is not None
        self._end_timer()
        error = side.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        try:
            if not error and side.socket.getsockname() == side.socket.getpeername():
                error = errno.ECONNREFUSED  # Nobody listens, and it has reached itself.
        except OSError:
            error = errno.ECONNRESET
        if error:
            self._forget()
            self._unreachable(error, posix.strerror(error).lower())
            return
        self._connecting = self._settled = self._greeted = False
        side.handle_with(self._on_daemon)
        self._loop.at(self._loop.now + SETTLED, lambda: self._settle_if(side))
        self._send_thaw()

    def _too_slow(self) -> None:
        self._forget()
        self._unreachable(errno.ETIMEDOUT, "it takes too long to connect")

    def _unreachable(self, why: object, reason: str) -> None:
        """A try to connect has failed."""
        self._end_timer()
        if self._name:
            self._ip = ""  # It may lead elsewhere by now.
        sentence = f"The daemon at {self._host} cannot be reached ({reason})."
        self._wrong(why, sentence, reach=True)
        if not self._despair(NOBODY if why == errno.ECONNREFUSED else AWAY):
            self._fail_thaw(sentence)
        self._try_later()

    def _lost(self, reason: str, *, seen: bool = True) -> None:
        """The connection is no more. ``seen``: and the other side knows."""
        sentence = f"The connection to the daemon at {self._host} is lost ({reason})."
        if not self._settled:  # Else it is worth a word only if it cannot be made again.
            self._wrong("lost", sentence, reach=True)
        self._adrift(sentence, seen=seen)

    def _lost_if(self, side: Side, reason: str) -> None:
        if self._side is side:
            self._lost(reason)

    def _drop(self, what: object, sentence: str, *, seen: bool = True) -> None:
        """Give the connection up. ``seen``: and the other side, from which something was just heard, will know."""
        self._wrong(what, sentence)
        # By RST, so that nothing of what it has not yet carried reaches the daemon later.
        self._forget(reset=True)
        self._adrift(sentence, seen=seen)

    def _adrift(self, reason: str, *, seen: bool = True) -> None:
        """There is no connection any more."""
        bound = self.state == BOUND
        self._forget()
        if bound:
            self.state = ADRIFT
            self._end_seen = seen
        if bound or not seen:
            self._away_since, self._nobody_since = self._loop.now, None
        if self._thaw_owed:
            self._fail_thaw(reason)
        elif self._freeze:
            self._freeze_failed = self._freeze_failed or reason  # To be undone as soon as there is a connection.
        elif bound:
            self.keeper.lost()
        self._try_later()

    def _forget(self, *, reset: bool = False) -> None:
        """Close the connection, and forget what was said on it."""
        self._unanswered.clear()
        self._answers = Answers()
        self._reported, self._unheard = b"", False
        if self._report is not None:
            self._report.cancel()
            self._report = None
        self._connecting = False
        side, self._side = self._side, None
        if side is not None:
            side.close(reset)

    def _try_later(self) -> None:
        if self._side is None and self._timer is None and not self._resolving:
            self._timer = self._loop.at(self._loop.now + self._pause, self._reach)
            self._pause = min(self._pause * 2, LAST_PAUSE)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settle_if(self, side: Side) -> None:
        if self._side is side:
            self._settle()

    def _settle(self) -> None:
        """The connection is a good one."""
        self._settled = True
        self._pause = FIRST_PAUSE
        if self._only_reach:
            self._well()

    # When there is no help.

    def _despair(self, patience: float) -> bool:
        """There is no thaw to be had just now; if so for as long as ``patience``, the target is presumed awake: true.

        For ``NOBODY`` that long without anything better, for the others since the loss.
        """
        if self.state != ADRIFT:
            return False
        now = self._loop.now
        since = self._away_since
        if patience != NOBODY:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = since = now
        else:
            since = self._nobody_since
        if now < since + patience:
            return False
        self.state = PRESUMED
        self._end_thaw()
        if self._freeze_failed:
            self._end_freeze(self._freeze_failed)
        return True

    # What is said.

    def _wrong(self, what: object, sentence: str, *, reach: bool = False) -> None:
        """Each trouble is worth a word once, until all is well again."""
        if what not in self._troubles:
            self._only_reach = reach and (self._only_reach or not self._troubles)
            self._troubles.add(what)
            self._loop.soon(lambda: self._say(sentence))

    def _well(self) -> None:
        if self._troubles:
            self._troubles.clear()
            self._loop.soon(lambda: self._say(f"The daemon at {self._host} can be reached, and does what it is asked."))


def _ids(body: bytes) -> tuple[str, ...]:
    """Of the containers in an answer, in order; none where it does not name them."""
    try:
        answer = parse(body.decode("utf-8", "replace"))
    except ValueError:
        return ()
    containers = answer.get("containers") if isinstance(answer, dict) else None
    if not isinstance(containers, list):
        return ()
    return tuple(sorted(str(each["id"]) for each in containers if isinstance(each, dict) and "id" in each))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
