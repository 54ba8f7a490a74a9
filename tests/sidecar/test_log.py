"""``sidecar/log.py``: lines of JSON, for which nobody waits."""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.sidecar.log import Log, _line

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.text(), st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), values, max_size=4))
def test_each_line_is_an_object_whatever_is_said(message: str, facts: dict[str, object]) -> None:
    line = _line("info", message, facts)
    assert line.count(b"\n") == 1
    read = json.loads(line)
    assert facts.keys() <= read.keys()
    if "message" not in facts:
        assert read["message"] == message


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_what_is_less_grave_is_left_out(pipe: tuple[int, int]) -> None:
    log = Log("warning", pipe[1])
    log.debug("a")
    log.info("b")
    log.warning("c", fact=1)
    log.error("d")
    lines = [json.loads(line) for line in os.read(pipe[0], 65536).splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [("warning", "c"), ("error", "d")]
    assert lines[0]["fact"] == 1


def test_a_reader_that_has_stopped_stops_nobody_and_learns_what_it_missed(pipe: tuple[int, int]) -> None:
    log = Log("info", pipe[1])
    for number in range(3000):
        log.info("x" * 100, number=number)
    data = os.read(pipe[0], 1 << 20)
    log.info("go on")
    data += os.read(pipe[0], 1 << 20)
    seen = [json.loads(line) for line in data.splitlines()]
    there = sum(line["message"] == "x" * 100 for line in seen)
    assert seen[-1]["message"] == "go on"
    assert 0 < there < 3000
    assert there + seen[-1]["lines_lost"] == 3000


def test_a_closed_stderr_is_no_trouble() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    os.close(theirs)
    Log("info", theirs).info("nobody hears this")
