"""What the webhook's tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support.api_server import ApiServer
from tests.support.webhooks import Json, Webhook, ask, client, install, review, running, trusted


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """A stand-in for the API server, with the manifests applied, that allows what they allow."""
    with ApiServer(tmp_path / "api-server") as server:
        install(server)
        yield server
        assert server.denied == []


class Hook(NamedTuple):
    """A webhook that many tests ask one after the other, none of which may change it."""

    webhook: Webhook
    authorities: bytes
    http: httpx2.Client

    def ask(self, pod: Json) -> Json:
        """Its response to a review of this pod."""
        return ask(self.http, self.webhook.port, review(pod))


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hook]:
    """One for all tests of a file, whose clients have a second for a request."""
    with ApiServer(tmp_path_factory.mktemp("hook") / "api-server") as server:
        install(server)
        with running(server, "--request-timeout", "1s") as webhook, client(trusted(server)) as http:
            yield Hook(webhook, trusted(server), http)
            assert "Traceback" not in webhook.said
            assert webhook.end() == 0
        assert server.denied == []
