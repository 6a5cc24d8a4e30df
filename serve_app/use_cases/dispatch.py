"""What a dispatcher does: claims jobs, watches over their runs, says that it lives. Knows no SQL, HTTP or Ray."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from deployments.errors import StorageError
from deployments.graph import FineTuner
from deployments.meter import Meter, NoMeter
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.use_cases.job_queue import Claim, ClaimLost, JobQueue
from serve_app.use_cases.job_run import JOBS_ENDED, JobRun

LOOK_S = 1.0
"""How often a dispatcher looks which jobs wait and whether its own are still its own, if nobody nudges it."""
STEADY_S = 5.0
"""A gap between two looks; and how long a dispatcher must have looked without one before it takes jobs over."""
_RELEASE_S = 3.0
"""How long a dispatcher that stops tries to leave its jobs to others; they find them without it, later."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    fence: int
    run: JobRun
    task: asyncio.Task[None]

    @property
    def is_ending(self) -> bool:
        """Whether it needs no cancellation: what ends by itself may have more to do than to let go of its job, and a
        second cancellation would keep it from ending its worker."""
        return self.run.is_ending or self.task.cancelling() > 0


class Dispatcher:
    """A job whose dispatcher is not heard of is taken over when its lease is over; only by a dispatcher that has looked
    without a gap for STEADY_S, so that after an outage of the database, or when a clock was set, those that live have
    had the time to say so.

    worker: a name that no other process has, nor had, of at most 32 characters. on_end: called when a run or a job
    has ended, of which webhooks may tell."""

    def __init__(
        self,
        queue: JobQueue,
        fine_tuner: FineTuner,
        config: FineTuningConfig,
        *,
        worker: str,
        on_end: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._fine_tuner = fine_tuner
        self._config = config
        self._worker = worker
        self._on_end = on_end
        self._meter = meter or NoMeter()
        self._now = now
        self._runs: dict[str, _Run] = {}
        self._renewed_at = self._steady_since = self._looked_at = -math.inf
        self._nudged = asyncio.Event()
        self._is_answered = True
        self._is_stopping = False
        self._loop: asyncio.Task[None] | None = None

    def nudge(self) -> None:
        """There may be something new: look at once."""
        self._nudged.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """When the context ends, the workers are ended, and their jobs are left to other dispatchers."""
        self._loop = asyncio.create_task(self._repeat())
        try:
            yield
        finally:
            self._is_stopping = True
            self.nudge()
            # Not cancelled at once: it may be in the middle of a claim.
            await asyncio.wait({self._loop}, timeout=_RELEASE_S)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
            await self._stop()

    def check_health(self) -> None:
        """Raises RuntimeError where it does not work although it should."""
        if self._loop is None or self._loop.done():
            raise RuntimeError("the dispatcher has stopped")

    async def look(self) -> None:
        """Ends the runs of jobs that are no longer its own, says that it lives, and starts what it can claim.

        Raises StorageError.
        """
        now = self._now()
        held = await self._held(now)
        for job_id, run in self._runs.items():
            if held.get(job_id) != run.fence and not run.is_ending:
                run.task.cancel()
        for job_id in held.keys() - self._runs.keys():  # a claim whose answer was lost
            await self._release(job_id, held[job_id])
        takes_over = self._is_steady(now)
        while not self._is_stopping:
            claim = await self._queue.claim(self._worker, now, besides=self._runs, takes_over=takes_over)
            if claim is None:
                break
            if isinstance(claim, Claim):
                self._start(claim)
            else:
                self._meter.add(JOBS_ENDED, 1, status=claim.status.value)
                self._on_end()

    def _start(self, claim: Claim) -> None:
        job = claim.job
        run = JobRun(claim, self._queue, self._fine_tuner, self._config, meter=self._meter, now=self._now)
        task = asyncio.create_task(run.run())
        self._runs[job.id] = _Run(job.fence, run, task)
        task.add_done_callback(partial(self._forget, job.id))
        logger.info("job %s runs here, under fence %d", job.id, job.fence)

    def _is_steady(self, now: float) -> bool:
        """To be asked whenever the database has answered."""
        if not 0 <= now - self._looked_at <= STEADY_S:
            self._steady_since = now
        self._looked_at = now
        return now - self._steady_since >= STEADY_S

    async def _held(self, now: float) -> Mapping[str, int]:
        """Jobs that are its own; their leases are renewed in time, also when the clock was set back."""
        if not self._runs or 0 <= now - self._renewed_at < self._config.lease_s / 3:
            return await self._queue.held(self._worker)
        held = await self._queue.renew(self._worker, now + self._config.lease_s)
        self._renewed_at = now
        return held

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._runs[job_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the run of job %s failed", job_id, exc_info=error)
        self._on_end()
        self.nudge()

    async def _repeat(self) -> None:
        while not self._is_stopping:
            self._nudged.clear()
            try:
                await self.look()
                self._is_answered = True
            except StorageError as error:
                if self._is_answered:
                    logger.warning("%s; training goes on", error)
                self._is_answered = False
            except Exception:
                logger.exception("the dispatcher failed, and goes on")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._nudged.wait()

    async def _stop(self) -> None:
        runs = dict(self._runs)
        for run in runs.values():
            if not run.task.cancelling():
                run.task.cancel()
        await asyncio.gather(*(run.task for run in runs.values()), return_exceptions=True)
        try:
            async with asyncio.timeout(_RELEASE_S):
                await asyncio.gather(*(self._release(job_id, run.fence) for job_id, run in runs.items()))
        except (TimeoutError, StorageError):
            logger.warning("the database does not answer; jobs are left to their leases")

    async def _release(self, job_id: str, fence: int) -> None:
        with contextlib.suppress(ClaimLost):
            await self._queue.advance(job_id, fence, lambda job: transitions.released(job, self._now()))
