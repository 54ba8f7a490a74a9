"""``sidecar/config.py``: what a sidecar is told, and what it says when that cannot be."""

import json

import pytest

from freeze_proxy.sidecar.config import PREFIX, VARIABLES, Config, Wrong

LEAST = {"TARGET": "127.0.0.1:8080", "DAEMON": "10.0.0.1:9696"}


def config(**variables: str) -> Config:
    return Config({PREFIX + name: value for name, value in (LEAST | variables).items()})


def test_what_it_is_by_default() -> None:
    made = config()
    assert made.target == ("127.0.0.1", 8080)
    assert made.daemon == ("10.0.0.1", 9696)
    assert made.listen == ("127.0.0.1", 9999)
    assert made.admin == ("::", 9998)
    assert made.containers is None
    assert (made.settings.grace, made.settings.mode, made.settings.thaw_timeout) == (0.1, "freeze", 5.0)
    assert (made.settings.breathe, made.settings.idle_stream) == (None, None)
    assert [(probe.kind, probe.port) for probe in made.readiness] == [("tcp", 8080)]
    assert made.liveness == {}
    assert (made.await_exchange, made.nonce, made.drain_probe) == (False, "", None)
    assert (made.drain_quiet, made.termination_grace) == (2.0, 30.0)


def test_all_that_can_be_said() -> None:
    http = {"httpGet": {"path": "/ready", "port": 8080}, "timeoutSeconds": 3}
    made = config(
        CONTAINERS="user-container, helper",
        MODE="throttle",
        GRACE="2s",
        BREATHE="30s/50ms",
        IDLE_STREAM="1m",
        ADMIN="127.0.0.1:1",
        READINESS_PROBE=json.dumps([http, {"tcpSocket": {"port": 9}}]),
        LIVENESS_PROBES=json.dumps({"user-container": http}),
        AWAIT_REQUEST="true",
        NONCE="a-b_1",
        DRAIN_URL="http://127.0.0.1:8022/wait-for-drain",
        TERMINATION_GRACE="300s",
    )
    assert made.containers == ["user-container", "helper"]
    assert made.settings.mode == "throttle"
    assert made.settings.breathe == (30.0, 0.05)
    assert made.settings.idle_stream == 60.0
    assert made.admin == ("127.0.0.1", 1)
    assert [probe.kind for probe in made.readiness] == ["http", "tcp"]
    assert [probe.timeout for probe in made.liveness["user-container"]] == [3.0]
    assert made.await_exchange
    assert made.termination_grace == 300.0
    assert repr(made.drain_probe) == "GET http://127.0.0.1:8022/wait-for-drain"


def test_a_variable_that_is_set_to_nothing_is_not_set() -> None:
    assert config(GRACE="", CONTAINERS="  ").settings.grace == 0.1


def test_what_the_kubelet_says_about_services_is_not_for_it() -> None:
    """Pods have such variables of every Service in their namespace, one that is called freeze-proxy-test among them."""
    links = ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR")
    assert (
        config(**{f"TEST_{link}": "10.0.0.1" for link in links}, **dict.fromkeys(links, "10.0.0.1")).containers is None
    )
    assert not any(link in PREFIX + name for name, _, _ in VARIABLES for link in ("_SERVICE_", "_PORT"))


def test_without_freezing_no_daemon_is_needed() -> None:
    assert config(MODE="off", DAEMON="").daemon is None


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"TARGET": ""}, "FREEZE_PROXY_TARGET: it is not set"),
        ({"TARGET": "8080"}, "FREEZE_PROXY_TARGET: '8080' is not an address"),
        ({"DAEMON": ""}, "FREEZE_PROXY_DAEMON: it is not set"),
        ({"DAEMON": "$(HOST_IP)"}, "FREEZE_PROXY_DAEMON: '$(HOST_IP)' is not an address"),
        ({"GRACE": "soon"}, "FREEZE_PROXY_GRACE: 'soon' is not a duration"),
        ({"THAW_TIMEOUT": "0"}, "FREEZE_PROXY_THAW_TIMEOUT: '0' is no time at all"),
        ({"MODE": "pause"}, "FREEZE_PROXY_MODE: 'pause' is none of freeze, throttle, dry-run, off"),
        ({"READINESS_PROBE": "{"}, "FREEZE_PROXY_READINESS_PROBE: It is not JSON"),
        ({"LIVENESS_PROBES": "{"}, "FREEZE_PROXY_LIVENESS_PROBES: It is not JSON"),
        ({"AWAIT_REQUEST": "yes"}, "FREEZE_PROXY_AWAIT_REQUEST: 'yes' is none of true, false"),
        ({"NONCE": "a/b"}, "FREEZE_PROXY_NONCE: it may hold"),
        ({"DRAIN_URL": "127.0.0.1:8022"}, "FREEZE_PROXY_DRAIN_URL: '127.0.0.1:8022' is not a URL of this pod"),
        ({"GRACES": "1s"}, "FREEZE_PROXY_GRACES is no setting"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(Wrong) as raised:
        config(**variables)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Wrong) as raised:
        config(GRACE="soon", MODE="pause", TARGET="")
    assert len(str(raised.value).splitlines()) == 3
    assert {PREFIX + name for name, _, _ in VARIABLES} >= {line.split(":")[0] for line in str(raised.value).split("\n")}
