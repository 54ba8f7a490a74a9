"""The client of the daemon, over real connections, against a daemon that does as the test says."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freeze_proxy.control import client as module
from freeze_proxy.control.client import ADRIFT, BOUND, PRESUMED
from freeze_proxy.gate import AWAKE, FREEZING, FROZEN, THAWING, Settings
from tests.support.ports import LOOPBACK
from tests.support.stage import GRACE, TOKEN, Peer, Stage, staged


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path / "token") as stage:
        yield stage


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """One whose patience is short: 0.2 s for silence, 0.3 s until it presumes."""
    monkeypatch.setattr(module, "NOBODY", 0.3)
    monkeypatch.setattr(module, "HELPLESS", 0.6)
    with staged(tmp_path / "token", silence=0.2) as stage:
        yield stage


def paths(stage: Stage, peer: Peer, count: int = 1) -> list[str]:
    return [asked.path for asked in stage.asked(peer, count)]


# As it should be.


def test_a_freeze_and_a_thaw(stage: Stage) -> None:
    peer = stage.begin()
    (freeze,) = stage.asked(peer)
    assert freeze.path == "/freeze"
    assert freeze.fields["token"] == TOKEN
    assert freeze.fields["lease"] == "connection"
    assert freeze.fields["host"] == f"127.0.0.1:{stage.listener.port}"
    assert freeze.body == b""
    assert stage.gate.state == FREEZING
    peer.answer()
    stage.await_state(FROZEN)
    stage.keeper.began()
    (thaw,) = stage.asked(peer)
    assert thaw.path == "/thaw"
    assert thaw.fields["token"] == TOKEN
    assert "lease" not in thaw.fields
    assert not stage.gate.open
    peer.answer()
    stage.await_state(AWAKE)
    stage.keeper.ended()
    assert paths(stage, peer) == ["/freeze"]
    assert stage.said == []
    assert stage.notes.failures == []


def test_what_is_to_be_frozen_and_how_goes_with_every_order(tmp_path: Path) -> None:
    with staged(tmp_path / "token", containers=["a", "b"], mode="throttle") as stage:
        peer = stage.begin()
        (freeze,) = stage.asked(peer)
        peer.answer()
        stage.await_state(FROZEN)
        stage.keeper.began()
        (thaw,) = stage.asked(peer)
        assert freeze.body == thaw.body == b'{"containers": ["a", "b"], "mode": "throttle"}'


def test_a_thaw_does_not_wait_for_the_answer_to_a_freeze(stage: Stage) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    peer.answer(409)
    stage.run_for(0.02)
    assert not stage.gate.open
    peer.answer()
    stage.await_state(AWAKE)
    assert stage.said == []


def test_answers_come_in_any_pieces(stage: Stage) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    peer.answer(409)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    for at in range(len(head)):
        assert not stage.gate.open
        peer.send(head[at : at + 1])
        stage.run_for(0.0005)
    stage.await_state(AWAKE)


def test_two_answers_in_one_piece(stage: Stage) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    peer.answer(200)
    peer.answer(200)
    stage.await_state(AWAKE)


def test_a_thaw_that_the_gate_repeats_is_sent_once(tmp_path: Path) -> None:
    with staged(tmp_path / "token", Settings(grace=GRACE, thaw_timeout=0.1)) as stage:
        peer = stage.begin()
        stage.freeze(peer)
        stage.keeper.began()
        assert paths(stage, peer) == ["/thaw"]
        stage.run_for(0.2)  # the gate has repeated it, and refused
        assert stage.notes.refusals == 1
        assert peer.asked() == []
        peer.answer()
        stage.await_state(AWAKE)


# Failures that the daemon reports.


@pytest.mark.parametrize("status", [400, 403, 404, 429, 503])
def test_a_freeze_that_is_refused_leaves_the_target_awake(stage: Stage, status: int) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(status, b'{"error": "It is not to be."}')
    stage.await_state(AWAKE)
    stage.until(lambda: stage.notes.failures == [("freeze", "It is not to be.")])
    assert stage.said == ["It is not to be."]
    stage.keeper.began()
    assert stage.gate.open
    stage.run_for(0.02)
    assert peer.asked() == []


@pytest.mark.parametrize("status", [409, 500, 504])
def test_a_freeze_that_may_have_been_carried_out_is_undone(stage: Stage, status: int) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(status, b'{"error": "Half of it stands."}')
    assert paths(stage, peer) == ["/thaw"]
    assert not stage.gate.open
    peer.answer()
    stage.await_state(AWAKE)
    stage.until(lambda: stage.notes.failures == [("freeze", "Half of it stands.")])
    stage.run_for(0.1)
    assert peer.asked() == []  # a failed freeze is not tried again at once


def test_an_exchange_while_a_freeze_is_undone_waits_for_that(stage: Stage) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(504)
    assert paths(stage, peer) == ["/thaw"]
    stage.keeper.began()
    stage.run_for(0.02)
    assert peer.asked() == []
    assert not stage.gate.open
    peer.answer()
    stage.await_state(AWAKE)


def test_a_thaw_that_fails_is_tried_again(stage: Stage) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.keeper.began()
    for _ in range(3):
        assert paths(stage, peer) == ["/thaw"]
        assert not stage.gate.open
        peer.answer(503)
    assert paths(stage, peer) == ["/thaw"]
    peer.answer()
    stage.await_state(AWAKE)
    stage.until(lambda: len(stage.said) == 2)
    assert stage.said[0] == "It is a 503."
    assert "does what it is asked" in stage.said[1]


def test_a_thaw_that_is_refused_ends_the_lease(hasty: Stage) -> None:
    """A token that has expired, say, while the kubelet was away: the daemon thaws when the connection closes."""
    peer = hasty.begin()
    hasty.freeze(peer)
    hasty.keeper.began()
    assert paths(hasty, peer) == ["/thaw"]
    peer.answer(403)
    hasty.until(lambda: peer.asked() == [] and peer.ended, "the connection is ended")
    assert not hasty.gate.open
    again = hasty.accept()
    began = time.monotonic()
    while not hasty.gate.open:
        if again.asked():
            again.answer(403)
        hasty.run_for(0.005)
    assert time.monotonic() - began >= 0.25
    assert hasty.client.state == PRESUMED
    assert hasty.said == ["It is a 403."]


# The connection is lost.


def close(peer: Peer) -> None:
    peer.close()


def reset(peer: Peer) -> None:
    peer.reset()


ENDS: list[Callable[[Peer], None]] = [close, reset]


@pytest.mark.parametrize("end", ENDS)
def test_a_loss_while_awake_is_no_matter(stage: Stage, end: Callable[[Peer], None]) -> None:
    peer = stage.begin()
    stage.keeper.began()
    end(peer)
    assert stage.gate.open
    again = stage.accept()
    stage.greeted(again)
    assert stage.gate.open
    stage.keeper.ended()
    stage.freeze(again)


@pytest.mark.parametrize("end", ENDS)
def test_a_loss_while_frozen_is_thawed_on_a_new_connection(stage: Stage, end: Callable[[Peer], None]) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    end(peer)
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    assert stage.client.state == ADRIFT
    assert stage.gate.state == THAWING
    stage.keeper.began()
    assert not stage.gate.open
    again.answer()
    stage.await_state(AWAKE)
    stage.keeper.ended()
    stage.freeze(again)


@pytest.mark.parametrize("end", ENDS)
def test_a_loss_before_a_freeze_is_answered(stage: Stage, end: Callable[[Peer], None]) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    end(peer)
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    assert not stage.gate.open
    again.answer()
    stage.await_state(AWAKE)
    stage.until(lambda: bool(stage.notes.failures))
    assert stage.notes.failures[0][0] == "freeze"
    stage.run_for(0.1)
    assert again.asked() == []  # it has failed, and is not tried again at once


@pytest.mark.parametrize("end", ENDS)
def test_a_loss_before_a_thaw_is_answered(stage: Stage, end: Callable[[Peer], None]) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    end(peer)
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    assert not stage.gate.open
    again.answer()
    stage.await_state(AWAKE)


@pytest.mark.parametrize("end", ENDS)
def test_a_loss_in_the_middle_of_an_answer(stage: Stage, end: Callable[[Peer], None]) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
    stage.run_for(0.01)
    end(peer)
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    assert not stage.gate.open
    again.answer()
    stage.await_state(AWAKE)


def test_an_order_given_to_a_connection_that_is_gone_but_not_known_to_be(stage: Stage) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    peer.reset()
    stage.keeper.began()  # the loop has not come round since
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    again.answer()
    stage.await_state(AWAKE)


def test_a_daemon_that_restarts_at_its_port(stage: Stage) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.listener.go()
    stage.keeper.began()
    stage.until(lambda: len(stage.said) == 1 and len(stage.notes.failures) > 3, "some tries have failed")
    assert not stage.gate.open
    stage.listener.come()
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    again.answer()
    stage.await_state(AWAKE)
    stage.until(lambda: len(stage.said) == 2)
    assert "cannot be reached (connection refused)" in stage.said[0] or "is lost" in stage.said[0]
    assert "can be reached" in stage.said[1]


def test_a_daemon_that_does_not_come_back_is_presumed_to_have_thawed(hasty: Stage) -> None:
    peer = hasty.begin()
    hasty.freeze(peer)
    hasty.listener.go()
    lost = time.monotonic()
    hasty.keeper.began()
    hasty.await_state(AWAKE)
    assert 0.28 <= time.monotonic() - lost < 2
    assert hasty.client.state == PRESUMED
    hasty.keeper.ended()
    hasty.run_for(5 * GRACE)
    assert hasty.gate.open
    # When it is there again, it is asked for a thaw all the same, and only after that for a freeze.
    hasty.listener.come()
    again = hasty.accept()
    assert paths(hasty, again) == ["/thaw"]
    assert hasty.gate.open
    again.answer()
    assert paths(hasty, again) == ["/freeze"]


def test_a_daemon_that_cannot_help_is_presumed_to_have_thawed_later(hasty: Stage) -> None:
    """A new daemon without an API server knows no token; it thaws what nobody claims."""
    peer = hasty.begin()
    hasty.freeze(peer)
    peer.close()
    again = hasty.accept()
    hasty.keeper.began()
    began = time.monotonic()
    while not hasty.gate.open:
        if again.asked():
            again.answer(503)
        hasty.run_for(0.005)
        assert time.monotonic() - began < 5
    assert time.monotonic() - began >= 0.55


def test_a_daemon_out_of_reach_is_presumed_to_have_thawed_at_last(
    hasty: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets get lost: a full backlog does the same to a client as a broken path."""
    monkeypatch.setattr(module, "CONNECT_TIME", 0.1)
    monkeypatch.setattr(module, "AWAY", 0.8)
    peer = hasty.begin()
    hasty.freeze(peer)
    hasty.listener.go()
    with contextlib.ExitStack() as full:
        deaf = full.enter_context(socket.create_server((LOOPBACK, hasty.listener.port), backlog=0))
        lost = time.monotonic()
        for _ in range(4):
            filler = full.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        hasty.keeper.began()
        hasty.await_state(AWAKE)
        assert time.monotonic() - lost >= 0.75
        assert hasty.client.state == PRESUMED
        assert any("it takes too long to connect" in said for said in hasty.said)


def test_without_descriptors_it_tries_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = stage.begin()
    stage.freeze(peer)

    def none(_address: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module, "tcp_socket", none)
        peer.close()
        stage.keeper.began()
        stage.until(lambda: len(stage.notes.failures) >= 3)
        assert not stage.gate.open
        assert len(stage.said) == 1
        assert "too many open files" in stage.said[0]
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    again.answer()
    stage.await_state(AWAKE)


def test_nothing_is_presumed_of_a_daemon_that_is_there_and_silent(hasty: Stage) -> None:
    peer = hasty.begin()
    hasty.freeze(peer)
    hasty.keeper.began()
    hasty.run_for(1.5)
    assert not hasty.gate.open
    assert len(hasty.said) == 1
    assert "does not answer" in hasty.said[0]
    peers = [peer]
    while (another := hasty.listener.accept()) is not None:
        peers.append(another)
    assert len(peers) >= 3
    asked = {id(peer): peer.asked() for peer in peers}
    assert [one.path for one in asked[id(peers[-1])]] == ["/thaw"]
    assert all(peer.ended for peer in peers[:-1])
    peers[-1].answer()
    hasty.await_state(AWAKE)


def test_silence_to_a_freeze_is_ended_by_the_gates_thaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freeze_proxy.gate.FREEZE_PATIENCE", 0.1)
    with staged(tmp_path / "token", silence=0.2) as stage:
        peer = stage.begin()
        assert paths(stage, peer) == ["/freeze"]
        assert paths(stage, peer) == ["/thaw"]
        again = stage.accept()
        assert paths(stage, again) == ["/thaw"]
        again.answer()
        stage.await_state(AWAKE)


# No daemon.


def test_without_a_daemon_it_is_awake_and_says_so_once(stage: Stage) -> None:
    stage.listener.go()
    stage.client.start()
    stage.keeper.ready()
    stage.keeper.began()
    assert stage.gate.open
    stage.keeper.ended()
    stage.until(lambda: len(stage.notes.failures) >= 2)
    assert stage.gate.open
    assert len(stage.said) == 1
    assert "cannot be reached (connection refused)" in stage.said[0]
    stage.listener.come()
    peer = stage.accept()
    stage.greeted(peer)
    stage.freeze(peer)
    assert len(stage.said) == 2


def test_what_accepts_and_closes_is_tried_less_and_less_often(stage: Stage) -> None:
    stage.client.start()
    stage.keeper.ready()
    tries = 0
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        if peer := stage.listener.accept():
            tries += 1
            peer.close()
        stage.run_for(0.002)
    assert 3 <= tries <= 10
    assert stage.gate.open
    stage.run_for(0.01)
    assert len(stage.said) == 1
    assert "is lost" in stage.said[0]


@pytest.mark.parametrize(
    "garbage", [b"\x15\x03\x01\x00\x02\x02\x50", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"\r\n" * 50]
)
def test_what_is_no_daemon_is_left(stage: Stage, garbage: bytes) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    peer.send(garbage)
    stage.until(lambda: peer.asked() == [] and peer.ended, "the connection is ended")
    assert not stage.gate.open
    again = stage.accept()
    assert paths(stage, again) == ["/thaw"]
    again.answer()
    stage.await_state(AWAKE)
    assert "is not the daemon" in stage.said[0]


@pytest.mark.parametrize(
    ("status", "said"), [(200, "is not the daemon"), (429, "It is a 429."), (503, "It is a 503."), (408, "")]
)
def test_an_answer_to_nothing_is_the_end_of_the_connection(stage: Stage, status: int, said: str) -> None:
    peer = stage.begin()
    stage.keeper.began()
    stage.until(lambda: not peer.asked())
    peer.answer(status)
    again = stage.accept()
    assert peer.asked() == []
    assert peer.ended
    assert stage.gate.open
    stage.greeted(again)
    assert (said in stage.said[0]) if said else (not stage.said)


def test_a_client_that_the_daemon_does_not_want_does_not_insist(stage: Stage) -> None:
    stage.client.start()
    tries = 0
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        if peer := stage.listener.accept():
            tries += 1
            peer.answer(429)
            peer.close()
        stage.run_for(0.002)
    assert 3 <= tries <= 10
    assert len(stage.said) <= 2


# The first word.


def test_no_freeze_is_sent_to_one_that_has_not_answered_yet(stage: Stage) -> None:
    """It may never answer, and a request would wait for the thaw until it is refused."""
    stage.client.start()
    peer = stage.accept()
    assert paths(stage, peer) == ["/thaw"]
    stage.keeper.ready()
    stage.until(lambda: stage.notes.failures, "a freeze has failed")
    assert stage.notes.failures[0] == (
        "freeze",
        f"The daemon at {LOOPBACK}:{stage.listener.port} has not answered yet.",
    )
    assert peer.asked() == []
    assert stage.gate.open
    peer.answer()
    assert paths(stage, peer) == ["/freeze"], "at once"
    peer.answer()
    stage.await_state(FROZEN)
    assert stage.client.state == BOUND
    assert stage.said == []


@pytest.mark.parametrize("status", [403, 503])
def test_what_is_refused_from_the_first_word_on_stays_awake(stage: Stage, status: int) -> None:
    stage.client.start()
    peer = stage.accept()
    assert paths(stage, peer) == ["/thaw"]
    stage.keeper.ready()
    peer.answer(status)
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(status)
    stage.await_state(AWAKE)
    stage.run_for(0.01)
    assert stage.gate.open
    assert not peer.ended
    assert stage.said == [f"It is a {status}."]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_freeze_that_was_refused_holds_up_no_request(stage: Stage, status: int) -> None:
    """The thaw behind it would be refused as well."""
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    stage.keeper.began()
    assert paths(stage, peer) == ["/thaw"]
    assert not stage.gate.open
    peer.answer(status)
    stage.until(lambda: stage.gate.open, "the request passes")
    peer.answer(status)
    stage.run_for(0.02)
    assert stage.gate.open
    assert not peer.ended
    assert stage.said == [f"It is a {status}."]


def test_containers_that_are_not_there_yet_are_not_worth_a_word(stage: Stage) -> None:
    """A native sidecar starts before them: seen in every pod of a real cluster."""
    stage.client.start()
    peer = stage.accept()
    assert paths(stage, peer) == ["/thaw"]
    peer.answer(404)
    stage.run_for(0.02)
    assert stage.said == []
    stage.keeper.ready()
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(404)
    stage.until(lambda: stage.said == ["It is a 404."])
    assert stage.gate.open


def test_a_daemon_that_is_silent_from_the_first_word_on(hasty: Stage) -> None:
    hasty.client.start()
    hasty.accept()
    hasty.accept()
    assert hasty.gate.open
    assert "does not answer" in hasty.said[0]


# Names.


def test_a_name_is_resolved_and_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    with staged(tmp_path / "token", host="localhost") as stage:
        peer = stage.begin()
        stage.freeze(peer)
        peer.close()
        again = stage.accept()
        assert paths(stage, again) == ["/thaw"]


def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    with staged(tmp_path / "token", host="no-such-name.invalid") as stage:
        stage.client.start()
        stage.keeper.ready()
        stage.until(lambda: bool(stage.said), within=30)
        assert "does not resolve" in stage.said[0]
        stage.keeper.began()
        assert stage.gate.open


# The token.


def test_a_token_that_is_replaced_as_the_kubelet_does_it(stage: Stage, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for name, token in (("..1", "the.first.token"), ("..2", "the.second.token")):
        (volume / name).mkdir(parents=True)
        (volume / name / "token").write_text(token)
    (volume / "..data").symlink_to("..1")
    stage.token.unlink()
    stage.token.symlink_to(volume / "..data" / "token")
    peer = stage.begin()
    (freeze,) = stage.asked(peer)
    assert freeze.fields["token"] == "the.first.token"
    peer.answer()
    stage.await_state(FROZEN)
    (volume / "..new").symlink_to("..2")
    os.rename(volume / "..new", volume / "..data")
    stage.keeper.began()
    (thaw,) = stage.asked(peer)
    assert thaw.fields["token"] == "the.second.token"


@pytest.mark.parametrize("content", [None, "", "two words", "a\r\nLease: connection", "x" * 9000, "ümläut"])
def test_without_a_token_nothing_is_frozen(stage: Stage, content: str | None) -> None:
    stage.token.unlink()
    if content is not None:
        stage.token.write_text(content)
    stage.client.start()
    stage.keeper.ready()
    peer = stage.accept()
    stage.until(lambda: bool(stage.notes.failures))
    assert stage.gate.open
    assert peer.asked() == []
    assert len(stage.said) == 1
    assert str(stage.token) in stage.said[0]
    assert content is None or len(content) < 3 or content not in stage.said[0]
    stage.token.write_text(TOKEN)
    stage.greeted(peer)
    stage.freeze(peer)


def test_an_old_token_is_better_than_none_for_a_thaw(stage: Stage) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.token.unlink()
    stage.keeper.began()
    (thaw,) = stage.asked(peer)
    assert thaw.fields["token"] == TOKEN
    peer.answer()
    stage.await_state(AWAKE)


# The end, and what it costs.


def test_closing_ends_the_lease(stage: Stage) -> None:
    peer = stage.begin()
    stage.freeze(peer)
    stage.client.close()
    stage.until(lambda: peer.asked() == [] and peer.ended)
    stage.run_for(0.05)
    assert stage.listener.accept() is None


def test_disarm_without_a_daemon_needs_none_where_nothing_was_frozen(stage: Stage) -> None:
    stage.keeper.ready()
    stage.keeper.disarm()
    assert stage.gate.open


def test_many_orders_leave_nothing_behind(stage: Stage) -> None:
    peer = stage.begin()
    for _ in range(100):
        stage.freeze(peer)
        stage.keeper.began()
        assert paths(stage, peer) == ["/thaw"]
        peer.answer()
        stage.await_state(AWAKE)
        stage.keeper.ended()
    assert stage.client.state in (BOUND, "awake")
    assert len(stage.loop._timers) < 210  # of which most are this test's own
    with contextlib.suppress(BlockingIOError):
        assert stage.listener.accept() is None


def test_a_daemon_that_is_back_is_asked_at_once_whatever_has_failed_before(stage: Stage) -> None:
    peer = stage.begin()
    assert paths(stage, peer) == ["/freeze"]
    peer.answer(503)
    stage.listener.go()
    stage.until(lambda: len(stage.notes.failures) >= 3, "freezes fail, at 0, 0.5 and 1.5 s")
    assert stage.gate.deadline > time.monotonic() + 1.5
    stage.listener.come()
    peer = stage.accept()
    stage.greeted(peer)
    began = time.monotonic()
    assert paths(stage, peer) == ["/freeze"]
    assert time.monotonic() - began < 1


# What it has counted.


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stage, list[bytes]]]:
    """One that tells the last of these numbers, 20 ms after an answer and 40 ms after the last time."""
    monkeypatch.setattr(module, "FIRST_REPORT", 0.02)
    monkeypatch.setattr(module, "REPORT_EVERY", 0.04)
    numbers = [b'{"requests":0}']
    with staged(tmp_path / "token", Settings(grace=60.0), numbers=lambda: numbers[-1]) as stage:
        yield stage, numbers


def test_numbers_are_told_when_there_is_news(counting: tuple[Stage, list[bytes]]) -> None:
    stage, numbers = counting
    peer = stage.begin()
    (told,) = stage.asked(peer)
    assert (told.path, told.body) == ("/numbers", b'{"requests":0}')
    assert told.fields["token"] == TOKEN
    assert "lease" not in told.fields
    peer.answer()
    stage.run_for(0.15)
    assert peer.asked() == []
    numbers.append(b'{"requests":1}')
    (told,) = stage.asked(peer)
    assert told.body == b'{"requests":1}'
    peer.answer()
    assert stage.said == []


def test_numbers_go_before_orders_and_hold_up_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REPORT", 0.0)
    with staged(tmp_path / "token", numbers=lambda: b"{}") as stage:
        peer = stage.begin()
        assert paths(stage, peer, 2) == ["/numbers", "/freeze"]
        stage.keeper.began()
        assert paths(stage, peer) == ["/thaw"]
        peer.answer()
        peer.answer(409)
        stage.run_for(0.02)
        assert not stage.gate.open
        peer.answer()
        stage.await_state(AWAKE)
        assert stage.said == []


def test_who_stands_still_says_nothing_once_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REPORT", 0.05)
    monkeypatch.setattr(module, "REPORT_EVERY", 0.02)
    numbers = [b"0"]
    with staged(tmp_path / "token", numbers=lambda: numbers[-1]) as stage:
        peer = stage.begin()
        stage.freeze(peer)
        numbers.append(b"1")  # the freeze
        assert [each.body for each in stage.asked(peer)] == [b"1"]
        peer.answer()
        numbers.append(b"2")  # as it were
        stage.run_for(0.1)
        assert [each.body for each in peer.asked()] == [b"2"]
        peer.answer()
        stage.run_for(0.1)
        numbers.append(b"3")
        stage.run_for(0.1)
        assert peer.asked() == [], "nothing wakes it while it is frozen"
        stage.keeper.began()
        assert paths(stage, peer) == ["/thaw"]
        peer.answer()
        stage.await_state(AWAKE)
        assert [each.body for each in stage.asked(peer)] == [b"3"]


def test_an_older_daemon_is_told_no_more(counting: tuple[Stage, list[bytes]]) -> None:
    stage, numbers = counting
    peer = stage.begin()
    assert paths(stage, peer) == ["/numbers"]
    peer.answer(404)
    numbers.append(b"1")
    stage.run_for(0.2)
    assert peer.asked() == []
    peer.close()
    peer = stage.accept()
    stage.greeted(peer)
    assert [each.body for each in stage.asked(peer)] == [b"1"], "the next one may be a newer"


def test_numbers_that_were_refused_are_told_again(counting: tuple[Stage, list[bytes]]) -> None:
    stage, _ = counting
    peer = stage.begin()
    for status in (503, 403, 200):
        assert paths(stage, peer) == ["/numbers"]
        peer.answer(status)
    stage.run_for(0.1)
    assert peer.asked() == []
    assert stage.said == []
