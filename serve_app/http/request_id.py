"""The id of a request: taken over from the client or made here, answered back, and put into logs."""

import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,100}")


def request_id_of(request: Request) -> str:
    """The id that `RequestIdMiddleware` gave to the request."""
    return scope_request_id(request.scope)


def unique_request_id(request: Request) -> str:
    """An id for the work done for the request: different even for two requests to which a client gave one id."""
    return f"{request_id_of(request)}.{secrets.token_hex(16)}"


def scope_request_id(scope: Scope) -> str:
    request_id: str = scope.setdefault("state", {}).get("request_id", "unknown")
    return request_id


def received_at(request: Request) -> float:
    """When the request came, in seconds of the monotonic clock."""
    at: float = request.scope.setdefault("state", {}).setdefault("received_at", time.monotonic())
    return at


class RequestIdMiddleware:
    """Takes over `x-request-id` when it is short and of plain characters, else makes one; answers it back. Notes when
    the request came."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {}).update(request_id=request_id, received_at=time.monotonic())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
