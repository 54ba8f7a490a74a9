"""What is frozen, as it is written down: read again by others, whatever has become of it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeze_proxy.daemon.journal import Journal, JournalError, Record, thaw_all
from freeze_proxy.freezers import FreezeError, Freezer, cgroup
from freeze_proxy.freezers.remade import remade
from tests.support.needs import need, need_root
from tests.support.wait import until


def record(id: str = "abc", way: tuple[str, ...] = ("cgroup2", "/nowhere")) -> Record:
    return Record("uid", "ns", "pod", "user-container", id, 1, list(way))


def test_only_its_owner_may_look(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state"
    Journal(str(path)).entry(record())
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "abc").stat().st_mode & 0o777 == 0o600


def test_what_is_written_is_found(tmp_path: Path) -> None:
    entry = Journal(str(tmp_path)).entry(record())
    for frozen in (True, False, True):
        entry.mark(frozen)
        found = Journal(str(tmp_path)).found()
        assert [(other.record, other.frozen) for other in found] == [(record(), frozen)]


def test_a_file_of_each_way(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.entry(record()).mark(True)
    journal.entry(record(), ".throttled")
    assert [entry.frozen for entry in journal.found()] == [True, False]


def test_struck_out_it_is_found_no_more(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.entry(record()).close(remove=True)
    assert journal.found() == []


@pytest.mark.parametrize("id", ["", "../abc", "a/b", ".hidden", "x" * 200, "a\n", "a~"])
def test_an_id_that_could_be_a_path_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(FreezeError, match="is no container id"):
        Journal(str(tmp_path)).entry(record(id))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "frozen\n", "frozen\n{", "frozen\n{}", "frozen\n[]", 'frozen\n{"pod": 1}', "\xff" * 100_000]
)
def test_what_cannot_be_read_is_removed_and_the_rest_is_kept(tmp_path: Path, content: str) -> None:
    journal = Journal(str(tmp_path))
    journal.entry(record("good")).mark(True)
    (tmp_path / "bad").write_text(content, "latin-1")
    (tmp_path / "draft~").write_text("frozen\n")
    assert [entry.record.id for entry in journal.found()] == ["good"]
    assert [file.name for file in tmp_path.iterdir()] == ["good"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere, state = tmp_path / "elsewhere", tmp_path / "state"
    elsewhere.write_text("untouched")
    journal = Journal(str(state))
    (state / "abc").symlink_to(elsewhere)
    (state / "def~").symlink_to(elsewhere)
    assert journal.found() == []
    (state / "ghi~").symlink_to(elsewhere)
    with pytest.raises(FreezeError):
        journal.entry(record("ghi"))
    assert elsewhere.read_text() == "untouched"


def test_a_folder_that_cannot_be_had_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be written down in"):
        Journal(str(tmp_path / "file" / "state"))


def test_a_folder_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    need_root()
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(JournalError, match="belongs to another user"):
        Journal(str(tmp_path))


@pytest.fixture(params=["cgroup1", "cgroup2", "throttle"])
def freezer(request: pytest.FixtureRequest) -> Iterator[Freezer]:
    need_root()
    hierarchy = {"cgroup1": "freezer", "cgroup2": "cgroup2", "throttle": "cpu"}[request.param]
    need(cgroup.place(hierarchy) is not None, f"This machine has no {hierarchy} hierarchy.")
    path = cgroup.create(hierarchy, f"freeze-proxy-test-{os.getpid()}")
    process = subprocess.Popen(["sleep", "60"])
    Path(path, "cgroup.procs").write_text(str(process.pid))
    freezer = remade([request.param, path])
    try:
        yield freezer
    finally:
        freezer.thaw()
        freezer.close()
        process.kill()
        process.wait()
        assert cgroup.remove(path)


def test_whoever_comes_after_thaws(tmp_path: Path, freezer: Freezer) -> None:
    before = freezer.still()
    entry = Journal(str(tmp_path)).entry(record("abc", freezer.way))
    entry.mark(True)
    freezer.freeze()
    until(freezer.still, "it stands still")
    assert not before
    assert thaw_all(str(tmp_path)) == (1, [])
    assert not freezer.still()
    assert thaw_all(str(tmp_path)) == (0, [])


def test_what_is_gone_is_struck_out_and_what_fails_is_told(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.entry(record("gone", ("cgroup2", "/sys/fs/cgroup/nowhere"))).mark(True)
    journal.entry(record("odd", ("by-magic", "x"))).mark(True)
    thawed, troubles = thaw_all(str(tmp_path))
    assert thawed == 0
    assert len(troubles) == 1
    assert troubles[0].startswith("user-container of ns/pod: There is no way to freeze called 'by-magic'")
    assert [file.name for file in tmp_path.iterdir()] == ["odd"]
