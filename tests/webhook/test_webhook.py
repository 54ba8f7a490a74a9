"""``freeze-proxy webhook`` over TLS: real clients, and a stand-in for the API server with the manifests' rules."""

import asyncio
import contextlib
import copy
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from cryptography import x509

from freeze_proxy.webhook import certs
from freeze_proxy.webhook.certs import Bundle
from freeze_proxy.webhook.reviews import LONGEST_BODY
from tests.support.api_server import ApiServer
from tests.support.wait import until
from tests.support.webhooks import (
    CONFIGURATION,
    HOST,
    PODS,
    SECRET,
    Webhook,
    ask,
    client,
    patch_of,
    review,
    served,
    trusted,
)
from tests.webhook.test_inject import applied, sidecar_of

POD: dict[str, Any] = json.loads((PODS / "1-plain.json").read_text())


@contextlib.contextmanager
def running(server: ApiServer, *options: str) -> Iterator[Webhook]:
    with Webhook(server.kubeconfig(), *options) as webhook:
        assert webhook.port
        yield webhook


def get(port: int, path: str) -> tuple[int, str]:
    answer = httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10)
    return answer.status_code, answer.text


def metric(port: int, name: str) -> float:
    (value,) = [float(line.split()[-1]) for line in get(port, "/metrics")[1].splitlines() if line.startswith(name)]
    return value


# Reviews.


@pytest.mark.parametrize("path", sorted(PODS.glob("*.json")), ids=lambda path: path.stem)
def test_every_sample_is_injected(api_server: ApiServer, path: Path) -> None:
    pod = json.loads(path.read_text())
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        response = ask(http, webhook.port, review(pod))
        new = applied(pod, patch_of(response))
        assert sidecar_of(new)["image"] == "sidecar:1"
        assert any(each["name"] == "freeze-proxy" for each in new["spec"]["initContainers"])
        again = ask(http, webhook.port, review(new))
        assert again == {"uid": again["uid"], "allowed": True}
        assert webhook.end() == 0


def test_clients_of_many_kinds(api_server: ApiServer) -> None:
    content = json.dumps(review(POD)).encode()
    with running(api_server) as webhook:
        authorities = trusted(api_server).decode()
        context = ssl.create_default_context(cadata=authorities)
        # The standard library's, by the Service's name.
        with socket.create_connection(("127.0.0.1", webhook.port)) as plain:
            connection = http.client.HTTPSConnection(HOST, 443, timeout=10)
            connection.sock = context.wrap_socket(plain, server_hostname=HOST)
            for _ in range(3):
                connection.request("POST", "/mutate?timeout=3s", content, {"Content-Type": "application/json"})
                assert json.loads(connection.getresponse().read())["response"]["patch"]

        # aiohttp's, in pieces of unknown number.
        async def story() -> None:
            async def pieces() -> Any:
                for at in range(0, len(content), 1000):
                    yield content[at : at + 1000]

            async with aiohttp.ClientSession() as session:
                url = f"https://127.0.0.1:{webhook.port}/mutate"
                headers = {"Content-Type": "application/json"}
                async with session.post(
                    url, data=pieces(), ssl=context, server_hostname=HOST, headers=headers
                ) as answer:
                    assert (await answer.json())["response"]["patch"]

        asyncio.run(story())


def test_options_reach_the_pod(api_server: ApiServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "grace").write_text("7s")
    (config / "mode").write_text("nonsense")
    options = ("--config-dir", str(config), "--native-sidecars", "never", "--daemon-port", "1234")
    with running(api_server, *options) as webhook, client(trusted(api_server)) as http:
        sidecar = sidecar_of(applied(POD, patch_of(ask(http, webhook.port, review(POD)))))
        said = {each["name"]: each.get("value") for each in sidecar["env"]}
        assert said["FREEZE_PROXY_GRACE"] == "7s"
        assert said["FREEZE_PROXY_DAEMON"] == "[$(HOST_IP)]:1234"
        assert "FREEZE_PROXY_MODE" not in said
        assert "restartPolicy" not in sidecar
        (warning,) = webhook.found("a default is not used")
        assert "mode" in warning["why"]


def test_the_release_decides_on_native_sidecars(api_server: ApiServer) -> None:
    api_server.release = {"major": "1", "minor": "28+"}
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        assert "restartPolicy" not in sidecar_of(applied(POD, patch_of(ask(http, webhook.port, review(POD)))))
    api_server.release = {"major": "1", "minor": "29+"}
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        new = applied(POD, patch_of(ask(http, webhook.port, review(POD))))
        assert sidecar_of(new)["restartPolicy"] == "Always"


def test_nonces_are_never_the_same(api_server: ApiServer) -> None:
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        hooks = [
            sidecar_of(applied(POD, patch_of(ask(http, webhook.port, review(POD)))))["lifecycle"] for _ in range(20)
        ]
        assert len({hook["preStop"]["httpGet"]["path"] for hook in hooks}) == 20
        assert not any(hook["preStop"]["httpGet"]["path"].removeprefix("/drain/") in webhook.said for hook in hooks)


def test_outcomes_are_said_and_counted(api_server: ApiServer) -> None:
    refused, unfit = copy.deepcopy(POD), copy.deepcopy(POD)
    refused["metadata"].setdefault("annotations", {})["freeze.extensions.knative.dev/mode"] = "sleep"
    unfit["spec"]["hostNetwork"] = True
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        no = ask(http, webhook.port, review(refused))
        assert not no["allowed"]
        assert "mode" in no["status"]["message"]
        left = ask(http, webhook.port, review(unfit))
        assert left["allowed"]
        assert "patch" not in left
        assert "network" in left["warnings"][0]
        assert "patch" in ask(http, webhook.port, review(POD))
        for outcome, count in {"refused": 1, "unchanged": 1, "injected": 1, "failed": 0, "malformed": 0}.items():
            assert metric(webhook.health, f'freeze_proxy_webhook_reviews_total{{outcome="{outcome}"}}') == count
        assert metric(webhook.health, "freeze_proxy_webhook_review_seconds_count") == 3
        assert metric(webhook.health, "freeze_proxy_webhook_certificate_end_seconds") > time.time() + 80 * 86400
        (line,) = webhook.found("a pod was refused")
        assert line["namespace"] == "default"


# What is no review.


@pytest.mark.parametrize(
    ("method", "path", "kind", "content", "status"),
    [
        ("GET", "/", "", b"", 404),
        ("POST", "/mutate/x", "application/json", b"{}", 404),
        ("GET", "/mutate", "", b"", 405),
        ("POST", "/mutate", "text/plain", b"{}", 415),
        ("POST", "/mutate", "application/json", b"", 400),
        ("POST", "/mutate", "application/json", b'{"kind": "AdmissionReview"', 400),
        ("POST", "/mutate", "application/json; charset=utf-16", b"\xff\xfe{\x00}\x00", 400),
        ("POST", "/mutate", "application/json", b"[" * 200_000, 400),
        ("POST", "/mutate", "application/json", b" " * (LONGEST_BODY + 1), 413),
    ],
)
def test_what_is_no_review_is_told_so(
    api_server: ApiServer, method: str, path: str, kind: str, content: bytes, status: int
) -> None:
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        headers = {"Host": HOST, "Content-Type": kind} if kind else {"Host": HOST}
        url = f"https://127.0.0.1:{webhook.port}{path}"
        answer = http.request(method, url, content=content, headers=headers, extensions={"sni_hostname": HOST})
        assert answer.status_code == status
        assert answer.text.endswith(".\n")
        assert "Traceback" not in answer.text
        assert "patch" in ask(http, webhook.port, review(POD))


def secure(port: int, authorities: bytes) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=authorities.decode())
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname=HOST)


def rest(connection: ssl.SSLSocket) -> bytes:
    """All that comes until the connection ends, however that is."""
    data = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            data += part
    return data


HEAD = b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (b"\x00\xff junk\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"HTTP/1."),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc", b"HTTP/1.1 400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (1 << 60), b"HTTP/1.1 413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 400"),
        (HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 400"),
        (HEAD + b"X: y\r\n" * 5_000 + b"\r\n", b"HTTP/1.1 400"),
    ],
)
def test_hostile_requests_harm_nobody(api_server: ApiServer, content: bytes, begins: bytes) -> None:
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        with secure(webhook.port, trusted(api_server)) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
            told = rest(connection)
            assert told.startswith(begins) or told == b""
            assert b"Traceback" not in told
        assert "patch" in ask(http, webhook.port, review(POD))
        assert "Traceback" not in webhook.said


def test_a_body_without_end_is_cut_at_the_bound(api_server: ApiServer) -> None:
    with running(api_server) as webhook, secure(webhook.port, trusted(api_server)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 10 * LONGEST_BODY:
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                sent += 0x10000
        assert sent < 10 * LONGEST_BODY


@pytest.mark.parametrize("begun", [b"", b"POST /mut", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"])
def test_slow_clients_are_cut(api_server: ApiServer, begun: bytes) -> None:
    with running(api_server) as webhook, secure(webhook.port, trusted(api_server)) as connection:
        began = time.monotonic()
        connection.sendall(begun)
        rest(connection)
        assert 5 < time.monotonic() - began < 15


def test_a_crowd_of_silent_connections_keeps_nobody_out(api_server: ApiServer) -> None:
    with running(api_server) as webhook, client(trusted(api_server)) as http, contextlib.ExitStack() as stack:
        authorities = trusted(api_server)
        for _ in range(600):
            stack.enter_context(secure(webhook.port, authorities))
        assert "patch" in ask(http, webhook.port, review(POD))
        assert metric(webhook.health, "freeze_proxy_webhook_connections") <= 513


def test_without_tls_there_is_nothing(api_server: ApiServer) -> None:
    with running(api_server) as webhook:
        with socket.create_connection(("127.0.0.1", webhook.port), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(OSError):
                assert b"HTTP" not in plain.recv(1000)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", webhook.port), timeout=20) as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain)
        assert "Traceback" not in webhook.said


# Certificates.


def bundle_of(server: ApiServer) -> Bundle:
    import base64

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


def test_replicas_that_start_at_once_agree(api_server: ApiServer) -> None:
    api_server.become(delay=0.05)  # so that their reads and writes overlap
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(Webhook(api_server.kubeconfig())) for _ in range(4)]
        assert len({served(one.port) for one in several}) == 1
        assert sum(len(one.found("a new certificate was made")) for one in several) == 1
        authorities = trusted(api_server)
        assert len(x509.load_pem_x509_certificates(authorities)) == 1
        for one in several:
            with client(authorities) as http:
                assert "patch" in ask(http, one.port, review(POD))


@pytest.mark.parametrize("damage", ["empty", "junk", "old", "half"])
def test_a_secret_that_is_no_good_is_replaced(api_server: ApiServer, damage: str) -> None:
    from base64 import b64encode
    from datetime import UTC, datetime, timedelta

    long_ago = datetime.now(UTC) - timedelta(days=89)
    old = certs.made("freeze-proxy-webhook", "freeze-proxy", timedelta(days=90), long_ago)
    parts = {"ca.crt": old.authorities, "tls.crt": old.certificate, "tls.key": old.key}
    data = {name: b64encode(value).decode() for name, value in parts.items()}
    match damage:
        case "empty":
            data = {}
        case "junk":
            data = dict.fromkeys(data, "!!! no base64")
        case "half":
            del data["tls.key"]
    api_server.objects[SECRET]["data"] = data
    with running(api_server) as webhook, client(trusted(api_server)) as http:
        assert "patch" in ask(http, webhook.port, review(POD))
        assert served(webhook.port) != old.certificate
    if damage == "old":  # replicas that still serve it stay trusted
        assert len(x509.load_pem_x509_certificates(trusted(api_server))) == 2


def test_certificates_rotate_under_load(api_server: ApiServer) -> None:
    """Two replicas renew every few seconds, while clients that trust what the API server trusts lose nothing."""
    options = ("--certificate-lifetime", "9s", "--check-every", "300ms", "--settle", "600ms")
    answered, failures, seen = 0, [], set()
    end = time.monotonic() + 16
    lock = threading.Lock()

    def load(port: int) -> None:
        nonlocal answered
        while time.monotonic() < end:
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
        assert answered > 200
        assert len(seen) >= 3
        made = len(one.found("a new certificate was made")) + len(two.found("a new certificate was made"))
        assert made == len(seen | {bundle_of(api_server).certificate})
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


@pytest.mark.parametrize("fault", ["forbidden", "broken", "garbage", "html", "bare", "overloaded"])
def test_what_the_api_server_says_is_one_line(api_server: ApiServer, fault: str) -> None:
    api_server.become(fault)
    with Webhook(api_server.kubeconfig()) as webhook:
        (line,) = until(lambda: webhook.found("the certificate cannot be looked after"), "it is said", 20)
        assert "mutatingwebhookconfiguration" in line["why"].lower()
        assert line["why"].endswith(".")
        api_server.become()
        assert webhook.port
        assert "Traceback" not in webhook.said


def test_missing_objects_are_named(api_server: ApiServer) -> None:
    secret = api_server.objects.pop(SECRET)
    with Webhook(api_server.kubeconfig(), "--check-every", "200ms") as webhook:
        (line,) = until(lambda: webhook.found("the certificate cannot be looked after"), "it is said", 20)
        assert "no Secret freeze-proxy-webhook-certs in the namespace freeze-proxy" in line["why"]
        del api_server.objects[CONFIGURATION]
        api_server.put(SECRET, secret)
        until(lambda: webhook.found("nobody calls this webhook"), "it is said", 20)
        assert webhook.port


# Certificates of somebody else.


def put_files(folder: Path, bundle: Bundle) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in (("tls.crt", bundle.certificate), ("tls.key", bundle.key)):
        (folder / f"{name}.new").write_bytes(content)
        os.replace(folder / f"{name}.new", folder / name)


def made() -> Bundle:
    from datetime import UTC, datetime, timedelta

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


# Its life.


def test_readiness(api_server: ApiServer, tmp_path: Path) -> None:
    from tests.support.ports import free_port

    health = free_port()
    api_server.vanish()
    with Webhook(api_server.kubeconfig(), "--health-listen", f"127.0.0.1:{health}", "--linger", "2s") as webhook:
        until(lambda: webhook.found("the certificate cannot be looked after"), "it has tried", 20)
        status, told = get(health, "/readyz")
        assert status == 503
        assert "the API server" in told or "certificate" in told
        assert get(health, "/healthz")[0] == 200
        assert get(health, "/else")[0] == 404
        api_server.listen()
        until(lambda: get(health, "/readyz")[0] == 200, "it is ready", 20)
        with client(trusted(api_server)) as http:
            webhook.process.terminate()
            until(lambda: get(health, "/readyz")[0] == 503, "it is not ready any more")
            assert "patch" in ask(http, webhook.port, review(POD))  # for those who have not heard of it
        assert webhook.process.wait(20) == 0


def test_no_review_is_lost_when_it_leaves(api_server: ApiServer) -> None:
    with running(api_server, "--linger", "1s") as webhook:
        authorities = trusted(api_server)
        results: list[str] = []

        def load() -> None:
            with client(authorities) as http:
                while webhook.process.poll() is None:
                    try:
                        results.append("patched" if "patch" in ask(http, webhook.port, review(POD)) else "not")
                    except httpx2.ConnectError:
                        return  # it has left
                    except httpx2.RemoteProtocolError as error:
                        # An idle connection was closed as the next request came: clients ask again.
                        results.append(f"closed: {error}")

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(results) > 50, "there is load")
        before = len(results)
        assert webhook.end() == 0
        for thread in threads:
            thread.join(20)
        assert len(results) > before
        assert results.count("patched") >= len(results) - len(threads)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--native-sidecars", "always"), 125, "This does not run in a pod"),
        (("--kubeconfig", "/nowhere"), 125, "/nowhere cannot be used"),
        (("--listen", "nonsense"), 2, "nonsense"),
        (("--certificate-lifetime", "0s"), 2, "no time at all"),
    ],
)
def test_wrong_settings_are_sentences(options: tuple[str, ...], code: int, says: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    command = [sys.executable, "-m", "freeze_proxy", "webhook", "--image", "x", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use_is_a_sentence(api_server: ApiServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Webhook(api_server.kubeconfig(), "--listen", f"127.0.0.1:{port}") as webhook:
            assert webhook.process.wait(20) == 125
            webhook._reader.join(10)
            assert f"127.0.0.1:{port} cannot be listened on: Address already in use. Choose another" in webhook.said
            assert "Traceback" not in webhook.said


def test_the_image_must_be_said() -> None:
    done = subprocess.run([sys.executable, "-m", "freeze_proxy", "webhook"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--image" in done.stderr
