"""JSON text to a Python object and back, strictly: what is not JSON by RFC 8259 is refused. Knows no HTTP."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.errors import InvalidParameter, InvalidRequest

_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|(?P<open>[\[{])|(?P<close>[\]}])', re.DOTALL)
# Only after the end of a value: `[,]` stays wrong.
_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"|(?<=["\]}\w]),(?=[ \t\r\n]*[\]}])', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(
    r"\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|\\."
)


@dataclass(frozen=True, slots=True)
class _Misfit:
    """Stands for a number that cannot be represented, until its place is known."""

    message: str


def parse_object(data: bytes, *, max_depth: int, allow_trailing_commas: bool = False) -> dict[str, Any]:
    """The JSON object that `data` spells.

    Raises InvalidRequest, with the position where there is one, for: an empty body, a byte order mark, invalid UTF-8,
    text that is not JSON, nesting deeper than `max_depth`, and any value that is not an object. Raises
    InvalidParameter, with the field, for: NaN and Infinity, integers beyond 64 bits, numbers that overflow a float, a
    name twice in one object, and lone surrogates.
    """
    text = _decode(data)
    _check_depth(text, max_depth)
    misfits: list[_Misfit] = []
    try:
        value = _loads(text, misfits)
    except json.JSONDecodeError as error:
        if not allow_trailing_commas:
            raise _not_json(error) from None
        try:
            # A blank in the comma's place keeps the positions of later errors right.
            value = _loads(_TRAILING_COMMA.sub(lambda match: " " if match[0] == "," else match[0], text), misfits)
        except json.JSONDecodeError as second_error:
            raise _not_json(second_error) from None
    if misfits:
        raise _invalid_at(_place_of(value, lambda item: isinstance(item, _Misfit)), misfits[0].message)
    _check_surrogates(text, value)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(value)}")
    return value


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON. NaN and Infinity, which JSON cannot spell, are a ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _decode(data: bytes) -> str:
    if not data.strip():
        raise InvalidRequest("the body is empty; a JSON object is expected")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise InvalidRequest("the body begins with a byte order mark; JSON must be plain UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from None


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        if match["open"]:
            depth += 1
            if depth > max_depth:
                raise InvalidRequest(
                    f"the body is nested deeper than {max_depth} levels at {_position(text, match.start())}"
                )
        elif match["close"]:
            depth -= 1


def _check_surrogates(text: str, value: Any) -> None:
    """Only escapes can spell them: UTF-8 refuses them. In valid JSON every backslash stands in a string."""
    for match in _ESCAPE.finditer(text):
        if match["lone"]:
            raise _invalid_at(
                _place_of(value, lambda item: isinstance(item, str) and _SURROGATE.search(item) is not None),
                f"holds {match['lone']} at {_position(text, match.start())}, half of a surrogate pair and no character",
            )


def _place_of(value: Any, is_at_fault: Callable[[Any], bool], place: str = "") -> str | None:
    """The dotted path to the first item at fault; for a name at fault that of its object, empty for the whole body."""
    if is_at_fault(value):
        return place
    if isinstance(value, dict):
        if any(map(is_at_fault, value)):
            return place
        items = [(f"{place}.{name}" if place else name, item) for name, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    found = (_place_of(item, is_at_fault, item_place) for item_place, item in items)
    return next((item_place for item_place in found if item_place is not None), None)


def _invalid_at(place: str | None, message: str) -> InvalidRequest:
    if not place:
        return InvalidRequest(f"the body {message}")
    return InvalidParameter(f"{place} {message}", place)


def _loads(text: str, misfits: list[_Misfit]) -> Any:
    """Numbers that cannot be represented become misfits, which are also collected."""

    def misfit(message: str) -> _Misfit:
        misfits.append(_Misfit(message))
        return misfits[-1]

    def integer(literal: str) -> int | _Misfit:
        # The length is looked at first: converting thousands of digits costs quadratic time.
        if len(literal) <= 20:
            value = int(literal)
            if -(2**63) <= value < 2**64:
                return value
        return misfit(f"is the integer {_quoted(literal)}, which does not fit in 64 bits")

    def number(literal: str) -> float | _Misfit:
        # JSON has one kind of number: 500.0 and 5e2 are the integer 500, as in JSON Schema.
        value = float(literal)
        if not math.isfinite(value):
            return misfit(f"is the number {_quoted(literal)}, which is too large")
        return int(value) if value.is_integer() and abs(value) < 2**63 else value

    def constant(literal: str) -> _Misfit:
        return misfit(f"is {literal}, which is no JSON number")

    return json.loads(text, object_pairs_hook=_object, parse_int=integer, parse_float=number, parse_constant=constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name in names if names[name] > 1)
        raise _invalid_at(None if _SURROGATE.search(twice) else twice, "stands twice in one object")
    return result


def _not_json(error: json.JSONDecodeError) -> InvalidRequest:
    return InvalidRequest(f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}")


def _position(text: str, index: int) -> str:
    return f"line {text.count(chr(10), 0, index) + 1} column {index - text.rfind(chr(10), 0, index)}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")
