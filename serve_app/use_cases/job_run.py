"""One claim of a fine-tuning job from its first event to its end: what the worker reports is stored under the fence.

Knows no SQL and no HTTP.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from deployments.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServiceError,
    StorageError,
    TrainingFailed,
    WorkerLost,
)
from deployments.graph import FineTuner
from deployments.meter import Counter, Meter, NoMeter
from deployments.training import Alive, CheckpointSaved, Finished, Progress, Started, TrainingEvent, Validated
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobError
from serve_app.jobs.transitions import Change
from serve_app.use_cases.job_queue import Claim, ClaimLost, JobQueue

PROGRESS_S = 1.0
"""How often progress is stored; the last of it always."""
_FIRST_TOLD, _TOLD_S = 100, 10.0
"""How many of the first of it, and how often then, the job's history tells; the last step always."""
_TRY_AGAIN_S = 1.0

JOBS_ENDED = Counter("tritext_jobs_ended_total", "Fine-tuning jobs that ended by themselves, by status", ("status",))
METRICS = (JOBS_ENDED,)

logger = logging.getLogger(__name__)


class JobRun:
    """While the database does not answer, training goes on, and what happened is stored when it does again.

    is_ending: the job leaves it, by its own doing.
    """

    def __init__(
        self,
        claim: Claim,
        queue: JobQueue,
        fine_tuner: FineTuner,
        config: FineTuningConfig,
        *,
        meter: Meter | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._claim = claim
        self._queue = queue
        self._fine_tuner = fine_tuner
        self._config = config
        self._meter = meter or NoMeter()
        self._now = now
        self._began_at: float | None = None
        self._progress: Progress | None = None  # not stored yet
        self._stored_at = self._told_at = now()
        self._num_told = 0
        self.is_ending = False

    async def run(self) -> None:
        """Returns when the job has ended, waits for another worker, or is not under the claim any more; the worker has
        been ended then, as it is when this is cancelled."""
        try:
            try:
                await self._train()
            except ClaimLost:
                raise
            except Exception as error:
                await self._store_progress()
                self.is_ending = True
                await self._advance(self._consequence(error))
        except ClaimLost:
            logger.info("job %s is no longer run here", self._claim.job.id)

    async def _train(self) -> None:
        async with aclosing(self._fine_tuner.train(self._claim.request())) as events:
            while True:
                event = await self._next(events)
                await self._record(event)
                if isinstance(event, Finished):
                    return

    async def _next(self, events: AsyncGenerator[TrainingEvent, None]) -> TrainingEvent:
        """Raises WorkerLost where the worker is silent for too long, or ends without having finished."""
        try:
            async with asyncio.timeout(self._config.hang_s) as limit:
                return await anext(events)
        except TimeoutError:
            if not limit.expired():
                raise
            raise WorkerLost(f"it was silent for {self._config.hang_s:g} s") from None
        except StopAsyncIteration:
            raise WorkerLost("it ended before it had finished") from None

    async def _record(self, event: TrainingEvent) -> None:
        if isinstance(event, Progress):
            self._progress = event
        if isinstance(event, Alive | Progress):
            if self._now() - self._stored_at >= PROGRESS_S:
                await self._store_progress()
            return
        await self._store_progress()
        match event:
            case Started():
                self._began_at = self._now()
                await self._advance(lambda job: transitions.started(job, self._now(), event))
            case Validated():
                await self._advance(lambda job: transitions.validated(job, self._now(), event))
            case CheckpointSaved():
                await self._advance(lambda job: transitions.checkpointed(job, self._now(), event))
            case Finished():
                training_time_s = self._claim.job.training_time_s + event.training_time_s
                self.is_ending = True
                await self._advance(
                    lambda job: transitions.published(job, self._now(), event, training_time_s=training_time_s)
                )

    async def _store_progress(self) -> None:
        progress, self._progress = self._progress, None
        self._stored_at = self._now()
        if progress is not None:
            training_time_s, is_told = self._training_time_s(), self._is_told(progress)
            await self._advance(
                lambda job: transitions.progressed(
                    job, self._now(), progress, training_time_s=training_time_s, is_told=is_told
                )
            )

    def _is_told(self, progress: Progress) -> bool:
        is_last = progress.step == progress.total_steps
        if self._num_told >= _FIRST_TOLD and self._stored_at - self._told_at < _TOLD_S and not is_last:
            return False
        self._num_told += 1
        self._told_at = self._stored_at
        return True

    def _consequence(self, error: Exception) -> Callable[[Job], Change]:
        """What follows for the job."""
        if isinstance(error, InvalidRequest | ModelNotFound | TrainingFailed):  # it would come again
            failure = JobError(error.code, error.message, error.param)
            return lambda job: transitions.failed(job, self._now(), failure)
        reason = self._reason(error)
        if isinstance(error, Overloaded):  # no room in the cluster, or a store that does not answer
            return lambda job: transitions.postponed(job, self._now(), reason=reason, config=self._config)
        return lambda job: transitions.worker_lost(job, self._now(), reason=reason, config=self._config)

    async def _advance(self, transition: Callable[[Job], Change]) -> None:
        """Stores the transition, however long it takes. Raises ClaimLost."""
        job = self._claim.job
        while True:
            try:
                after = await self._queue.advance(job.id, job.fence, transition)
            except StorageError as error:
                logger.warning("job %s: %s; trying again", job.id, error)
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                if after.status.is_final:
                    self._meter.add(JOBS_ENDED, 1, status=after.status.value)
                return

    def _training_time_s(self) -> float:
        """Of all attempts, this one as seen from here."""
        before = self._claim.job.training_time_s
        return before if self._began_at is None else before + max(0.0, self._now() - self._began_at)

    def _reason(self, error: Exception) -> str:
        """What is told of an error after which another worker goes on; of one of its own kind, only what it is."""
        if isinstance(error, ServiceError):
            logger.warning("job %s: %s: %s", self._claim.job.id, error.code, error.message)
            return error.message
        # Its text could hold some of what is trained on.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("job %s: %s\n%s", self._claim.job.id, type(error).__name__, frames)
        return f"it met an unexpected error ({type(error).__name__})"
