"""Who sends a request, by the key in its Authorization header."""

from starlette.requests import Request

from deployments.errors import PermissionDenied, Unauthenticated
from serve_app.http.request_id import received_at, unique_request_id
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect, Principal, Scope


async def authenticate(
    request: Request,
    services: Services,
    dialect: Dialect,
    *,
    scope: Scope = Scope.INFERENCE,
    allow_raw_key: bool = False,
) -> Caller:
    """The caller of a dialect, whom the request's state remembers as `caller`. Raises what `identify` raises."""
    principal = await identify(request, services, scope=scope, allow_raw_key=allow_raw_key)
    caller = Caller(unique_request_id(request), dialect, principal, received_at=received_at(request))
    request.state.caller = caller
    return caller


async def identify(request: Request, services: Services, *, scope: Scope, allow_raw_key: bool = False) -> Principal:
    """Who presents a key with this scope.

    allow_raw_key: the header may also hold the key alone, without the word Bearer.
    Raises Unauthenticated when the key is missing, malformed, unknown, expired or revoked; PermissionDenied when it
    lacks the scope.
    """
    key = _presented_key(request.headers.get("authorization", ""), allow_raw_key)
    if key is None:
        raise Unauthenticated("an API key is required; send the header 'Authorization: Bearer YOUR_API_KEY'")
    principal = await services.keys.authenticate(key)
    if scope not in principal.scopes:
        raise PermissionDenied(f"this key may not be used for this: it lacks the scope {scope.value!r}")
    return principal


def _presented_key(header: str, allow_raw_key: bool) -> str | None:
    words = header.split()
    if len(words) == 2 and words[0].lower() == "bearer":
        return words[1]
    if len(words) == 1 and words[0].lower() != "bearer" and allow_raw_key:
        return words[0]
    return None
