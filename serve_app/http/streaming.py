"""Streamed answers: the status waits for the first chunk, later errors are a last event, a gone client ends it.

The status does not wait for ever: a model that sleeps may take minutes to wake, and proxies end connections on which
nothing happens. A stream that has been silent for a while begins, and sends signs of life.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.errors import DeadlineExceeded, GenerationFailed, ServiceError
from serve_app.http.disconnect import end_tasks, wait_for_disconnect
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
    keep_alive: bytes,
    keep_alive_s: float,
) -> Response:
    """An answer that sends each item of `chunks` as one HTTP chunk, as soon as it is there.

    It begins with the first one, or after `keep_alive_s` with `keep_alive`, which is sent again whenever nothing else
    was for so long: an item of the dialect that adds nothing to the answer.
    Whatever ends the exchange, `chunks` is closed. It is advanced from more than one task, one after the other.
    Raises what `chunks` raises before the answer has begun, ClientDisconnect and DeadlineExceeded.
    """
    ends_at = asyncio.get_running_loop().time() + deadline_s
    first = asyncio.create_task(_next(chunks))
    watcher = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({first, watcher}, timeout=min(keep_alive_s, deadline_s), return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            _first_chunk(first)
        elif watcher.done():
            raise ClientDisconnect()
        elif deadline_s <= keep_alive_s:
            raise DeadlineExceeded(f"the answer did not come within {deadline_s:g} seconds")
    except BaseException:
        await end_tasks(first)
        await chunks.aclose()
        raise
    finally:
        await end_tasks(watcher)
    signs = _SignsOfLife(keep_alive, keep_alive_s, is_silent=not first.done())
    return _ChunkedResponse(first, chunks, media_type, error_framing, request_id_of(request), ends_at, signs)


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(chunks, None)


def _first_chunk(task: "asyncio.Task[bytes | None]") -> bytes:
    """Of a task that has ended. Raises what it raised, or GenerationFailed."""
    if task.cancelled():
        # Cancelled from within, not by the client: to the client that is a failure like others.
        raise GenerationFailed("the work on this request was cancelled by the service")
    chunk = task.result()
    if chunk is None:
        raise GenerationFailed("the model gave no answer")
    return chunk


class _SignsOfLife:
    """Sends `item` whenever nothing was sent for `period_s`. is_silent: nothing was sent for so long already."""

    def __init__(self, item: bytes, period_s: float, *, is_silent: bool) -> None:
        self._item = item
        self._period_s = period_s
        self._sent_at = asyncio.get_running_loop().time() - (period_s if is_silent else 0)

    def note(self) -> None:
        """Something is being sent at this moment."""
        self._sent_at = asyncio.get_running_loop().time()

    async def send(self, send: Send) -> None:
        """Goes on until it is cancelled."""
        while True:
            left_s = self._sent_at + self._period_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                self.note()
                await send({"type": "http.response.body", "body": self._item, "more_body": True})
            else:
                await asyncio.sleep(left_s)


class _ChunkedResponse(Response):
    """status_code: once a refusal was sent as the only event, the status that it would have had by itself."""

    def __init__(
        self,
        first: "asyncio.Task[bytes | None]",
        rest: AsyncGenerator[bytes, None],
        media_type: str,
        error_framing: ErrorFraming,
        request_id: str,
        ends_at: float,
        signs: _SignsOfLife,
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
        self._signs = signs

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_all(send))
        watcher = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            await end_tasks(sender, watcher, self._first)
            # Not left to the task: one cancelled before its first step runs no `finally`.
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        living = asyncio.create_task(self._signs.send(send))
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    self._signs.note()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await end_tasks(living)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        """All chunks; where they fail or come too late, the error as the last one."""
        has_begun = False
        try:
            async with asyncio.timeout_at(self._ends_at):
                await asyncio.wait({self._first})
            chunk: bytes | None = _first_chunk(self._first)
            while chunk is not None:
                yield chunk
                has_begun = True
                async with asyncio.timeout_at(self._ends_at):
                    chunk = await anext(self._rest, None)
        except TimeoutError:
            yield self._failed(DeadlineExceeded("the answer took longer than the service allows"), has_begun=has_begun)
        except Exception as error:
            yield self._failed(error, has_begun=has_begun)

    def _failed(self, error: Exception, *, has_begun: bool) -> bytes:
        if not has_begun:
            self.status_code = error.status if isinstance(error, ServiceError) else ServiceError.status
        return self._error_framing(error, self._request_id)
