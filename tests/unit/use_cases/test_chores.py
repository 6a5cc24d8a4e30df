"""Chores are done again and again, whatever they raise, until their context ends."""

import asyncio

import pytest

from serve_app.use_cases.chores import Chore, repeating


async def test_chore_that_fails_is_done_again_and_the_failure_told(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            third.set()
        raise ValueError(f"failure {calls}")

    async with repeating(Chore("the chore", work, 0.001)):
        await third.wait()
    assert "the chore failed" in caplog.text and "failure 2" in caplog.text
    seen = calls
    await asyncio.sleep(0.01)
    assert calls == seen


async def test_chore_that_runs_is_ended_with_its_context() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with repeating(Chore("the chore", work, 0)):
        await started.wait()
    assert ended.is_set()
