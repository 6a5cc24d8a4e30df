"""How the reference pages show routes of things with ids. Knows no API's fields."""

from typing import Any

from pydantic import BaseModel

from serve_app.http.openapi import header_parameter, request_body
from serve_app.http.query import QueryModel, query_parameters


def page_of(example: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [example], "has_more": False, "next": None}


def documented(
    summary: str,
    *,
    answer: dict[str, Any] | None = None,
    created: bool = False,
    repeatable: bool = False,
    body: type[BaseModel] | None = None,
    requests: dict[str, dict[str, Any]] | None = None,
    query: type[QueryModel] | None = None,
    content: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `APIRouter.add_api_route`. `answer` is an example; `content` instead of it, by media type.

    repeatable: obeys the header Idempotency-Key; what creates something always does.
    """
    status = 201 if created else 200
    shown = content or {"application/json": {"schema": {"type": "object"}, "example": answer}}
    extra: dict[str, Any] = {}
    parameters = query_parameters(query) if query is not None else []
    if body is not None:
        extra |= request_body(body, requests or {})
    if created or repeatable:
        parameters = [*parameters, header_parameter("Idempotency-Key")]
    if parameters:
        extra["parameters"] = parameters
    return {
        "summary": summary,
        "status_code": status,
        "responses": {status: {"description": "The answer.", "content": shown}},
        "openapi_extra": extra,
    }
