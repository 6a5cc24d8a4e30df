"""The last catch of every exception: no request ends without an answer in the unified shape."""

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.error_response import error_response
from serve_app.http.request_id import scope_request_id

_CLIENT_CLOSED_REQUEST = 499


class ErrorMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def remember_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, remember_start)
        except ClientDisconnect:
            # Nobody reads it; it ends the exchange in order for servers that insist on an answer, and for their logs.
            response = Response(status_code=_CLIENT_CLOSED_REQUEST)
        except Exception as error:
            if started:
                # The status is sent; cutting the connection is the only way left to tell that the answer is broken.
                raise
            response = error_response(error, scope_request_id(scope))
        else:
            return
        if not started:
            await response(scope, receive, send)
