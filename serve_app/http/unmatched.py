"""What a router finds no route for, and what a framework raises by itself, as errors of the service."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from deployments.errors import InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from serve_app.http.error_response import error_response
from serve_app.http.request_id import request_id_of


def render_http_exceptions(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A handler of Starlette's HTTPException. `routes` are asked which methods a path has."""

    async def handle(request: Request, exception: Exception) -> Response:
        return error_response(_as_service_error(request, exception, routes), request_id_of(request))

    return handle


def _as_service_error(request: Request, exception: Exception, routes: Sequence[BaseRoute]) -> Exception:
    if not isinstance(exception, HTTPException):
        return exception
    path = request.url.path[:200]
    if exception.status_code == 404:
        return NotFound(f"there is no {path}; GET /docs describes what there is")
    if exception.status_code == 405:
        allow = ", ".join(sorted(_methods_of(request, routes)))
        return MethodNotAllowed(f"{path} does not take {request.method}, only {allow}", allow)
    if exception.status_code < 500:
        return InvalidRequest(str(exception.detail))
    return ServiceError(str(exception.detail))


def _methods_of(request: Request, routes: Sequence[BaseRoute]) -> set[str]:
    return {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
