"""The daemon's settings: by options, environment and file, in this order, and what is said of those that are wrong."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freeze_proxy import cli, daemon
from freeze_proxy.annotations import SIDECARS
from freeze_proxy.daemon.settings import Settings


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """With what daemons have been started."""
    settings: list[Settings] = []

    def run(given: Settings) -> int:
        settings.append(given)
        return 0

    monkeypatch.setattr(daemon, "run", run)
    return settings


def start(*arguments: str, file: Path | None = None, **environment: str) -> Result:
    more = ("--config", str(file)) if file else ()
    return CliRunner().invoke(cli.main, ["daemon", *more, *arguments], env=environment)


def test_without_any_they_are_those_of_the_class(told: list[Settings]) -> None:
    assert start().exit_code == 0
    assert told == [Settings()]
    assert set(told[0].exclude) == SIDECARS


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    told: list[Settings], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('audience = "file"\nhook-audience = "file"\nissuer = "file"\nfreeze-timeout = "5s"\n')
    result = start(
        *("--audience", "line"),
        file=file,
        FREEZE_PROXY_AUDIENCE="environment",
        FREEZE_PROXY_HOOK_AUDIENCE="environment",
    )
    assert result.exit_code == 0, result.output
    settings = told[0]
    assert (settings.audience, settings.hook_audience, settings.issuer) == ("line", "environment", "file")
    assert settings.freeze_timeout == 5.0


@pytest.mark.parametrize("value", ['["one", "two"]', '"one"'])
def test_excluded_names_in_a_file_are_a_list_or_one(told: list[Settings], tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"exclude = {value}\n")
    assert start(file=file).exit_code == 0
    assert told[0].exclude == tuple(name for name in ("one", "two") if name in value)


def test_excluded_names_in_the_environment_stand_apart(told: list[Settings]) -> None:
    assert start(FREEZE_PROXY_EXCLUDE="one two").exit_code == 0
    assert told[0].exclude == ("one", "two")


def test_a_socket_may_be_written_as_kubelets_have_it(told: list[Settings]) -> None:
    assert start("--runtime-socket", "unix:///run/crio/crio.sock").exit_code == 0
    assert told[0].runtime_socket == "/run/crio/crio.sock"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("audience =", "is not TOML"),
        ("nodename = 'x'", "has settings that do not exist: nodename"),
        ("listen = 9696", "'9696' is not an address"),
        ("freezer = 'ice'", "'ice' is not one of"),
        ("freeze-timeout = 2", "'2' is not a duration"),
        ("runtime-socket = 'tcp://host'", "is not a socket of this machine"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(told: list[Settings], tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    result = start(file=file)
    assert result.exit_code == 2
    assert said in result.output
    assert not told


def test_a_file_that_is_not_there_is_missed(told: list[Settings], tmp_path: Path) -> None:
    result = start(file=tmp_path / "missing.toml")
    assert result.exit_code == 2
    assert "cannot be read: No such file or directory" in result.output
