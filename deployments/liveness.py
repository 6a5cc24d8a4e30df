"""Signs of life from work in another process: a machine can vanish without a word (power, network), and then
connections to it stay open, and Ray itself learns of it after a minute or more. Pure of Ray."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from typing import ParamSpec, TypeVar

SIGN_PERIOD_S = 3.0
SILENCE_S = 15.0
"""Who says nothing for so long is taken for lost. Where it was only busy, its work is done twice, and used once."""

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")


def with_signs_of_life(
    make_items: Callable[Arguments, AsyncGenerator[Item, None]], period_s: float = SIGN_PERIOD_S
) -> Callable[Arguments, AsyncGenerator[Item | None, None]]:
    """Decorates what makes an async generator: it gives the items, and None whenever there was none for `period_s`."""

    @functools.wraps(make_items)
    async def signing(*args: Arguments.args, **kwargs: Arguments.kwargs) -> AsyncGenerator[Item | None, None]:
        items = make_items(*args, **kwargs)
        awaited: asyncio.Task[Item] | None = None
        try:
            while True:
                awaited = awaited or asyncio.create_task(_next(items))
                await asyncio.wait({awaited}, timeout=period_s)
                item = None
                if awaited.done():
                    try:
                        item = awaited.result()
                    except StopAsyncIteration:
                        return
                    awaited = None
                yield item
        finally:
            if awaited is not None:
                awaited.cancel()
                await asyncio.gather(awaited, return_exceptions=True)
            await items.aclose()

    return signing


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)
