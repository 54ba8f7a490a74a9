"""Every test of the node runs in the virtual machine, or there is a reason given why it does not."""

import ast
from pathlib import Path

from tests.vm import selection

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/containers", "tests/freezers")


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_what_is_chosen_is_there() -> None:
    for name, tests in selection.CHOSEN.items():
        assert (ROOT / name).exists(), name
        if tests:
            assert set(tests) <= names_in(ROOT / name), name


def test_what_is_not_chosen_has_a_reason() -> None:
    for folder in FOLDERS:
        for file in (ROOT / folder).glob("test_*.py"):
            name = str(file.relative_to(ROOT))
            if selection.CHOSEN.get(name) != selection.ALL:
                assert selection.REST.get(name), f"{name}: say in tests/vm/selection.py why it is left out"
