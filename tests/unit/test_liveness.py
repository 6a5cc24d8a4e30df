"""Signs of life between the items of a stream."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.liveness import with_signs_of_life


class Numbers:
    """Yields what it is told to; is_closed: it runs no more."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            while (item := await self.told.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.is_closed = True


async def test_items_come_as_they_are_and_the_end_too() -> None:
    numbers = Numbers()
    for item in (1, 2, 3, None):
        numbers.told.put_nowait(item)
    assert [item async for item in with_signs_of_life(numbers.stream, 60)()] == [1, 2, 3]
    assert numbers.is_closed


async def test_silence_is_filled_and_nothing_is_lost() -> None:
    numbers = Numbers()
    stream = with_signs_of_life(numbers.stream, 0.001)()
    assert [await anext(stream) for _ in range(3)] == [None] * 3
    numbers.told.put_nowait(1)
    numbers.told.put_nowait(2)
    numbers.told.put_nowait(None)
    assert [item async for item in stream if item is not None] == [1, 2]


async def test_error_comes_after_what_came_before() -> None:
    numbers = Numbers()
    stream = with_signs_of_life(numbers.stream, 60)()
    numbers.told.put_nowait(1)
    numbers.told.put_nowait(ValueError("no number"))
    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="no number"):
        await anext(stream)


async def test_closing_closes_what_is_waited_for() -> None:
    numbers = Numbers()
    stream = with_signs_of_life(numbers.stream, 0.001)()
    assert await anext(stream) is None
    await stream.aclose()
    assert numbers.is_closed


async def test_cancelling_closes_what_is_waited_for() -> None:
    numbers = Numbers()
    stream = with_signs_of_life(numbers.stream, 60)()

    async def consume() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert numbers.is_closed
