"""What path and body of a control request ask for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from freeze_proxy.control.messages import FREEZE, HOOK, THAW
from freeze_proxy.daemon.service import order_in


@pytest.mark.parametrize(
    ("path", "body", "thaw", "names", "mode"),
    [
        (FREEZE, "", False, None, "freeze"),
        (THAW, "", True, None, "freeze"),
        (FREEZE, " \r\n", False, None, "freeze"),
        (FREEZE, "{}", False, None, "freeze"),
        (FREEZE, '{"containers": ["a", "b"], "mode": "throttle"}', False, ["a", "b"], "throttle"),
        (FREEZE, '{"mode": "dry-run", "later": 1}', False, None, "dry-run"),
        (FREEZE, '{"containers": null}', False, None, "freeze"),
        (THAW, '{"containers": ["a"]}', True, ["a"], "freeze"),
        (HOOK, '{"action":"pause"}', False, None, "freeze"),
        (HOOK, '{"action":"resume"}', True, None, "freeze"),
    ],
)
def test_understood(path: str, body: str, thaw: bool, names: list[str] | None, mode: str) -> None:
    order = order_in(path, body.encode())
    assert (order.thaw, order.names, order.mode) == (thaw, names, mode)


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (FREEZE, "{", "The body is not JSON"),
        (FREEZE, "\xff", "The body is not JSON"),
        (FREEZE, "[" * 8000, "The body is not JSON"),
        (FREEZE, "[]", "must be a JSON object"),
        (FREEZE, '"freeze"', "must be a JSON object"),
        (FREEZE, '{"containers": "a"}', "must be a list of container names"),
        (FREEZE, '{"containers": []}', "must be a list of container names"),
        (FREEZE, '{"containers": [1]}', "must be a list of container names"),
        (FREEZE, json.dumps({"containers": ["a"] * 65}), "must be a list of container names"),
        (FREEZE, '{"mode": "off"}', "must be one of freeze, throttle, dry-run"),
        (FREEZE, '{"mode": ["freeze"]}', "must be one of"),
        (THAW, '{"mode": 1}', "must be one of"),
        (HOOK, "", "must say what to do"),
        (HOOK, "{}", "must say what to do"),
        (HOOK, '{"action": "freeze"}', "must say what to do"),
        (HOOK, '{"action": ["pause"]}', "must say what to do"),
    ],
)
def test_refused_with_a_sentence(path: str, body: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        order_in(path, body.encode("latin-1"))


_json = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(),
    lambda inner: (
        some.lists(inner) | some.dictionaries(some.sampled_from(["containers", "mode", "action", "x"]), inner)
    ),
)


@given(some.sampled_from([FREEZE, THAW, HOOK]), some.binary() | _json.map(lambda facts: json.dumps(facts).encode()))
def test_nothing_else_is_ever_raised(path: str, body: bytes) -> None:
    try:
        order = order_in(path, body)
    except ValueError:
        pass  # with a sentence; see above
    else:
        assert order.thaw is (path == THAW) or path == HOOK
        assert order.mode in ("freeze", "throttle", "dry-run")
        assert order.names is None or (order.names and all(isinstance(name, str) for name in order.names))
