"""A few have a turn at a time; the others wait, but not for ever."""

import asyncio

import pytest

from deployments.errors import Overloaded
from serve_app.use_cases.turns import Turns


async def test_turn_that_ends_is_anothers() -> None:
    turns = Turns(1, wait_s=10.0)
    order = []

    async def take(name: str) -> None:
        async with turns.turn():
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(take("a"), take("b"))
    assert order == ["a begins", "a ends", "b begins", "b ends"]


async def test_who_waits_too_long_is_refused_and_takes_nothing() -> None:
    turns = Turns(1, wait_s=0.01)
    async with turns.turn():
        with pytest.raises(Overloaded):
            async with turns.turn():
                pass
    with pytest.raises(ValueError, match="a failure"):
        async with turns.turn():
            raise ValueError("a failure")
    async with turns.turn():
        pass
