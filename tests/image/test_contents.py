"""What the images are made of is found in the sources: each import, wherever it is made."""

from pathlib import Path

import pytest

from scripts.image_contents import closure, dependencies, imported

SOURCES: list[tuple[str, set[str]]] = [
    ("", set()),
    ("import a.b, c as d", {"a.b", "c"}),
    ("from a.b import c", {"a.b", "a.b.c"}),
    ("def f():\n    import a", {"a"}),
    (
        "class C:\n    def f(self):\n        try:\n            from a import b\n        finally:\n            pass",
        {"a", "a.b"},
    ),
    ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
    ("if not TYPE_CHECKING:\n    import a", {"a"}),
    ("'import a'  # import b", set()),
]


@pytest.mark.parametrize(("source", "names"), SOURCES)
def test_imports_are_found_wherever_they_are(source: str, names: set[str]) -> None:
    assert imported(source) == names


def test_all_that_is_imported_is_followed(tmp_path: Path) -> None:
    files = {
        "p/__init__.py": "",
        "p/a.py": "import posix\nfrom p.q import b",
        "p/unused.py": "import ssl",
        "p/q/__init__.py": "import time",
        "p/q/b.py": "def later():\n    from p import c",
        "p/c.py": "import p.a",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    found, others = closure("p.a", tmp_path)
    assert found == {
        "p": tmp_path / "p/__init__.py",
        "p.a": tmp_path / "p/a.py",
        "p.q": tmp_path / "p/q/__init__.py",
        "p.q.b": tmp_path / "p/q/b.py",
        "p.c": tmp_path / "p/c.py",
    }
    assert others == {"posix", "time"}
    with pytest.raises(FileNotFoundError, match=r"no module p\.d in"):
        closure("p.d", tmp_path)


@pytest.mark.parametrize("other", ["Python 3.1", "Python 3.99.1", "Python 33.1.0"])
def test_wheels_for_another_python_are_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / "python").write_text(f"{other}\n")
    with pytest.raises(SystemExit, match=f"The wheels are for {other}, and this base has Python 3"):
        dependencies(tmp_path / "pyproject.toml", tmp_path, tmp_path / "out")
