"""Idempotency-Key: a POST that is sent again gives the answer that it had. Knows no dialect and no storage.

Only answers are kept, not refusals: an error that is raised before an answer has begun took no effect, costs nothing,
and the next attempt may succeed. A stream that has begun is kept to its end, an error event included. Where the client
goes away before the end, the work ends, and the same request runs anew when it comes again.
"""

import asyncio
import functools
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.errors import InvalidParameter
from serve_app.http.request_body import read_bounded
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Principal
from serve_app.use_cases.idempotency import KeptAnswer

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

_MAX_KEY_LENGTH = 255
# After the line breaks that end a line of JSON or an event: each goes out as a chunk of its own, as it did first.
_CHUNK_END = re.compile(rb"(?<=\n)(?=[^\n])")

_logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Identify = Callable[[Request], Awaitable[Principal | Caller]]


def idempotent(services: Services, identify: Identify) -> Callable[[Endpoint], Endpoint]:
    """For endpoints of POST: obeys the header Idempotency-Key.

    `identify` tells whose key it is, as the endpoint itself will: whoever may not ask learns nothing of earlier
    answers. A replayed answer to a caller of a dialect counts as a request, and costs nothing.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def once(request: Request) -> Response:
            if HEADER not in request.headers:
                return await endpoint(request)
            who = await identify(request)
            key = _key_of(request)
            body = await read_bounded(request, services.config.http.max_body_bytes)
            run = _Run(services, who.account, key)
            kept = await services.idempotency.begin(who.account, key, fingerprint(request, body))
            if kept is None:
                return await run.answer(endpoint, Request(request.scope, _receive_again(body, request.receive)))
            if isinstance(who, Caller):
                await services.admission.count(who)
            return _Replay(kept)

        return once

    return decorate


def fingerprint(request: Request, body: bytes) -> bytes:
    """The same for equal requests only."""
    target = f"{request.method} {request.url.path}?{request.url.query}\n"
    return hashlib.sha256(target.encode() + body).digest()


def _key_of(request: Request) -> str:
    """Raises InvalidParameter."""
    values = request.headers.getlist(HEADER)
    if len(values) != 1:
        raise InvalidParameter(f"the header {HEADER} must be sent once", HEADER)
    [key] = values
    if not 1 <= len(key) <= _MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise InvalidParameter(
            f"the header {HEADER} must have between 1 and {_MAX_KEY_LENGTH} printable ASCII characters", HEADER
        )
    return key


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Gives the body, which was read already, and then what `receive` gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


class _Run:
    """One request that was begun: it is finished or abandoned, once, whatever happens."""

    def __init__(self, services: Services, account: str, key: str) -> None:
        self._requests = services.idempotency
        self._max_bytes = services.config.http.max_kept_answer_bytes
        self._account = account
        self._key = key

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            response = await endpoint(request)
        except BaseException:
            await self.abandon()
            raise
        return _Recording(response, self, self._max_bytes)

    async def finish(self, answer: KeptAnswer) -> None:
        await self._to_the_end(self._requests.finish(self._account, self._key, answer))

    async def abandon(self) -> None:
        await self._to_the_end(self._requests.abandon(self._account, self._key))

    @staticmethod
    async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
        """Does not stop when the request is cancelled, and does not keep a finished answer from the client when the
        store fails: the key then stays taken until this process ends."""
        try:
            await asyncio.shield(asyncio.ensure_future(work))
        except Exception as error:
            _logger.error("an idempotent request could not be closed: %s", type(error).__name__)


class _Recording(Response):
    """Sends an answer and keeps it before its last byte goes out; abandons the request where it does not get there."""

    def __init__(self, response: Response, run: _Run, max_bytes: int) -> None:
        self.status_code = response.status_code
        self.background = None
        self._response = response
        self._run = run
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        is_closed = False

        async def record(message: Message) -> None:
            nonlocal is_closed
            if message["type"] == "http.response.body":
                if len(body) <= self._max_bytes:
                    body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    is_closed = True
                    await self._close(bytes(body))
            await send(message)

        try:
            await self._response(scope, receive, record)
        finally:
            if not is_closed:
                await self._run.abandon()

    async def _close(self, body: bytes) -> None:
        if self.status_code >= 400 or len(body) > self._max_bytes:
            await self._run.abandon()
            return
        await self._run.finish(KeptAnswer(self.status_code, tuple(self._response.headers.items()), body))


class _Replay(Response):
    """An answer that was kept, in the chunks in which it was sent."""

    def __init__(self, kept: KeptAnswer) -> None:
        self.status_code = kept.status
        self.background = None
        self._kept_body = kept.body
        self.init_headers({**dict(kept.headers), REPLAYED_HEADER: "true"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        *chunks, last = _CHUNK_END.split(self._kept_body)
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": False})
