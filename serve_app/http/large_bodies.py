"""Large bodies are taken in a few at a time, so that no number of clients fills the memory. Knows no dialect."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Message

from deployments.errors import InvalidRequest
from serve_app.config import BODY_ARRIVAL_S, AppConfig
from serve_app.services import Services

_ESCAPED = 3
"""How many bytes of a JSON string a byte of its text may take; for control characters more, which nobody trains on."""


def max_document_bytes(config: AppConfig) -> int:
    """The most that a body may have with whose documents a model is to be trained."""
    return config.http.max_body_bytes + _ESCAPED * config.fine_tuning.max_data_bytes


@asynccontextmanager
async def large_body(
    request: Request, services: Services, *, arrival_s: float = BODY_ARRIVAL_S
) -> AsyncGenerator[Request, None]:
    """The request, whose body has its turn while the context lasts: it is read, parsed and stored in there, and must
    not be live afterwards. A body that says that it is as short as those of other requests waits for nothing.

    The caller must be authenticated and counted before. Raises Overloaded where no turn came in time; reading the
    body raises InvalidRequest where it arrives too slowly.
    """
    if _is_short(request, services.config.http.max_body_bytes):
        yield request
        return
    async with services.large_bodies.turn():
        deadline = asyncio.get_running_loop().time() + arrival_s

        async def receive() -> Message:
            try:
                async with asyncio.timeout_at(deadline):
                    return await request.receive()
            except TimeoutError:
                raise InvalidRequest(f"the body did not arrive within {arrival_s:g} seconds") from None

        yield Request(request.scope, receive)


def _is_short(request: Request, max_bytes: int) -> bool:
    length = request.headers.get("content-length", "")
    return length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= max_bytes
