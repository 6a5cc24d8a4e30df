"""Streamed answers: the status waits for the first chunk, later errors are a last event, a gone client ends it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.errors import DeadlineExceeded, GenerationFailed
from serve_app.http.disconnect import end_tasks, run_while_connected, wait_for_disconnect
from serve_app.http.request_id import request_id_of

ErrorFraming = Callable[[Exception, str], bytes]
"""Renders an error and the request id as the end of the stream: `error_as_sse`, `error_as_ndjson`."""


async def stream_response(
    request: Request,
    chunks: AsyncGenerator[bytes, None],
    *,
    media_type: str,
    error_framing: ErrorFraming,
    deadline_s: float,
) -> Response:
    """An answer that sends each item of `chunks` as one HTTP chunk, as soon as it is there.

    Whatever ends the exchange, `chunks` is closed. It is advanced from more than one task, one after the other.
    Raises what `chunks` raises before its first item, ClientDisconnect and DeadlineExceeded.
    """
    ends_at = asyncio.get_running_loop().time() + deadline_s
    try:
        first = await run_while_connected(request, _next(chunks), deadline_s=deadline_s)
    except BaseException:
        await chunks.aclose()
        raise
    if first is None:
        raise GenerationFailed("the model gave no answer")
    return _ChunkedResponse(first, chunks, media_type, error_framing, request_id_of(request), ends_at)


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(chunks, None)


class _ChunkedResponse(Response):
    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        media_type: str,
        error_framing: ErrorFraming,
        request_id: str,
        ends_at: float,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        # Proxies that buffer would hold the text back.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._first = first
        self._rest = rest
        self._error_framing = error_framing
        self._request_id = request_id
        self._ends_at = ends_at

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_all(send))
        watcher = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            await end_tasks(sender, watcher)
            # Not left to the task: one cancelled before its first step runs no `finally`.
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async with aclosing(self._within_deadline()) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _within_deadline(self) -> AsyncGenerator[bytes, None]:
        """The rest of the chunks; where they fail or come too late, the error as the last one."""
        try:
            while True:
                async with asyncio.timeout_at(self._ends_at):
                    chunk = await anext(self._rest, None)
                if chunk is None:
                    return
                yield chunk
        except TimeoutError:
            yield self._error_framing(
                DeadlineExceeded("the answer took longer than the service allows"), self._request_id
            )
        except Exception as error:
            yield self._error_framing(error, self._request_id)
