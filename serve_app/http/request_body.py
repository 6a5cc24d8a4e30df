"""Reads the JSON body of a request within its bounds. Knows no dialect's fields."""

from typing import Any

from starlette.requests import Request

from deployments.errors import InvalidRequest, PayloadTooLarge
from serve_app.http.json_text import parse_object


async def read_json(
    request: Request,
    *,
    max_bytes: int,
    max_depth: int,
    require_json_content_type: bool,
    allow_trailing_commas: bool = False,
) -> dict[str, Any]:
    """The body as a dict. Raises PayloadTooLarge and InvalidRequest.

    A missing content type is taken for JSON even where one is required. For what else is refused see
    `json_text.parse_object`.
    """
    if require_json_content_type:
        check_content_type(request)
    data = await read_bounded(request, max_bytes)
    return parse_object(data, max_depth=max_depth, allow_trailing_commas=allow_trailing_commas)


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than `max_bytes`, whatever the headers say. Raises PayloadTooLarge."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > max_bytes:
            raise PayloadTooLarge(f"the body is longer than {max_bytes} bytes")
    return bytes(data)


def check_content_type(request: Request) -> None:
    """Raises InvalidRequest where the body says that it is not JSON."""
    content_type = request.headers.get("content-type")
    if content_type is None:
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise InvalidRequest(f"the content type must be application/json, not {media_type[:80]!r}")
