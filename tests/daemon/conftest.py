"""What the daemon's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """A stand-in for the API server, in a thread, at an address of its own."""
    with ApiServer(tmp_path / "api-server") as server:
        yield server
