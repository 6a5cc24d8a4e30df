"""Idempotency-Key: a POST that is sent again gives the answer that it had. Knows no dialect and no storage.

Only answers are kept, not refusals: an error that is raised before an answer has begun took no effect, costs nothing,
and the next attempt may succeed. A stream that has begun is kept to its end, an error event included. Where the client
goes away before the end, a generation ends, and the same request runs anew when it comes again; an answer that was
complete by then is kept.
"""

import asyncio
import functools
import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.errors import InvalidParameter, ServiceError, StorageError
from serve_app.http.request_body import read_bounded
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Principal
from serve_app.use_cases.idempotency import KeptAnswer

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

_MAX_KEY_LENGTH = 255
_CREATED = 201
_BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary="?([^";]+)"?', re.IGNORECASE)
# After the line breaks that end a line of JSON or an event: each goes out as a chunk of its own, as it did first.
_CHUNK_END = re.compile(rb"(?<=\n)(?=[^\n])")

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Identify = Callable[[Request], Awaitable[Principal | Caller]]


def idempotent(
    services: Services, identify: Identify, *, to_the_end: bool = False, max_bytes: int | None = None
) -> Callable[[Endpoint], Endpoint]:
    """For endpoints of POST: obeys the header Idempotency-Key.

    `identify` tells whose key it is, as the endpoint itself will: whoever may not ask learns nothing of earlier
    answers. A replayed answer to a caller of a dialect counts as a request, and costs nothing.
    `to_the_end`: for endpoints whose work is one short transaction. It goes on when the client goes away, and the key
    stays taken where an error leaves open whether the transaction took place.
    `max_bytes`: of the body; None: as bodies of JSON.
    """
    most = services.config.http.max_body_bytes if max_bytes is None else max_bytes

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def once(request: Request) -> Response:
            if HEADER not in request.headers:
                return await endpoint(request)
            who = await identify(request)
            key = _key_of(request)
            body = await read_bounded(request, most)
            principal = who.principal if isinstance(who, Caller) else who
            asked = fingerprint(request, body, principal.key_id)
            kept = await services.idempotency.begin(who.account, key, asked)
            if kept is None:
                again = Request(request.scope, _receive_again(body, request.receive))
                return await _Run(services, who.account, key).answer(endpoint, again, to_the_end=to_the_end)
            if isinstance(who, Caller):
                await services.admission.count(who)
            return _Replay(kept)

        return once

    return decorate


@dataclass(frozen=True, slots=True)
class Created:
    """The id of what a request created. is_replayed: it was created when the same request came before."""

    id: str
    is_replayed: bool = False


async def create_once(
    request: Request,
    services: Services,
    caller: Caller,
    create: Callable[[bytes | None], Coroutine[Any, Any, str]],
    *,
    key: str | None,
    body: bytes,
) -> Created:
    """For endpoints of POST that create something and then wait for it: obeys the request's `idempotency_key`.

    Only the creation belongs to the key, not the waiting: the same request, sent again, waits for the same thing.
    `create` answers an id; it goes on when the client goes away. It is given a name for what it creates, None where
    the request has no key, and must answer the same id whenever it is given the same name: so not even the death of
    a process between the creation and the keeping of its id creates anything twice.
    """
    if key is None:
        return Created(await services.idempotency.to_the_end(create(None)))
    asked = await services.idempotency.to_the_end(
        asyncio.to_thread(fingerprint, request, body, caller.principal.key_id)
    )
    kept = await services.idempotency.begin(caller.account, key, asked)
    if kept is not None:
        return Created(kept.body.decode(), is_replayed=True)
    name = hashlib.sha256(b"\n".join((caller.account.encode(), key.encode(), asked))).digest()

    async def run() -> str:
        try:
            created = await create(name)
        except BaseException:
            await services.idempotency.abandon(caller.account, key)
            raise
        await services.idempotency.finish(caller.account, key, KeptAnswer(_CREATED, (), created.encode()))
        return created

    return Created(await services.idempotency.to_the_end(run()))


def fingerprint(request: Request, body: bytes, key_id: str) -> bytes:
    """The same for equal requests under one API key only."""
    boundary = _BOUNDARY.search(request.headers.get("content-type", ""))
    if boundary is not None:
        # Drawn anew whenever a form is sent.
        body = body.replace(boundary[1].encode("latin-1"), b"")
    target = f"{key_id}\n{request.method} {request.url.path}?{request.url.query}\n"
    return hashlib.sha256(target.encode() + body).digest()


def idempotency_key(request: Request) -> str | None:
    """The request's key, if it has one. Raises InvalidParameter."""
    return _key_of(request) if HEADER in request.headers else None


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
    """One request that was begun. It is finished or abandoned once, unless nobody knows whether it took effect."""

    def __init__(self, services: Services, account: str, key: str) -> None:
        self._runs = services.idempotency
        self._max_bytes = services.config.http.max_kept_answer_bytes
        self._account = account
        self._key = key

    async def answer(self, endpoint: Endpoint, request: Request, *, to_the_end: bool) -> Response:
        if to_the_end:
            return await self._runs.to_the_end(self._answer(endpoint, request, is_without_effect=_had_no_effect))
        # What generates bills nothing where it is left by an exception.
        return await self._answer(endpoint, request, is_without_effect=lambda _error: True)

    async def _answer(
        self, endpoint: Endpoint, request: Request, *, is_without_effect: Callable[[BaseException], bool]
    ) -> Response:
        try:
            response = await endpoint(request)
        except BaseException as error:
            if is_without_effect(error):
                await self.abandon()
            raise
        body: bytes | memoryview | None = getattr(response, "body", None)
        if body is None:
            return _Recording(response, self, self._max_bytes)
        await self.close(response, bytes(body))
        return response

    async def close(self, response: Response, body: bytes) -> None:
        """Keeps the answer, whose whole body this is, or forgets it where it is a refusal or too long."""
        if response.status_code >= 400 or len(body) > self._max_bytes:
            await self.abandon()
            return
        answer = KeptAnswer(response.status_code, tuple(response.headers.items()), body)
        await self._runs.finish(self._account, self._key, answer)

    async def abandon(self) -> None:
        await self._runs.abandon(self._account, self._key)


def _had_no_effect(error: BaseException) -> bool:
    """Whether it proves that a transaction did not take place: a commit whose answer was lost may have."""
    if isinstance(error, StorageError):
        return error.is_without_effect
    return isinstance(error, ServiceError)


class _Recording(Response):
    """Sends a stream and keeps it before its last byte goes out; abandons the request where it does not get there."""

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
                    await self._run.close(self._response, bytes(body))
            await send(message)

        try:
            await self._response(scope, receive, record)
        finally:
            if not is_closed:
                await self._run.abandon()


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
