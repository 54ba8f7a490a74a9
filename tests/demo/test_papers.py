"""What is written agrees with what there is: the README with the demo's run, the dependencies with the project."""

import re
import tomllib
from pathlib import Path

import pytest

from scripts import drawing
from scripts.demo_record import Run, verdict
from scripts.picture import MARKS, PICTURE, README, RUN, draw, table, with_table
from tests.demo.runs import good_run

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_run_that_is_drawn() -> None:
    run = Run.load(RUN)
    assert verdict(run) == []
    readme = README.read_text()
    assert with_table(readme, run) == readme, "make picture has not been run since"
    assert f"({PICTURE.relative_to(ROOT)})" in readme


def test_a_run_can_be_drawn(tmp_path: Path) -> None:
    draw(good_run()).savefig(tmp_path / "run.svg")
    assert "<svg" in (tmp_path / "run.svg").read_text()


def test_a_table_goes_between_the_marks_and_nowhere_else() -> None:
    begin, end = MARKS
    run = good_run()
    assert with_table(f"a\n{begin}old\n{end}b\n", run) == f"a\n{begin}{table(run)}{end}b\n"
    with pytest.raises(SystemExit, match="marks once"):
        with_table("no marks", run)


def test_every_dependency_is_accounted_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = list(project["project"]["dependencies"]) + project["build-system"]["requires"]
    for extra in project["project"]["optional-dependencies"].values():
        named += extra
    names = {re.split(r"[\[<>=~! ]", one)[0] for one in named} - {"freeze-proxy"}
    lines = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    told = {match[1] for line in lines if (match := re.match(r"- \*\*(.+?)\*\*", line))}
    assert told == names


def test_the_makefile_lists_and_has_what_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE))
    assert {"demo", "test", "check", "bench", "picture", "setup", "clean"} <= targets
    assert set(re.findall(r"make ([a-z]+)`", README.read_text())) <= targets


def test_the_drawing_is_what_the_command_draws() -> None:
    assert drawing.FILE.read_text() == drawing.drawn(), "make drawing has not been run since"


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """What a link into this page may name, as GitHub makes it of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https:", "http:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
