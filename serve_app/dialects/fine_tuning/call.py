"""What the routes of this dialect share: who asks, and lists in pages."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from serve_app.http.authentication import authenticate
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect, Scope

T = TypeVar("T")


async def fine_tuner(request: Request, services: Services) -> Caller:
    """Raises Unauthenticated, PermissionDenied."""
    return await authenticate(request, services, Dialect.TOTALGPT, scope=Scope.FINE_TUNE)


def page_object(items: Sequence[T], limit: int, render: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page of at most `limit` items. One more is asked for, which tells whether another page follows."""
    data = [render(item) for item in items[:limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }
