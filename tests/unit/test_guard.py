"""The words between a proxy and its guard, however they are cut."""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.freezers import Freezer
from freeze_proxy.local.guard import Command, Guard, Plan
from freeze_proxy.local.options import Failure
from tests.support.wait import until

PR_SET_CHILD_SUBREAPER = 36


class Still(Freezer):
    """Freezes nothing."""

    def thaw(self) -> None:
        pass


class NoPlan(Plan):
    """COMMAND stays where it is."""

    def freezer(self, guard: int) -> Freezer:
        return Still()


@given(st.lists(st.tuples(st.text(), st.integers(), st.text()), max_size=5), st.data())
def test_what_it_says_may_be_cut_anywhere(words: list[tuple[str, int, str]], data: st.DataObject) -> None:
    ours, theirs = socket.socketpair()
    guard = Guard.__new__(Guard)  # only its ears
    guard._socket, guard._unread, guard._unheard, guard.gone = ours, b"", [], False
    ours.setblocking(False)
    sent = b"".join(json.dumps(word).encode() + b"\n" for word in words)
    heard = []
    with ours, theirs:
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            theirs.send(sent[:size])
            sent = sent[size:]
            heard += guard.hear()
        assert guard.hear() == []
        assert not guard.gone
        theirs.close()
        assert guard.hear() == []
        assert guard.gone
    assert heard == [list(word) for word in words]


@pytest.fixture(autouse=True)
def _no_orphans_here() -> Iterator[None]:
    """A guard's parent takes in orphans for ever; here that would be those of all other tests."""
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def hear(guard: Guard, word: str, heard: list[list[object]]) -> list[object]:
    def there() -> bool:
        heard.extend(guard.hear())
        return any(said[0] == word for said in heard)

    until(there, f"it says {word}")
    return next(said for said in heard if said[0] == word)


def test_what_it_is_told_may_be_cut_anywhere() -> None:
    guard = Guard(lambda: (NoPlan(), ""), Command(["sleep", "60"], os.environ))
    heard: list[list[object]] = []
    try:
        hear(guard, "started", heard)
        for piece in (b"si", b"gnal ", b"1", b"0\nsign", b"al 12", b"\n"):
            guard._socket.send(piece)
        assert hear(guard, "signalled", heard) == ["signalled", 10]
        assert hear(guard, "ended", heard) == ["ended", 128 + signal.SIGUSR1]
    finally:
        guard.end()


def test_its_end_is_waited_for_and_heard_of() -> None:
    guard = Guard(lambda: (NoPlan(), "about"), Command(["sleep", "60"], os.environ))
    _, pid = hear(guard, "started", [])
    assert guard.about == "about"
    assert isinstance(pid, int)
    guard.end()
    guard.end()  # again does nothing
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(f"/proc/{guard.pid}")


def test_there_can_be_no_plan() -> None:
    def make_plan() -> tuple[Plan, str]:
        raise Failure("It is\nimpossible.", 42)

    with pytest.raises(Failure, match=r"It is\nimpossible\.") as failure:
        Guard(make_plan, Command(["true"], os.environ))
    assert failure.value.code == 42


def test_it_is_killed_before_there_is_a_plan() -> None:
    def make_plan() -> tuple[Plan, str]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(Failure, match="ended by somebody before it could start"):
        Guard(make_plan, Command(["true"], os.environ))
