"""What the routes of the administration share: who asks, bodies, pages, answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import NotFound
from serve_app.http.authentication import identify
from serve_app.http.idempotency import Endpoint, idempotent
from serve_app.http.json_text import to_json
from serve_app.http.query import QueryModel
from serve_app.http.request_body import read_json
from serve_app.http.wire_model import WireModel, parse
from serve_app.services import Services
from serve_app.use_cases.callers import Principal, Scope

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=WireModel)

MAX_PAGE = 1000

_ID = re.compile(r"[!-~]{1,200}")


class PageQuery(QueryModel):
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="The largest number of items to answer.")
    after: str | None = Field(None, description="The `next` of the page before.")


async def administrator(request: Request, services: Services) -> Principal:
    """Raises Unauthenticated, PermissionDenied."""
    return await identify(request, services, scope=Scope.ADMIN)


def once(services: Services) -> Callable[[Endpoint], Endpoint]:
    """For endpoints that create something: obeys the header Idempotency-Key."""

    async def who(request: Request) -> Principal:
        return await administrator(request, services)

    return idempotent(services, who, to_the_end=True)


async def read_body(request: Request, services: Services, model: type[BodyT]) -> BodyT:
    """Raises InvalidRequest."""
    http = services.config.http
    data = await read_json(
        request, max_bytes=http.max_body_bytes, max_depth=http.max_json_depth, require_json_content_type=True
    )
    return parse(model, data)


def path_id(request: Request, name: str) -> str:
    """The id of an account or a key in the path. Raises NotFound where no id has this form."""
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
