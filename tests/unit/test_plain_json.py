"""``plain_json.py`` against the ``json`` module."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.plain_json import DEEPEST, parse

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_it_reads_what_json_writes(value: object, ascii_: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_, indent=indent)
    if text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") == text and "\\ud" not in text:
        assert parse(text) == json.loads(text)
    else:
        parse(text)


@given(st.text(alphabet='{}[]",:\\u0123456789aeE+-.truefalsn \n\x00', max_size=30))
def test_it_refuses_what_json_refuses(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match="It is not JSON"):
            parse(text)
    else:
        assert repr(parse(text)) == repr(wanted) or "\\ud" in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "at character 1 it ends, where a value should be"),
        ('{"a" 1}', "at character 6 there is '1}', where a colon should be"),
        ("[1,]", "at character 4 there is ']', where a value should be"),
        ('{"a": 1} x', "at character 10 there is 'x', where the end should be"),
        ('"ab', "at character 4 it ends, where the end of a string should be"),
        ("NaN", "at character 1 there is 'NaN', where a value should be"),
        ("01", "at character 1 there is '01', where a value should be"),
        ("1" * 500, "where a number of fewer digits should be"),
        ("[" * (DEEPEST + 1), "more than 50 arrays and objects"),
    ],
)
def test_it_says_where(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="It is not") as raised:
        parse(text)
    assert sentence in str(raised.value)


def test_two_escapes_that_are_one_character() -> None:
    assert parse('"\\ud83d\\ude00"') == "😀"
    assert parse('"\\ud83d"') == "�"
