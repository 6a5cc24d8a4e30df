"""Tells every counted caller how its windows stand, and counts the requests that were refused. Knows no dialect."""

from typing import Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ServiceError
from serve_app.http.rate_limit_headers import rate_limit_headers
from serve_app.use_cases.callers import Caller

_COSTS_NOTHING = (401, 403, 429)


class RequestCounter(Protocol):
    async def count(self, caller: Caller) -> None:
        """Counts a request in its caller's windows unless it was counted already, and sets `caller.limits`.

        Raises RateLimited.
        """


class RateLimitHeadersMiddleware:
    """Adds the rate limit headers to every answer to a caller who was counted, refusals and streams included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                caller = _caller_of(scope)
                if caller is not None and caller.limits is not None:
                    headers = MutableHeaders(scope=message)
                    for name, value in rate_limit_headers(caller.limits, caller.dialect):
                        headers[name] = value
            await send(message)

        await self._app(scope, receive, send_with_limits)


class RefusalCountMiddleware:
    """Counts a POST that was refused as the client's fault: the one place that does, whichever part refused it.

    Neither a missing key or permission nor a full window is counted: 401, 403, 429. Where the windows have no room
    for the refused request either, the answer is 429 instead.
    """

    def __init__(self, app: ASGIApp, counter: RequestCounter) -> None:
        self._app = app
        self._counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ServiceError as error:
            caller = _caller_of(scope)
            if caller is not None and scope["method"] == "POST" and is_counted(error):
                await self._counter.count(caller)
            raise


def is_counted(error: ServiceError) -> bool:
    return 400 <= error.status < 500 and error.status not in _COSTS_NOTHING


def _caller_of(scope: Scope) -> Caller | None:
    """Whom `authenticate` found, if it was asked."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    return caller
