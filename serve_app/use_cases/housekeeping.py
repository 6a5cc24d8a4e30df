"""What a process tidies up once a minute, beside its requests. Knows no HTTP and no SQL."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

PERIOD_S = 60.0

logger = logging.getLogger(__name__)


class Housekeeping:
    """Does all of it every `period_s` seconds while its context lasts, and once more when that ends.

    What fails is logged, and tried again the next time.
    """

    def __init__(self, *chores: Callable[[], Awaitable[None]], period_s: float = PERIOD_S) -> None:
        self._chores = chores
        self._period_s = period_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._tidy_up()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self._tidy_up()

    async def _tidy_up(self) -> None:
        for chore in self._chores:
            try:
                await chore()
            except Exception as error:
                logger.error("housekeeping failed, and is tried again: %s", error)
