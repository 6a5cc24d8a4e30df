"""Who sends a request, by the key in its Authorization header."""

from starlette.requests import Request

from deployments.errors import Unauthenticated
from serve_app.services import Services
from serve_app.use_cases.keys import Principal


async def authenticate(request: Request, services: Services, *, allow_raw_key: bool = False) -> Principal:
    """Raises Unauthenticated when the key is missing, malformed, unknown or revoked.

    allow_raw_key: the header may also hold the key alone, without the word Bearer.
    """
    key = _presented_key(request.headers.get("authorization", ""), allow_raw_key)
    if key is None:
        raise Unauthenticated("an API key is required; send the header 'Authorization: Bearer YOUR_API_KEY'")
    return await services.keys.authenticate(key)


def _presented_key(header: str, allow_raw_key: bool) -> str | None:
    words = header.split()
    if len(words) == 2 and words[0].lower() == "bearer":
        return words[1]
    if len(words) == 1 and words[0].lower() != "bearer" and allow_raw_key:
        return words[0]
    return None
