"""Tells the calls of one process that wait for jobs when these end: one look at the database for all of them."""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Protocol

from deployments.errors import StorageError

LOOK_S = 0.2
"""How long jobs may have ended unnoticed."""


class EndedJobs(Protocol):
    """What is asked of the jobs' store."""

    async def ended(self, job_ids: Collection[str]) -> Collection[str]:
        """Those that have ended, of any account."""


class JobEnds:
    """Nothing is looked at while nobody waits. Outages of the database are waited through."""

    def __init__(self, jobs: EndedJobs, *, look_s: float = LOOK_S) -> None:
        self._jobs = jobs
        self._look_s = look_s
        self._awaited: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job_id: str, *, timeout_s: float) -> None:
        """Returns when the job has ended, or after this time."""
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited[job_id].add(end)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            done, _ = await asyncio.wait([end], timeout=timeout_s)
        finally:
            self._awaited[job_id].discard(end)
            if not self._awaited[job_id]:
                del self._awaited[job_id]
        if done:
            end.result()

    async def close(self) -> None:
        """Looks no more; nobody may be waiting."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        try:
            while self._awaited:
                await asyncio.sleep(self._look_s)
                try:
                    ended = await self._jobs.ended(tuple(self._awaited))
                except StorageError:
                    continue
                for job_id in ended:
                    self._settle(job_id, None)
        except Exception as error:
            for job_id in tuple(self._awaited):
                self._settle(job_id, error)
        finally:
            self._looking = None

    def _settle(self, job_id: str, error: Exception | None) -> None:
        for end in self._awaited.get(job_id, ()):
            if end.done():
                continue
            if error is None:
                end.set_result(None)
            else:
                end.set_exception(error)
