"""Which refusals count, and whose answers tell how the windows stand."""

from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import (
    Conflict,
    GenerationFailed,
    IdempotencyMismatch,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    ServiceError,
    Unauthenticated,
)
from serve_app.http.rate_limits import RateLimitHeadersMiddleware, RefusalCountMiddleware
from serve_app.use_cases.callers import Caller, Dialect, Principal, Window, WindowStanding

STANDINGS = (WindowStanding(Window("minute", 100, 60), 99, 60.0),)


class Counter:
    def __init__(self, error: Exception | None = None) -> None:
        self.counted: list[Caller] = []
        self._error = error

    async def count(self, caller: Caller) -> None:
        if caller.limits is None:
            self.counted.append(caller)
            caller.limits = STANDINGS
        if self._error is not None:
            raise self._error


def caller(*, limits: tuple[WindowStanding, ...] | None = None) -> Caller:
    return Caller("id", Dialect.AITEXTGEN, Principal("account", "key"), limits)


def failing(error: Exception) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return app


async def nothing() -> Message:
    raise AssertionError("nothing is received")


async def drop(_message: Message) -> None:
    return


def scope_of(method: str, who: Caller | None) -> Scope:
    return {"type": "http", "method": method, "state": {"caller": who} if who else {}}


async def refuse(
    error: Exception, *, method: str = "POST", who: Callable[[], Caller | None] = caller, counter: Counter | None = None
) -> Counter:
    counter = counter or Counter()
    with pytest.raises(type(error)):
        await RefusalCountMiddleware(failing(error), counter)(scope_of(method, who()), nothing, drop)
    return counter


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("bad"),
        ModelNotFound("nope"),
        PayloadTooLarge("long"),
        IdempotencyMismatch("other"),
        Conflict("runs"),
    ],
    ids=lambda error: str(error.status),
)
async def test_the_clients_fault_counts_once(error: ServiceError) -> None:
    assert len((await refuse(error)).counted) == 1


@pytest.mark.parametrize(
    "error",
    [
        Unauthenticated("who"),
        PermissionDenied("no"),
        RateLimited("slow", 1),
        Overloaded("full"),
        GenerationFailed("broken"),
        ValueError("unknown"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_other_refusals_count_nothing(error: Exception) -> None:
    assert (await refuse(error)).counted == []


async def test_only_posts_of_known_callers_who_were_not_counted_count() -> None:
    error = InvalidRequest("bad")
    assert (await refuse(error, method="GET")).counted == []
    assert (await refuse(error, who=lambda: None)).counted == []
    assert (await refuse(error, who=lambda: caller(limits=STANDINGS))).counted == []


async def test_refusal_beyond_the_limit_is_a_429() -> None:
    counter = Counter(error=RateLimited("minute", 30))
    with pytest.raises(RateLimited):
        await RefusalCountMiddleware(failing(InvalidRequest("bad")), counter)(scope_of("POST", caller()), nothing, drop)


@pytest.mark.parametrize(("limits", "names"), [(STANDINGS, True), ((), False), (None, False)])
async def test_counted_callers_are_told(limits: tuple[WindowStanding, ...] | None, names: bool) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await RateLimitHeadersMiddleware(app)(scope_of("POST", caller(limits=limits)), nothing, send)
    headers = dict(sent[0]["headers"])
    assert (b"x-ratelimit-remaining" in headers) is names
    assert len(sent) == 2
