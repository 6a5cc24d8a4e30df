"""Turns at what only a few may do at a time in one process, such as holding megabytes. Knows no HTTP."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from deployments.errors import Overloaded


class Turns:
    """num: of those who may have a turn at the same time. wait_s: how long the others wait at most."""

    def __init__(self, num: int, *, wait_s: float) -> None:
        self._free = asyncio.Semaphore(num)
        self._wait_s = wait_s

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Lasts as long as the context. Raises Overloaded where none was free in time."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded("too much data is being taken in at the moment; send the request again later") from None
        try:
            yield
        finally:
            self._free.release()
