"""How the reference pages show these routes, and the examples that they show."""

from typing import Any

from pydantic import BaseModel

from serve_app.http.openapi import header_parameter, request_body
from serve_app.http.query import QueryModel, query_parameters

ACCOUNT: dict[str, Any] = {
    "object": "account",
    "id": "acme",
    "name": "Acme Ltd.",
    "credit": 25000,
    "reserved": 0,
    "created_at": "2026-01-31T12:00:00Z",
    "closed_at": None,
}
LIMITS: dict[str, Any] = {
    "aitextgen": {
        "windows": [{"name": "minute", "quota": 20, "period_s": 60, "counts": "requests"}],
        "max_concurrent": 4,
    }
}
KEY: dict[str, Any] = {
    "object": "key",
    "id": "0NPvBYYJqMZjhFkd9",
    "account": "acme",
    "name": "production",
    "scopes": ["inference"],
    "models": None,
    "limits": LIMITS,
    "budget": 10000.5,
    "spent": 0,
    "reserved": 0,
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "old_secret_valid_until": None,
}
NEW_KEY: dict[str, Any] = {**KEY, "key": "tt_0NPvBYYJqMZjhFkd9_..."}


def page_of(example: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [example], "has_more": False, "next": None}


def documented(
    summary: str,
    *,
    answer: dict[str, Any] | None = None,
    created: bool = False,
    body: type[BaseModel] | None = None,
    requests: dict[str, dict[str, Any]] | None = None,
    query: type[QueryModel] | None = None,
    content: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `APIRouter.add_api_route`. `answer` is an example; `content` instead of it, by media type."""
    status = 201 if created else 200
    shown = content or {"application/json": {"schema": {"type": "object"}, "example": answer}}
    extra: dict[str, Any] = {}
    parameters = query_parameters(query) if query is not None else []
    if body is not None:
        extra |= request_body(body, requests or {})
    if created:
        parameters = [*parameters, header_parameter("Idempotency-Key")]
    if parameters:
        extra["parameters"] = parameters
    return {
        "summary": summary,
        "status_code": status,
        "responses": {status: {"description": "The answer.", "content": shown}},
        "openapi_extra": extra,
    }
