"""Settings as a user writes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy import settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("5s", 5), ("2m", 120), ("1h", 3600), ("250us", 0.00025), ("0", 0), ("0s", 0), ("1.5s", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert settings.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "ms", "-1s", "1 day", "1d", "nan", "nans", "infs", "1e400s", "1mss", "5S", "1e10s", "0x5s", "s5"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write a number and a unit, such as 100ms") as error:
        settings.duration(text)
    assert repr(text) in str(error.value)


@given(st.text())
def test_a_duration_is_a_number_or_a_sentence(text: str) -> None:
    try:
        value = settings.duration(text)
    except ValueError as error:
        assert str(error).endswith(".")  # noqa: PT017 - most texts raise, and some do not
    else:
        assert math.isfinite(value)
        assert value >= 0


def test_no_time_at_all() -> None:
    with pytest.raises(ValueError, match="'0ms' is no time at all"):
        settings.positive_duration("0ms")


def test_breathing() -> None:
    assert settings.breathe("off") is None
    assert settings.breathe("30s/50ms") == (30, 0.05)
    for text in ("30s", "30s/", "/50ms", "30s/0", "30s/50ms/1s", "on", "50ms/30s", "1s/1s"):
        with pytest.raises(ValueError, match=r"\.$"):
            settings.breathe(text)


def test_idle_streams() -> None:
    assert settings.idle_stream("off") is None
    assert settings.idle_stream("60s") == 60
    with pytest.raises(ValueError, match="no time at all"):
        settings.idle_stream("0")


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080), "127.0.0.1:8080"),
        ("[::1]:80", ("::1", 80), "[::1]:80"),
        ("localhost:0", ("localhost", 0), "localhost:0"),
        (":8080", ("0.0.0.0", 8080), "0.0.0.0:8080"),
        ("example.org:65535", ("example.org", 65535), "example.org:65535"),
    ],
)
def test_addresses(text: str, address: tuple[str, int], written: str) -> None:
    assert settings.address(text) == address
    assert settings.written(address) == written


@pytest.mark.parametrize("text", ["", "8080", "host:", "host:http", "host:65536", "::1:80", "host:-1", "host:８０"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address: write host and port"):
        settings.address(text)
