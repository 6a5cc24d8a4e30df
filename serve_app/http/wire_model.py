"""Base of the pydantic models of request bodies, and their errors in plain words. Knows no dialect's fields."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from deployments.errors import InvalidParameter, InvalidRequest


class WireModel(BaseModel):
    """A request body in which an unknown field is an error.

    Strict: a boolean is no integer, a string no number; an integer is fine as a float. Declare arrays as `list[...]`:
    strict validation takes no list for a tuple.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


class OpenWireModel(WireModel):
    """A request body in which unknown fields are let through unread, for clients that always send some."""

    model_config = ConfigDict(extra="ignore")


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(model: type[ModelT], data: dict[str, Any]) -> ModelT:
    """`data` as `model`. Raises InvalidParameter for the first field at fault, named as in `prompt.text`, `stop[1]`;
    InvalidRequest where the fields do not go together."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _invalid_request(error.errors(include_url=False), data) from None


def _invalid_request(errors: Sequence[ErrorDetails], data: dict[str, Any]) -> InvalidRequest:
    """What is wrong with the first field at fault.

    Where the field may be one of several things, there are errors of each. Those furthest inside the value belong to
    what the client meant; several at one place are joined.
    """
    field = errors[0]["loc"][:1]
    places = [(error, _place(error, data)) for error in errors if error["loc"][:1] == field]
    depth = max(_depth(place) for _, place in places)
    param = next(place for _, place in places if _depth(place) == depth)
    requirements = dict.fromkeys(_requirement(error) for error, place in places if place == param)
    if not param:
        return InvalidRequest(f"the body {_join(list(requirements))}")
    return InvalidParameter(f"{param} {_join(list(requirements))}", param)


def _depth(place: str) -> int:
    return place.count(".") + place.count("[")


def _place(error: ErrorDetails, data: dict[str, Any]) -> str:
    """The dotted path to the field. Pydantic also puts names of union members into `loc`; they are no part of it."""
    place = ""
    value: Any = data
    for position, step in enumerate(error["loc"]):
        is_last = position == len(error["loc"]) - 1
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            place, value = f"{place}[{step}]", value[step]
        elif isinstance(value, dict) and (step in value or (is_last and error["type"] == "missing")):
            place, value = (f"{place}.{step}" if place else str(step)), value.get(step)
    return place


def _join(requirements: list[str]) -> str:
    """`must be a string`, `must be an array` -> `must be a string or an array`; other sentences do not join."""
    if not all(requirement.startswith("must be ") for requirement in requirements):
        return requirements[0]
    return "must be " + " or ".join(requirement.removeprefix("must be ") for requirement in requirements)


_REQUIREMENTS = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "value_error": "{error}",
}


def _requirement(error: ErrorDetails) -> str:
    """What the field must be. A ValueError of a model's own validator continues the sentence `<field> ...`."""
    requirement = _REQUIREMENTS.get(error["type"])
    if requirement is None:
        return f"is invalid: {error['msg']}"
    return requirement.format(**error.get("ctx", {}))
