"""How the reference pages show the routes of this dialect: schemas of requests, examples of answers."""

from typing import Any

from pydantic import BaseModel

from serve_app.dialects.totalgpt import sse
from serve_app.http.openapi import billed_request, request_body, text_answer


def documented(
    summary: str,
    *,
    body: type[BaseModel] | None = None,
    requests: dict[str, dict[str, Any]] | None = None,
    answer: dict[str, Any],
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Arguments of `APIRouter.add_api_route`. `answer` and `events` are examples; what has events is billed."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": answer}}
    if events is not None:
        stream = b"".join([*map(sse.event, events), sse.DONE]).decode()
        content |= text_answer(sse.MEDIA_TYPE, "", stream)["content"]
    arguments: dict[str, Any] = {
        "summary": summary,
        "responses": {200: {"description": "The answer.", "content": content}},
    }
    if body is not None:
        described = billed_request if events is not None else request_body
        arguments["openapi_extra"] = described(body, requests or {})
    return arguments
