"""Strict JSON: whatever json.dumps spells comes back; nothing else that may come in does more than raise."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import InvalidRequest
from serve_app.http.json_text import parse_object, to_json

TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)


@settings(max_examples=50)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
def test_what_json_spells_comes_back(value: dict[str, Any], ensure_ascii: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()
    assert parse_object(data, max_depth=1000) == value
    assert parse_object(data, max_depth=1000, allow_trailing_commas=True) == value
    assert parse_object(to_json(value), max_depth=1000) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\ud80etrufalsn0-1.\n ').map(str.encode))
def test_any_bytes_are_an_object_or_an_invalid_request(data: bytes) -> None:
    for allow_trailing_commas in (False, True):
        try:
            value = parse_object(data, max_depth=10, allow_trailing_commas=allow_trailing_commas)
        except InvalidRequest as error:
            assert error.message
        else:
            assert isinstance(value, dict)
            to_json(value)


@pytest.mark.parametrize("depth", [1, 2, 32])
def test_depth_is_bounded_exactly(depth: int) -> None:
    inner = "[" * (depth - 1) + "]" * (depth - 1) if depth > 1 else "1"
    data = f'{{"a": {inner}}}'.encode()
    parse_object(data, max_depth=depth)
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parse_object(data, max_depth=depth - 1)


def test_brackets_in_strings_are_no_depth() -> None:
    value = {"a": '[[["\\[{', "b": "\\"}
    assert parse_object(json.dumps(value).encode(), max_depth=1) == value


def test_only_commas_before_a_closing_bracket_are_forgiven() -> None:
    data = b'{"a": [1, 2,\n], "b": ",}", "c": {"d": ",]",\t},}'
    expected = {"a": [1, 2], "b": ",}", "c": {"d": ",]"}}
    assert parse_object(data, max_depth=5, allow_trailing_commas=True) == expected
    for bad in (b'{"a": [,]}', b'{"a": 1,,}', b'{,"a": 1}'):
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            parse_object(bad, max_depth=5, allow_trailing_commas=True)


@pytest.mark.parametrize(
    ("data", "position"),
    [
        (b'{"a": 1\n "b": 2}', "line 2 column 2"),
        (b'{"a": "\\ud800"}', "line 1 column 8"),
        (b'{\n"a":\n  "xy\\udfff"}', "line 3 column 6"),
        (b'{"a":\n [[[1]]]}', "line 2 column 3"),
    ],
)
def test_position_is_named(data: bytes, position: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(data, max_depth=2)
    assert caught.value.message.endswith(position) or f"at {position}," in caught.value.message


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"a": {"b": [1, NaN]}}', "a.b[1]"),
        (b'{"a": Infinity, "b": NaN}', "a"),
        (b'{"a": [[], [-1e999]]}', "a[1][0]"),
        (b'{"a": 1, "b": 99999999999999999999}', "b"),
        (b'{"a": {"b": "x\\ud800"}}', "a.b"),
        (b'{"a": {"\\ud800": 1}}', "a"),
        (b'{"\\ud800": 1}', None),
        (b'{"\\ud800": 1, "\\ud800": 2}', None),
        (b'{"a": 1, "a": 2}', "a"),
        (b"NaN", None),
    ],
)
def test_field_at_fault_is_named(data: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(data, max_depth=5)
    assert caught.value.param == param
    assert caught.value.message.startswith(param or "the body")
    caught.value.message.encode()


def test_integers_may_be_written_as_floats() -> None:
    value = parse_object(b'{"a": 500.0, "b": 5e2, "c": 0.5, "d": 1e300}', max_depth=1)
    assert value == {"a": 500, "b": 500, "c": 0.5, "d": 1e300}
    assert [type(item) for item in value.values()] == [int, int, float, float]


def test_integers_have_64_bits() -> None:
    assert parse_object(b'{"a": 18446744073709551615, "b": -9223372036854775808}', max_depth=2) == {
        "a": 2**64 - 1,
        "b": -(2**63),
    }
    for literal in (b"18446744073709551616", b"-9223372036854775809", b"1" * 5000):
        with pytest.raises(InvalidRequest, match="64 bits"):
            parse_object(b'{"a": ' + literal + b"}", max_depth=2)


def test_to_json_refuses_what_json_cannot_spell() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": float("nan")})
