"""What routes of things with ids share: ids in paths, lists in pages, answers as JSON. Knows no API's fields."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import NotFound
from serve_app.http.json_text import to_json
from serve_app.http.query import QueryModel

T = TypeVar("T")

MAX_PAGE = 1000

_ID = re.compile(r"[!-~]{1,200}")


class PageQuery(QueryModel):
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="The largest number of items to answer.")
    after: str | None = Field(None, description="The `next` of the page before.")


def path_id(request: Request, name: str) -> str:
    """The id in the path of what is called `name`. Raises NotFound where no id has this form."""
    found: str = request.path_params[name]
    if not _ID.fullmatch(found):
        raise NotFound(f"there is no {name} with such an id")
    return found


def page_object(
    items: Sequence[T], limit: int, render: Callable[[T], dict[str, Any]], cursor: Callable[[T], object]
) -> dict[str, Any]:
    """A page of at most `limit` items. One more is asked for, which tells whether another page follows."""
    shown = items[:limit]
    has_more = len(items) > limit
    return {
        "object": "list",
        "data": [render(item) for item in shown],
        "has_more": has_more,
        "next": str(cursor(shown[-1])) if has_more else None,
    }


def json_answer(payload: Mapping[str, Any], *, status: int = 200, location: str | None = None) -> Response:
    headers = {"Location": location} if location is not None else {}
    return Response(to_json(payload), status_code=status, headers=headers, media_type="application/json")
