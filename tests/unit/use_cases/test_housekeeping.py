"""Chores are done again and again, whatever one of them raises, and once more at the end."""

import asyncio

from serve_app.use_cases.housekeeping import Housekeeping


async def test_chores_are_done_although_one_fails_and_once_more_at_the_end() -> None:
    done: list[str] = []
    twice = asyncio.Event()

    async def fail() -> None:
        done.append("fail")
        raise OSError("no database")

    async def work() -> None:
        done.append("work")
        if done.count("work") == 2:
            twice.set()

    async with Housekeeping(fail, work, period_s=0.001):
        await asyncio.wait_for(twice.wait(), 5)
    assert done[-2:] == ["fail", "work"]
    assert done.count("work") >= 3


async def test_a_short_life_does_them_once() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    async with Housekeeping(work):
        assert done == []
    assert done == [1]
