"""Answers a request with a completion of either kind, whole or as a stream of server-sent events."""

from collections.abc import AsyncGenerator
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from serve_app.config import HttpConfig
from serve_app.dialects.totalgpt import sse
from serve_app.http.disconnect import run_while_connected
from serve_app.http.error_response import error_as_sse
from serve_app.http.streaming import stream_response


class Completion(Protocol):
    """One request to be answered. Closing the iterator or cancelling `answer` ends the work."""

    async def answer(self) -> bytes:
        """The whole answer as JSON."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """The answer in events, the end mark included."""


async def respond(request: Request, completion: Completion, http: HttpConfig, *, stream: bool) -> Response:
    """Raises what the completion raises before there is anything to send."""
    if not stream:
        answer = await run_while_connected(request, completion.answer(), deadline_s=http.request_deadline_s)
        return Response(answer, media_type="application/json")
    return await stream_response(
        request,
        completion.events(),
        media_type=sse.MEDIA_TYPE,
        error_framing=error_as_sse,
        deadline_s=http.request_deadline_s,
        keep_alive=sse.KEEP_ALIVE,
        keep_alive_s=http.stream_keep_alive_s,
    )
