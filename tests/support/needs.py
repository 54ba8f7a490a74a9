"""What a test needs of the machine: programs and privileges.

On a developer's machine a missing need skips the test, and pytest's summary lists it with the sentence given here. With
``CI=true`` it fails: there, everything runs.
"""

import os
import shutil

import pytest


def need(there: bool, otherwise: str) -> None:
    """Go on if ``there``; otherwise skip, or on CI fail, with a sentence that says what is missing."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{otherwise} CI must run everything.")
    pytest.skip(otherwise)


def need_program(name: str, package: str) -> str:
    """The path of a program, or a skip that names the Debian package which has it."""
    path = shutil.which(name)
    need(path is not None, f"{name} is not installed (Debian package {package}).")
    assert path is not None
    return path


def need_root() -> None:
    """Root, for what only root may do."""
    need(os.geteuid() == 0, "This test must run as root.")
