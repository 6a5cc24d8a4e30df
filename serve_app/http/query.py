"""Reads the query parameters of a request into a model, as strictly as bodies are read. Knows no route."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from deployments.errors import InvalidParameter
from serve_app.http.openapi import inline_schema
from serve_app.http.wire_model import parse


class QueryModel(BaseModel):
    """Parameters after the question mark; an unknown one is an error. All values arrive as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


QueryT = TypeVar("QueryT", bound=QueryModel)


def parse_query(model: type[QueryT], request: Request) -> QueryT:
    """Raises InvalidParameter, also for a parameter that stands twice or holds what no text should."""
    return parse_pairs(model, request.query_params.multi_items())


def parse_pairs(model: type[QueryT], pairs: Sequence[tuple[str, str]]) -> QueryT:
    """The same for parameters that were taken out of a request."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise InvalidParameter(f"{name} stands twice", name)
    for name, value in pairs:
        if not value.isprintable():
            raise InvalidParameter(f"{name} must have printable characters only", name)
    return parse(model, dict(pairs))


def query_parameters(model: type[QueryModel]) -> list[dict[str, Any]]:
    """The parameters as an OpenAPI operation lists them."""
    schema = inline_schema(model)
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": described.get("description", ""),
            "schema": _without_null(described),
        }
        for name, described in schema["properties"].items()
    ]


def _without_null(described: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out has no value null."""
    kept = {key: value for key, value in described.items() if key not in ("anyOf", "default", "description", "title")}
    for variant in described.get("anyOf", ()):
        if variant.get("type") != "null":
            kept |= variant
    if described.get("default") is not None:
        kept["default"] = described["default"]
    return kept
