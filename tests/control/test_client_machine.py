"""Client and gate against a daemon that freezes, thaws, hangs, fails, dies and comes back, at any moment.

The daemon is a model with the guarantees of the real one: what a connection froze is thawed when that closes, and when
the daemon dies. The sockets are real; the clock is the test's.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import freeze_proxy.keeper
import freeze_proxy.loop
from freeze_proxy.control import client
from freeze_proxy.gate import AWAKE, FROZEN, Settings
from tests.support.examples import examples
from tests.support.stage import Asked, Peer, Stage

GRACE = 0.1
NOTICED = 30.0
"""Seconds after which the daemon's keep-alive has found out that a connection is dead."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Daemon:
    """Freezes and thaws ``frozen``; ``holder`` is whose lease that is.

    ``mood``: ``prompt``; ``slow``: answers nothing until it is another; ``hung``: does not even look at what comes;
    ``refuses``: 403; ``helpless``: 503; ``late``: 504 to a freeze, after which all or nothing stands.
    """

    def __init__(self, stage: Stage, clock: Clock) -> None:
        self.clock = clock
        self.listener = stage.listener
        self.frozen = False
        self.holder: Peer | None = None
        self.mood = "prompt"
        self.waiting: list[tuple[Peer, Asked]] = []
        self.dead: list[Peer] = []  # nothing passes on these connections any more
        self.died: dict[Peer, float] = {}

    def step(self) -> bool:
        """Do what there is to be done; returns whether there was anything."""
        if self.mood == "hung":
            return False
        busy = False
        while self.listener.accept():
            busy = True
        for peer in list(self.listener.peers):
            for asked in peer.asked():
                busy = True
                self.waiting.append((peer, asked))
        if self.mood != "slow":
            waiting, self.waiting = self.waiting, []
            for peer, asked in waiting:
                self.carry_out(peer, asked)
        for peer in list(self.listener.peers):
            if peer.ended:
                self.end(peer)
        return busy

    def carry_out(self, peer: Peer, asked: Asked) -> None:
        freeze = asked.path == "/freeze"
        if peer in self.dead:
            pass
        elif self.mood == "refuses":
            peer.answer(403)
        elif self.mood == "helpless":
            peer.answer(503)
        elif asked.path == "/numbers":
            peer.answer(200 if self.mood == "prompt" else 404)
        elif freeze and self.mood == "late":
            self.frozen, self.holder = True, peer  # as bad as it can be
            peer.answer(504)
        elif freeze and peer.ended:
            peer.answer(409)
        else:
            self.frozen = freeze
            self.holder = peer if freeze else None
            peer.answer(200)

    def die_silently(self, peer: Peer) -> None:
        self.listener.peers.remove(peer)
        self.dead.append(peer)
        self.died[peer] = self.clock.now

    def notice(self, after: float = 0.0) -> None:
        """That a connection is dead, and has been for a while."""
        for peer in self.dead:
            if self.holder is peer and self.clock.now >= self.died[peer] + after:
                self.frozen, self.holder = False, None

    def end(self, peer: Peer) -> None:
        peer.close()
        self.listener.peers.remove(peer)
        self.waiting = [(other, asked) for other, asked in self.waiting if other is not peer]
        if self.holder is peer:
            self.frozen, self.holder = False, None

    def die(self) -> None:
        """Its supervisor thaws."""
        self.listener.go()
        self.waiting.clear()
        self.frozen, self.holder = False, None
        self.mood = "prompt"
        self.dead_end()

    def dead_end(self) -> None:
        """Of what the kernel would say about dead connections, nothing arrives; these sockets are only given back."""
        for peer in self.dead:
            peer.close()
        self.dead.clear()


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        fake = SimpleNamespace(monotonic=self.clock.monotonic)
        self.patches = [mock.patch.object(module, "time", fake) for module in (freeze_proxy.loop, freeze_proxy.keeper)]
        for patch in self.patches:
            patch.start()
        self.stage: Stage = Stage(
            Path(self.folder.name, "token"),
            Settings(grace=GRACE),
            numbers=lambda: b"%d" % self.stage.keeper.requests,
        )
        self.daemon = Daemon(self.stage, self.clock)
        self.up = True
        self.in_flight = 0
        self.stage.client.start()
        self.stage.keeper.ready()

    def turn(self) -> None:
        """One round of the loop, with whatever is due."""
        self.daemon.notice(NOTICED)
        self.stage.loop.soon(self.stage.loop.stop)
        self.stage.loop.run()
        self.no_byte_passes_to_what_is_frozen()

    def pump(self) -> None:
        """Until neither has anything to do."""
        for _ in range(20):
            self.turn()
            busy = self.up and self.daemon.step()
            self.no_byte_passes_to_what_is_frozen()
            self.turn()
            if not busy:
                break

    # The rules of the machine.

    @rule()
    def both_go_on(self) -> None:
        self.pump()

    @rule()
    def the_client_goes_on_alone(self) -> None:
        self.turn()

    @rule(step=st.sampled_from([0.001, 0.02, GRACE, 0.5, 1.0, 2.0, 2.5, 12.0, 40.0]))
    def time_passes(self, step: float) -> None:
        self.clock.now += step
        self.turn()

    @rule()
    def it_is_quiet_for_a_while(self) -> None:
        for _ in range(6):
            self.clock.now += GRACE
            self.pump()

    @rule()
    def an_exchange_begins(self) -> None:
        self.stage.keeper.began()
        self.in_flight += 1

    @precondition(lambda self: self.in_flight)
    @rule()
    def an_exchange_ends(self) -> None:
        if self.stage.gate.in_flight:  # it may have been refused
            self.stage.keeper.ended()
        self.in_flight = self.stage.gate.in_flight

    @precondition(lambda self: self.up)
    @rule(mood=st.sampled_from(["prompt", "prompt", "slow", "hung", "refuses", "helpless", "late"]))
    def the_daemon_is(self, mood: str) -> None:
        if self.daemon.mood == "hung" or mood != "hung":
            self.daemon.mood = mood
        else:
            self.daemon.mood = "hung"

    @precondition(lambda self: self.up)
    @rule()
    def the_daemon_goes_on_alone(self) -> None:
        self.daemon.step()

    @precondition(lambda self: self.up)
    @rule()
    def the_daemon_dies(self) -> None:
        self.daemon.die()
        self.up = False

    @precondition(lambda self: not self.up)
    @rule()
    def the_daemon_comes(self) -> None:
        self.stage.listener.come()
        self.up = True

    @precondition(lambda self: self.up and self.stage.listener.peers)
    @rule(which=st.integers(0, 3), how=st.sampled_from(["close", "reset"]))
    def a_connection_is_cut(self, which: int, how: str) -> None:
        """By the daemon, or by whatever is between, to the knowledge of both."""
        peers = self.stage.listener.peers
        peer = peers[which % len(peers)]
        (peer.close if how == "close" else peer.reset)()
        if self.daemon.mood != "hung":
            self.daemon.end(peer)

    @precondition(lambda self: self.up and self.stage.listener.peers)
    @rule()
    def a_connection_is_dead(self) -> None:
        self.turn()  # What was said before arrives: the client takes it for a sign of life.
        peer = self.stage.listener.peers[-1]
        if not peer.left:  # The end that it has put to that arrives as well.
            self.daemon.die_silently(peer)

    @precondition(lambda self: self.daemon.dead)
    @rule()
    def the_daemon_notices_that_a_connection_is_dead(self) -> None:
        self.daemon.notice()

    # What happens mostly; by single steps it would not happen often.

    @precondition(lambda self: self.up and self.stage.gate.open)
    @rule(how=st.sampled_from([*["prompt"] * 5, "late", "slow", "helpless"]))
    def it_freezes(self, how: str) -> None:
        mood, self.daemon.mood = self.daemon.mood, how
        while self.stage.gate.in_flight:
            self.stage.keeper.ended()
        for _ in range(20):
            if not self.stage.gate.open:
                break
            self.clock.now += GRACE
            self.pump()
        self.daemon.mood = mood

    @rule(after=st.sampled_from([0.0, 0.01, 3.0]))
    def a_request_comes_and_goes(self, after: float) -> None:
        self.an_exchange_begins()
        self.pump()
        self.clock.now += after
        self.pump()
        self.an_exchange_ends()

    @precondition(lambda self: self.up and self.stage.listener.peers and self.daemon.mood != "hung")
    @rule(data=st.sampled_from([b"\0", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\n\r\n"]))
    def it_talks_nonsense(self, data: bytes) -> None:
        self.stage.listener.peers[-1].send(data)

    # What holds.

    @invariant()
    def no_byte_passes_to_what_is_frozen(self) -> None:
        gate, known = self.stage.gate, self.stage.client.state
        assert not (gate.open and self.daemon.frozen)
        assert not gate.open or known in (client.AWAKE, client.PRESUMED)

    @invariant()
    def little_is_kept(self) -> None:
        assert len(self.stage.client._unanswered) <= 4  # the first thaw, numbers, a freeze, a thaw
        assert len(self.stage.loop._timers) < 200

    def teardown(self) -> None:
        try:
            self.all_is_well_in_the_end()
        finally:
            for patch in self.patches:
                patch.stop()
            self.daemon.dead_end()
            self.stage.close()
            self.folder.cleanup()

    def all_is_well_in_the_end(self) -> None:
        """With a daemon that works, requests pass, and then it freezes again."""
        self.daemon.mood = "prompt"
        self.stage.listener.come()
        self.up = True
        self.pump()
        self.daemon.notice()
        if not self.daemon.dead:
            for _ in range(10):
                self.clock.now += 0.5
                self.pump()
            assert self.daemon.frozen or self.stage.gate.state != FROZEN
        self.stage.keeper.began()
        self.wait_for(lambda: self.stage.gate.open, "requests pass")
        while self.stage.gate.in_flight:
            self.stage.keeper.ended()
        self.wait_for(lambda: self.stage.gate.state == FROZEN and self.daemon.frozen, "it freezes", 200)
        assert self.daemon.holder in self.stage.listener.peers
        self.stage.keeper.began()
        self.pump()
        assert self.stage.gate.state == AWAKE
        self.stage.keeper.ended()

    def wait_for(self, look: object, what: str, turns: int = 100) -> None:
        assert callable(look)
        for _ in range(turns):
            self.pump()
            if look():
                return
            self.clock.now += 0.5
        raise AssertionError(f"not: {what}; {self.stage.gate.state}, {self.stage.client.state}, {self.stage.said}")


World.TestCase.settings = examples(250, steps=60)
TestClient = World.TestCase
