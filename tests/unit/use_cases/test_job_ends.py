"""Waiting for jobs: all calls look together, and only while some wait."""

import asyncio
from collections.abc import Collection

import pytest

from deployments.errors import StorageError
from serve_app.use_cases.job_ends import JobEnds


class Jobs:
    """`ended` is what has ended; looks: what was asked for. error: raised, if there is one."""

    def __init__(self) -> None:
        self.has_ended: set[str] = set()
        self.looks: list[set[str]] = []
        self.error: Exception | None = None

    async def ended(self, job_ids: Collection[str]) -> Collection[str]:
        self.looks.append(set(job_ids))
        if self.error is not None:
            raise self.error
        return self.has_ended & set(job_ids)

    async def looked(self, times: int) -> None:
        seen = len(self.looks)
        async with asyncio.timeout(5):
            while len(self.looks) < seen + times:
                await asyncio.sleep(0)


async def test_calls_look_together_and_each_returns_with_its_own_job() -> None:
    jobs = Jobs()
    ends = JobEnds(jobs, look_s=0.001)
    calls = {name: asyncio.create_task(ends.wait(name[0], timeout_s=30)) for name in ("a1", "a2", "b1")}
    await jobs.looked(2)
    assert jobs.looks[-1] == {"a", "b"}
    jobs.has_ended = {"a"}
    await asyncio.gather(calls["a1"], calls["a2"])
    assert not calls["b1"].done()
    await jobs.looked(2)
    assert jobs.looks[-1] == {"b"}
    jobs.has_ended = {"b"}
    await calls["b1"]


async def test_nobody_waits_longer_than_asked_for_and_then_nothing_is_looked_at() -> None:
    jobs = Jobs()
    ends = JobEnds(jobs, look_s=0.001)
    await ends.wait("a", timeout_s=0.02)
    task = asyncio.create_task(ends.wait("a", timeout_s=30))
    await jobs.looked(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.02)
    number = len(jobs.looks)
    await asyncio.sleep(0.02)
    assert len(jobs.looks) == number
    jobs.has_ended = {"a"}
    await ends.wait("a", timeout_s=30)


async def test_closed_it_asks_no_more() -> None:
    jobs = Jobs()
    jobs.has_ended = {"a"}
    ends = JobEnds(jobs, look_s=0.001)
    await ends.close()
    await ends.wait("a", timeout_s=30)
    await ends.close()
    number = len(jobs.looks)
    await asyncio.sleep(0.02)
    assert len(jobs.looks) == number


async def test_outage_is_waited_through_and_another_fault_is_told() -> None:
    jobs = Jobs()
    jobs.error = StorageError("the database does not answer")
    ends = JobEnds(jobs, look_s=0.001)
    task = asyncio.create_task(ends.wait("a", timeout_s=30))
    await jobs.looked(3)
    assert not task.done()
    jobs.error = ValueError("a fault")
    with pytest.raises(ValueError, match="a fault"):
        await task
    jobs.error, jobs.has_ended = None, {"a"}
    await ends.wait("a", timeout_s=30)
