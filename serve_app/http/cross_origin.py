"""Headers of every answer: any web page may call the service with a key of its own, and no answer is sniffed."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http import idempotency, rate_limit_headers

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = ", ".join(
    (
        "X-Request-Id",
        "Retry-After",
        "Location",
        "Preference-Applied",
        idempotency.REPLAYED_HEADER,
        *rate_limit_headers.NAMES,
    )
)


class CrossOriginMiddleware:
    """Answers every OPTIONS request, without a key, and lets any origin read every answer.

    Credentials that a browser adds by itself are never allowed; the key in the Authorization header is the only one,
    so a foreign page can do nothing that its author could not do anyway.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = "*"
                headers["Access-Control-Expose-Headers"] = _EXPOSED
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        if scope["method"] == "OPTIONS":
            await _preflight(Headers(scope=scope))(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def _preflight(headers: Headers) -> Response:
    # SDKs in browsers send headers of their own (x-stainless-...), so those asked for are allowed.
    allowed = headers.get("access-control-request-headers") or "Authorization, Content-Type"
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "86400",
            "Vary": "Access-Control-Request-Headers",
        },
    )
