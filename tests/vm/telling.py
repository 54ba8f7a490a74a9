"""pytest's plugin in the virtual machine: why a test has failed is told at once, and not at the end of a slow run."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The last lines of what pytest will show at the end."""
    if report.failed:
        print("", *report.longreprtext.splitlines()[-12:], sep="\n", flush=True)


def pytest_configure(config: pytest.Config) -> None:
    """There is no xdist in there, and what tells it which tests belong together is to be understood all the same."""
    if not config.pluginmanager.hasplugin("xdist"):
        config.addinivalue_line("markers", "xdist_group(name): run by the same process, where there are several")
