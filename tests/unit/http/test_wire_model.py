"""Validation of bodies: strictness, names of the fields at fault, and plain words."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from deployments.errors import InvalidParameter, InvalidRequest
from serve_app.http.wire_model import OpenWireModel, WireModel, parse


class Inner(WireModel):
    text: str = Field(min_length=1)


class Body(WireModel):
    count: int = Field(1, ge=1, le=10)
    ratio: float = Field(0.5, gt=0, lt=1)
    flag: bool = False
    stop: str | list[str] | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    inner: Annotated[str, Field(min_length=2)] | Inner | None = None
    kind: Literal["a", "b"] = "a"
    weights: dict[str, float] = Field(default_factory=dict)
    items: list[int] = Field(default_factory=list, max_length=2)


class Needy(WireModel):
    name: str


class Pair(OpenWireModel):
    low: int = 0
    high: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> "Pair":
        if self.low > self.high:
            raise ValueError("has low above high")
        return self


@pytest.mark.parametrize(
    ("data", "param", "message"),
    [
        ({"count": True}, "count", "count must be an integer"),
        ({"count": 1.0}, "count", "count must be an integer"),
        ({"count": "1"}, "count", "count must be an integer"),
        ({"count": 0}, "count", "count must be at least 1"),
        ({"count": 11}, "count", "count must be at most 10"),
        ({"ratio": True}, "ratio", "ratio must be a number"),
        ({"ratio": "0.5"}, "ratio", "ratio must be a number"),
        ({"ratio": 0}, "ratio", "ratio must be greater than 0.0"),
        ({"ratio": 1}, "ratio", "ratio must be less than 1.0"),
        ({"ratio": float("nan")}, "ratio", "ratio must be a finite number"),
        ({"ratio": float("inf")}, "ratio", "ratio must be a finite number"),
        ({"flag": 1}, "flag", "flag must be true or false"),
        ({"stop": 5}, "stop", "stop must be a string or an array"),
        ({"stop": ["a", 5]}, "stop[1]", "stop[1] must be a string"),
        ({"prompt": [1, "a"]}, "prompt[0]", None),
        ({"prompt": [[1], [2, "a"]]}, "prompt[1][1]", "prompt[1][1] must be an integer"),
        ({"inner": {"text": ""}}, "inner.text", "inner.text must have at least 1 character(s)"),
        ({"inner": {}}, "inner.text", "inner.text is required"),
        ({"inner": {"text": "x", "more": 1}}, "inner.more", "inner.more is not a field of this request"),
        ({"inner": "x"}, "inner", "inner must have at least 2 character(s)"),
        ({"inner": 5}, "inner", "inner must be a string or an object"),
        ({"kind": "c"}, "kind", "kind must be 'a' or 'b'"),
        ({"weights": {"x": "1"}}, "weights.x", "weights.x must be a number"),
        ({"weights": []}, "weights", "weights must be an object"),
        ({"items": [1, 2, 3]}, "items", "items must have at most 2 items"),
        ({"unknown": 1}, "unknown", "unknown is not a field of this request"),
    ],
)
def test_field_at_fault_is_named_in_plain_words(data: dict[str, Any], param: str, message: str | None) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(Body, data)
    assert caught.value.param == param
    if message is not None:
        assert caught.value.message == message


def test_missing_field() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(Needy, {})
    assert caught.value.message == "name is required"
    assert caught.value.param == "name"


def test_integers_are_numbers() -> None:
    assert parse(Body, {"weights": {"x": 1}}).weights == {"x": 1.0}


def test_open_model_lets_unknown_fields_through_unread() -> None:
    assert parse(Pair, {"low": 1, "high": 2, "other": [1]}) == Pair(low=1, high=2)


def test_value_error_of_a_model_continues_the_sentence() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(Pair, {"low": 2, "high": 1})
    assert caught.value.message == "the body has low above high"
    assert caught.value.param is None


def test_models_are_frozen() -> None:
    body = parse(Body, {})
    with pytest.raises(ValueError, match="frozen"):
        body.count = 2  # type: ignore[misc]
