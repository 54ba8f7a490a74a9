"""Probes, purely: what is read from Kubernetes' JSON, the bytes of a request, and the verdict on what comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.sidecar.probes import Answer, Probe, follow, named_probes, probes, request


def _http(path: str = "/a/b?q=1", port: int = 8080) -> Probe:
    probe = Probe("http", port)
    probe.path = path
    return probe


@pytest.mark.parametrize(
    ("answer", "said", "location"),
    [
        (b"HTTP/1.1 200 OK\r\n", "", ""),
        (b"HTTP/1.0 399 \r\n", "", ""),
        (b"HTTP/1.1 503 Sorry\r\n", "it answers 503", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + b"HTTP/1.1 204 \r\n", "", ""),
        (b"HTTP/1.1 302 Found\r\nLOCATION:  /there \r\n\r\n", "", "/there"),
        (b"HTTP/1.1 304 \r\nLocation: /there\r\n\r\n", "", ""),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not answer in HTTP", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "it says too much before it answers", ""),
    ],
)
@given(cut=st.integers(1, 40))
def test_verdict_whatever_the_pieces(answer: bytes, said: str, location: str, cut: int) -> None:
    verdict = None
    reader = Answer()
    for begin in range(0, len(answer), cut):
        verdict = reader.feed(answer[begin : begin + cut])
        if verdict is not None:
            break
    assert (verdict, reader.location) == (said, location)


@pytest.mark.parametrize(
    ("location", "port", "path"),
    [
        ("/c", 8080, "/c"),
        ("c", 8080, "/a/c"),
        ("../c", 8080, "/c"),
        ("?q=2", 8080, "/a/b?q=2"),
        ("//10.0.0.1:81/c", 81, "/c"),
        ("http://10.0.0.1/c#there", 80, "/c"),
        ("https://10.0.0.1", 443, "/"),
    ],
)
def test_redirect_to_the_same_host(location: str, port: int, path: str) -> None:
    further = follow(_http(), "10.0.0.1", location)
    assert further is not None
    assert (further.port, further.path) == (port, path)


def test_redirect_to_another_host_leads_nowhere() -> None:
    assert follow(_http(), "10.0.0.1", "http://example.com/") is None


def test_redirect_with_a_line_end_is_no_url() -> None:
    with pytest.raises(ValueError, match="no URL"):
        follow(_http(), "10.0.0.1", "/a\rX: y")


@pytest.mark.parametrize("name", ["grpc", "exec", "httpGet", "tcpSocket"])
def test_container_named_like_a_kind(name: str) -> None:
    found = named_probes({name: {"tcpSocket": {"port": 81}}}, 80)
    assert [(key, [probe.port for probe in some]) for key, some in found.items()] == [(name, [81])]


def test_bare_probe() -> None:
    assert list(named_probes({"tcpSocket": {"port": 81}}, 80)) == [""]


def test_repeated_headers_are_all_sent() -> None:
    fields = [{"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"}, {"name": "Host", "value": "me"}]
    (probe,) = probes({"httpGet": {"port": 81, "httpHeaders": fields}}, 80)
    lines = request(probe, "127.0.0.1").decode().split("\r\n")
    assert [line for line in lines if line.startswith(("X-A", "Host"))] == ["Host: me", "X-A: 1", "X-A: 2"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"httpGet": {"port": "http"}}, "is a name"),
        ({"tcpSocket": {"port": "9" * 5000}}, "from 1 to 65535"),
        ({"tcpSocket": {"port": 10**5000}}, "from 1 to 65535"),
        ({"tcpSocket": {"port": 80, "host": "a\r\nX: y"}}, "should be a name or an address"),
        ({"httpGet": {"port": 80, "httpHeaders": [{"name": "A", "value": "b\r\nC: d"}]}}, "no header field"),
    ],
)
def test_what_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        probes(value, 80)
    assert len(str(raised.value)) < 600
