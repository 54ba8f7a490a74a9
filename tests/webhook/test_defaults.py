"""The ConfigMap, mounted as the kubelet does it."""

import os
from pathlib import Path

from freeze_proxy.annotations import defaults_trouble, usable
from freeze_proxy.defaults import Defaults
from tests.support.webhooks import manifest


def mount(folder: Path, version: int, **data: str) -> None:
    """As the kubelet's atomic writer: a folder of that version, a link to it that is replaced, a link for each key."""
    folder.mkdir(exist_ok=True)
    new = folder / f"..{version}"
    new.mkdir()
    for name, value in data.items():
        (new / name).write_text(value)
    (folder / "..tmp").symlink_to(new.name)
    os.replace(folder / "..tmp", folder / "..data")
    for name in data:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
    for link in folder.iterdir():
        if not link.name.startswith("..") and link.name not in data:
            link.unlink()


def test_it_is_read_again_when_it_changes(tmp_path: Path) -> None:
    defaults = Defaults(str(tmp_path / "config"))
    assert defaults.look() == []
    assert defaults.values == {}
    mount(tmp_path / "config", 1, mode="freeze", grace="1s\n")
    assert defaults.look() == []
    assert defaults.values == {"mode": "freeze", "grace": "1s"}
    assert defaults.look() is None
    mount(tmp_path / "config", 2, grace="2s")
    assert defaults.look() == []
    assert defaults.values == {"grace": "2s"}


def test_what_is_wrong_is_said_once_and_the_rest_holds(tmp_path: Path) -> None:
    defaults = Defaults(str(tmp_path / "config"))
    mount(tmp_path / "config", 1, mode="sleep", grace="1s", colour="red", breathe="x" * 5000)
    said = defaults.look()
    assert said is not None
    assert len(said) == 3
    assert sum(name in " ".join(said) for name in ("mode", "colour", "breathe")) == 3
    assert defaults.values == {"grace": "1s"}
    (tmp_path / "config" / "breathe").unlink()
    defaults.look()
    assert defaults.look() is None


def test_junk_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "mode").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    defaults = Defaults(str(tmp_path))
    said = defaults.look()
    assert said is not None
    assert "mode" in said[0]
    assert defaults.values == {}


def test_without_a_folder_there_are_none() -> None:
    defaults = Defaults(None)
    assert defaults.look() == []
    assert defaults.look() is None


def test_the_manifests_defaults_are_good() -> None:
    (config,) = manifest("300-config-freeze-proxy.yaml", "ConfigMap")
    assert defaults_trouble(config["data"]) == []
    assert usable(config["data"]) == config["data"]
