"""pytest's plugin in the virtual machine: why a test has failed is told at once, and not at the end of a slow run."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The last lines of what pytest will show at the end."""
    if report.failed:
        print("", *report.longreprtext.splitlines()[-12:], sep="\n", flush=True)
