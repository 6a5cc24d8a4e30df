"""What a process does again and again beside its requests. Knows nothing of what that is."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """`work` is called every `period_s` seconds, for the first time after one; never twice at once. Where it raises,
    that is logged, and the next time is its next try."""

    name: str
    work: Callable[[], Awaitable[None]]
    period_s: float

    async def repeat(self) -> None:
        while True:
            await asyncio.sleep(self.period_s)
            try:
                await self.work()
            except Exception as error:
                logger.error("%s failed, and is tried again in %g s: %s", self.name, self.period_s, error)


@asynccontextmanager
async def repeating(*chores: Chore) -> AsyncGenerator[None, None]:
    """Does the chores for as long as the context lasts."""
    tasks = [asyncio.create_task(chore.repeat()) for chore in chores]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
