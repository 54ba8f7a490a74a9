"""What the webhook's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.support.webhooks import install


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """A stand-in for the API server, with the manifests applied, that allows what they allow."""
    with ApiServer(tmp_path / "api-server") as server:
        install(server)
        yield server
        assert server.denied == []
