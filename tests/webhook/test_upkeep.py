"""The webhook's certificates: kept in a Secret that replicas share, or by somebody else."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from freeze_proxy.apiserver import Unreachable
from freeze_proxy.webhook import certs
from freeze_proxy.webhook.certs import Bundle
from freeze_proxy.webhook.cluster import Cluster
from freeze_proxy.webhook.settings import Settings
from freeze_proxy.webhook.upkeep import Shared
from tests.support.api_server import ApiServer
from tests.support.wait import until
from tests.support.webhooks import (
    CONFIGURATION,
    PODS,
    SECRET,
    Webhook,
    ask,
    client,
    get,
    review,
    running,
    served,
    trusted,
)

POD: dict[str, Any] = json.loads((PODS / "1-plain.json").read_text())


def bundle_of(server: ApiServer) -> Bundle:
    data = {name: base64.b64decode(value) for name, value in server.objects[SECRET]["data"].items()}
    return Bundle(data["ca.crt"], data["tls.crt"], data["tls.key"])


def test_the_secret_is_filled_and_used_again(api_server: ApiServer) -> None:
    api_server.objects[SECRET]["metadata"]["labels"] = {"mine": "stays"}
    with running(api_server) as webhook:
        first = served(webhook.port)
    bundle = bundle_of(api_server)
    assert bundle.certificate == first
    assert trusted(api_server) == bundle.authorities
    assert api_server.objects[SECRET]["metadata"]["labels"] == {"mine": "stays"}
    with running(api_server) as webhook:
        assert served(webhook.port) == first
    assert bundle_of(api_server) == bundle
    assert bundle.key.decode() not in webhook.said


@contextlib.asynccontextmanager
async def sharing(server: ApiServer) -> AsyncIterator[Shared]:
    """What looks after the Secret in a replica, without the rest of it."""
    settings = Settings("sidecar:1", kubeconfig=str(server.kubeconfig()))
    cluster = Cluster(settings.kubeconfig, settings.context, settings.namespace)
    yield Shared(cluster, settings)
    await cluster.close()


def current(server: ApiServer) -> Bundle:
    async def look() -> Bundle:
        async with sharing(server) as shared:
            return await shared.current()

    return asyncio.run(look())


def test_replicas_that_start_at_once_agree(api_server: ApiServer) -> None:
    api_server.become(delay=0.05)  # so that their reads and writes overlap
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(Webhook(api_server.kubeconfig())) for _ in range(3)]
        assert len({served(one.port) for one in several}) == 1
        assert sum(len(one.found("a new certificate was made")) for one in several) == 1
        authorities = trusted(api_server)
        assert len(x509.load_pem_x509_certificates(authorities)) == 1
        for one in several:
            with client(authorities) as http:
                assert "patch" in ask(http, one.port, review(POD))


def test_many_replicas_at_any_moment_agree(api_server: ApiServer) -> None:
    """Whoever comes when, in the end all serve one certificate, and the API server trusts it."""

    async def replica(server: ApiServer, wait: float) -> Bundle:
        await asyncio.sleep(wait)
        async with sharing(server) as shared:
            return await shared.current()

    async def story() -> list[Bundle]:
        waits = [random.uniform(0, 0.2) for _ in range(12)]
        await asyncio.gather(*(replica(api_server, wait) for wait in waits))
        api_server.objects[SECRET]["data"] = {}  # as if somebody had applied an empty one
        await asyncio.gather(*(replica(api_server, wait) for wait in waits))
        return await asyncio.gather(*(replica(api_server, 0) for _ in range(2)))

    bundles = asyncio.run(story())
    assert len(set(bundles)) == 1
    assert bundles[0] == bundle_of(api_server)
    assert trusted(api_server) == bundles[0].authorities


@pytest.mark.parametrize("damage", ["empty", "junk", "old", "half"])
def test_a_secret_that_is_no_good_is_replaced(api_server: ApiServer, damage: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=89)
    old = certs.made("freeze-proxy-webhook", "freeze-proxy", timedelta(days=90), long_ago)
    parts = {"ca.crt": old.authorities, "tls.crt": old.certificate, "tls.key": old.key}
    data = {name: base64.b64encode(value).decode() for name, value in parts.items()}
    match damage:
        case "empty":
            data = {}
        case "junk":
            data = dict.fromkeys(data, "!!! no base64")
        case "half":
            del data["tls.key"]
    api_server.objects[SECRET]["data"] = data
    new = current(api_server)
    assert new.certificate != old.certificate
    assert new == bundle_of(api_server)
    assert trusted(api_server) == new.authorities
    # Replicas that still serve the old one stay trusted.
    assert len(x509.load_pem_x509_certificates(new.authorities)) == (2 if damage == "old" else 1)
    assert current(api_server) == new


def test_certificates_rotate_under_load(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas renew every few seconds, while clients that trust what the API server trusts lose nothing."""
    options = ("--certificate-lifetime", "6s", "--check-every", "200ms", "--settle", "400ms")
    answered = 0
    failures: list[str] = []
    seen: set[bytes] = set()
    end = time.monotonic() + 60
    lock = threading.Lock()
    kept: list[float] = []
    put = api_server.put

    def noted(path: str, content: Any) -> None:
        if path == SECRET:
            kept.append(time.monotonic())
        put(path, content)

    monkeypatch.setattr(api_server, "put", noted)

    def load(port: int) -> None:
        nonlocal answered
        while len(seen) < 3 and not failures and time.monotonic() < end:
            try:
                # A new connection each time, as trust has only just been looked up.
                with client(trusted(api_server)) as http:
                    for _ in range(5):
                        assert "patch" in ask(http, port, review(POD))
                        with lock:
                            answered += 1
            except Exception as error:
                with lock:
                    failures.append(repr(error))
            with lock:
                seen.add(served(port))

    with running(api_server, *options) as one, running(api_server, *options) as two:
        with ThreadPoolExecutor(4) as pool:
            for port in (one.port, two.port) * 2:
                pool.submit(load, port)
        assert failures == []
        assert answered > 100
        assert len(seen) >= 3
        # One for both, each time: a second one would have come at once, not when two thirds of its time have passed.
        assert all(later - before > 3 for before, later in itertools.pairwise(kept))
        assert len(x509.load_pem_x509_certificates(trusted(api_server))) <= 3


def test_a_ca_bundle_that_somebody_changed_is_set_right(api_server: ApiServer) -> None:
    with running(api_server, "--check-every", "200ms") as webhook:
        right = trusted(api_server)
        for wrong in ("", "bm8="):
            for one in api_server.objects[CONFIGURATION]["webhooks"]:
                one["clientConfig"]["caBundle"] = wrong
            until(lambda: trusted(api_server) == right, "the caBundle is right again")
        one = api_server.objects[CONFIGURATION]["webhooks"][0]
        assert one["rules"]
        assert one["clientConfig"]["service"]["name"] == "freeze-proxy-webhook"
        assert webhook.end() == 0


def test_while_the_api_server_is_away_reviews_go_on(api_server: ApiServer) -> None:
    with running(api_server, "--check-every", "200ms") as webhook, client(trusted(api_server)) as http:
        api_server.vanish()
        until(lambda: webhook.found("the certificate cannot be looked after"), "it is noticed")
        assert "patch" in ask(http, webhook.port, review(POD))
        assert get(webhook.health, "/readyz")[0] == 200
        api_server.listen()
        until(lambda: webhook.found("the certificate is looked after"), "it is noticed", 20)
        assert len(webhook.found("the certificate cannot be looked after")) == 1


def test_it_waits_for_the_api_server(api_server: ApiServer) -> None:
    api_server.vanish()
    with Webhook(api_server.kubeconfig(), "--health-listen", "127.0.0.1:0") as webhook:
        until(lambda: webhook.found("the certificate cannot be looked after"), "it is noticed", 20)
        assert webhook.process.poll() is None
        api_server.listen()
        with client(until(lambda: trusted(api_server) if webhook.port else b"", "it starts", 20)) as http:
            assert "patch" in ask(http, webhook.port, review(POD))


@pytest.mark.parametrize("fault", ["forbidden", "broken", "garbage", "html", "bare", "overloaded", "cut"])
def test_what_the_api_server_says_is_one_sentence(api_server: ApiServer, fault: str) -> None:
    api_server.become(fault)
    with pytest.raises(Unreachable) as failure:
        current(api_server)
    said = str(failure.value)
    assert "could not give the MutatingWebhookConfiguration freeze-proxy: " in said
    assert said.endswith(".")
    assert "\n" not in said
    assert min(api_server.credentials) not in said
    api_server.become()
    assert current(api_server) == bundle_of(api_server)


def test_missing_objects_are_named(api_server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    secret = api_server.objects.pop(SECRET)
    with pytest.raises(Unreachable, match="no Secret freeze-proxy-webhook-certs in the namespace freeze-proxy: apply"):
        current(api_server)
    del api_server.objects[CONFIGURATION]
    api_server.put(SECRET, secret)
    assert current(api_server) == bundle_of(api_server)
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        "nobody calls this webhook"
    ]


# Certificates of somebody else.


def put_files(folder: Path, bundle: Bundle) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in (("tls.crt", bundle.certificate), ("tls.key", bundle.key)):
        (folder / f"{name}.new").write_bytes(content)
        os.replace(folder / f"{name}.new", folder / name)


def made() -> Bundle:
    return certs.made("freeze-proxy-webhook", "freeze-proxy", timedelta(days=1), datetime.now(UTC))


def test_mounted_certificates_need_no_api_server(tmp_path: Path) -> None:
    first, second = made(), made()
    put_files(tmp_path / "certs", first)
    options = ("--cert-dir", str(tmp_path / "certs"), "--native-sidecars", "always", "--check-every", "200ms")
    with Webhook(None, *options, "--settle", "0s") as webhook:
        with client(first.authorities) as http:
            assert "patch" in ask(http, webhook.port, review(POD))
            put_files(tmp_path / "certs", second)
            until(lambda: served(webhook.port) == second.certificate, "the new one is served")
            assert "patch" in ask(http, webhook.port, review(POD))  # on the connection that is open
        with client(second.authorities) as http:
            assert "patch" in ask(http, webhook.port, review(POD))
        (tmp_path / "certs" / "tls.crt").write_bytes(first.certificate)  # another key's
        until(lambda: webhook.found("the certificate cannot be looked after"), "it is said")
        assert served(webhook.port) == second.certificate
        assert webhook.end() == 0


def test_mounted_certificates_may_come_later(tmp_path: Path) -> None:
    options = ("--cert-dir", str(tmp_path / "certs"), "--native-sidecars", "always")
    with Webhook(None, *options) as webhook:
        (line,) = until(lambda: webhook.found("the certificate cannot be looked after"), "it is said", 20)
        assert "tls.crt" in line["why"]
        put_files(tmp_path / "certs", made())
        assert webhook.port
