"""What the routes of the administration share: who asks, and bodies."""

from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from serve_app.http.authentication import identify
from serve_app.http.idempotency import Endpoint, idempotent
from serve_app.http.request_body import read_json
from serve_app.http.wire_model import WireModel, parse
from serve_app.services import Services
from serve_app.use_cases.callers import Principal, Scope

BodyT = TypeVar("BodyT", bound=WireModel)


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
