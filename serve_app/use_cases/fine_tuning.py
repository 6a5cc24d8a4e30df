"""Fine-tuning jobs as their owners see them: asked for, looked at, paused, cancelled. Knows no HTTP and no SQL."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deployments.errors import InvalidParameter, InvalidTrainingData, JobNotFound, NotFound, StorageError
from deployments.graph import Tokenizer
from deployments.training import TrainingParams
from serve_app.config import READING_TURN_S, FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.ids import derived_id, new_id
from serve_app.jobs.job import Job, JobCheckpoint, JobEvent, TrainingFile
from serve_app.jobs.transitions import Change
from serve_app.use_cases.idempotency import KEPT_FOR_S
from serve_app.use_cases.job_ends import EndedJobs, JobEnds
from serve_app.use_cases.models import ModelCatalog
from serve_app.use_cases.token_counts import count_tokens
from serve_app.use_cases.training_files import TrainingFiles
from serve_app.use_cases.turns import Turns

_RETRY_S = 0.5
"""Between two tries of a waiting call to read its job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneCommand:
    """What an API asks for. base_model: a name of a configured model. training_file, validation_file: ids of files.

    name: what the model is called beside its id. data_param: what the API calls the training data, for errors.
    once: names the request, where it must take effect once: see `FineTuning.earlier`.
    """

    account: str
    key_id: str
    dialect: str
    base_model: str
    training_file: str
    params: TrainingParams
    name: str = ""
    validation_file: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_param: str = "training_file"
    once: bytes | None = None


class JobStore(EndedJobs, Protocol):
    """The jobs of all accounts. Every method but `add` and `ended` narrows to one; what is not its own is not there."""

    async def add(self, change: Change, *, most_queued: int) -> bool:
        """A new job, with what belongs to it. False, and nothing changes, where there is one with its id.

        Raises RateLimited where its account has `most_queued` jobs already that wait or are paused, and
        PermissionDenied where it is closed.
        """

    async def require_room(self, account: str, *, most_queued: int) -> None:
        """Raises RateLimited where `add` would."""

    async def get(self, account: str, job_id: str) -> Job:
        """Raises JobNotFound."""

    async def list(self, account: str, *, after: str | None, limit: int, metadata: Mapping[str, str]) -> Sequence[Job]:
        """The newest first; those older than the job `after`, with all of these metadata."""

    async def change(self, account: str, job_id: str, transition: Callable[[Job], Change]) -> Job:
        """The job after the transition, which is stored with everything that belongs to it, or not at all.

        Raises JobNotFound, and what the transition raises.
        """

    async def events(self, account: str, job_id: str, *, after: int | None, limit: int) -> Sequence[JobEvent]:
        """The newest first; those before the event `after`. Raises JobNotFound."""

    async def checkpoints(self, account: str, job_id: str, *, after: str | None, limit: int) -> Sequence[JobCheckpoint]:
        """The newest first; those before the checkpoint whose manifest is `after`. Raises JobNotFound."""


class FineTuning:
    """nudge: called when there is something new for a dispatcher; must not wait."""

    def __init__(
        self,
        jobs: JobStore,
        files: TrainingFiles,
        models: ModelCatalog,
        tokenizer: Tokenizer,
        config: FineTuningConfig,
        *,
        nudge: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._ends = JobEnds(jobs)
        self._files = files
        self._models = models
        self._tokenizer = tokenizer
        self._config = config
        self._nudge = nudge
        self._now = now
        # Files of 20 MB, and several times that once they are documents: a few at a time fill no memory.
        self._reading = Turns(2, wait_s=READING_TURN_S)

    async def close(self) -> None:
        """Lets go of the database; to be called when nobody waits for a job any more."""
        await self._ends.close()

    async def create(self, command: FineTuneCommand) -> Job:
        """A job that waits for its turn; it is stored when this returns.

        Where a job was made `once` already, it is answered instead, as it is.
        Raises ModelNotFound, InvalidParameter, InvalidTrainingData where the data cannot be trained on, and RateLimited
        where too many jobs of the account wait; Overloaded where too many files are being read.
        """
        job_id, earlier = new_id("ftjob-", 24), None
        if command.once is not None:
            job_id, earlier = await self._named(command.account, command.once)
        if earlier is not None:
            return earlier
        base_model = self._models.resolve(command.base_model).id
        if not command.name.isprintable():
            raise InvalidParameter("name must have printable characters only", "name")
        self._check(command.params)
        most_queued = self._config.max_queued_jobs_per_account
        await self._jobs.require_room(command.account, most_queued=most_queued)
        async with self._reading.turn():
            num_tokens = await self._num_tokens(command, base_model, command.training_file, command.data_param)
            if command.validation_file is not None:
                await self._num_tokens(command, base_model, command.validation_file, "validation_file")
        if num_tokens * command.params.epochs > self._config.max_tokens:
            raise InvalidTrainingData(
                f"the data has {num_tokens} tokens; {command.params.epochs} epochs of them are more than the "
                f"{self._config.max_tokens} tokens that one job may train on",
                command.data_param,
            )
        job = Job(
            id=job_id,
            account=command.account,
            key_id=command.key_id,
            dialect=command.dialect,
            base_model=base_model,
            model_id=new_id("ft_model_", 16),
            name=command.name,
            training_file=command.training_file,
            validation_file=command.validation_file,
            params=command.params,
            metadata=dict(command.metadata),
            created_at=self._now(),
        )
        change = transitions.created(job)
        if not await self._jobs.add(change, most_queued=most_queued):
            return await self.get(command.account, job_id)
        self._nudge()
        return change.job

    async def earlier(self, account: str, once: bytes) -> Job | None:
        """The job that a request of this name made in the last `KEPT_FOR_S` seconds, whichever process took it.

        The job's id comes of the name, so that the same request, asked again, cannot make two jobs, not even where
        the process that took it died before it could tell of it.
        """
        _, job = await self._named(account, once)
        return job

    async def get(self, account: str, job_id: str) -> Job:
        """Raises JobNotFound."""
        return await self._jobs.get(account, job_id)

    async def list(
        self, account: str, *, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | None = None
    ) -> Sequence[Job]:
        """The newest first, those older than the job `after`, with all of these metadata. Raises InvalidParameter."""
        return await self._jobs.list(account, after=after, limit=limit, metadata=metadata or {})

    async def cancel(self, account: str, job_id: str) -> Job:
        """Ends a job that has not ended; its worker stops within seconds. Of a cancelled job nothing changes.

        Raises JobNotFound, and InvalidRequest where the job has ended otherwise.
        """
        return await self._change(account, job_id, transitions.cancelled)

    async def pause(self, account: str, job_id: str) -> Job:
        """Lets a job rest; what came after its last checkpoint is trained again. Of a paused job nothing changes.

        Raises JobNotFound, and InvalidRequest where the job has ended.
        """
        return await self._change(account, job_id, transitions.paused)

    async def resume(self, account: str, job_id: str) -> Job:
        """Lets a paused job wait for its turn again.

        Raises JobNotFound, and InvalidRequest where the job is not paused.
        """
        return await self._change(account, job_id, transitions.resumed)

    async def events(
        self, account: str, job_id: str, *, after: int | None = None, limit: int = 20
    ) -> Sequence[JobEvent]:
        """The newest first, those before the event `after`. Raises JobNotFound."""
        return await self._jobs.events(account, job_id, after=after, limit=limit)

    async def checkpoints(
        self, account: str, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> Sequence[JobCheckpoint]:
        """The newest first, those before the checkpoint whose manifest is `after`. Raises JobNotFound."""
        return await self._jobs.checkpoints(account, job_id, after=after, limit=limit)

    async def wait(self, account: str, job_id: str, *, timeout_s: float) -> Job:
        """The job when it has ended, or as it is after this time. An outage of the database is waited through.

        Raises JobNotFound, and StorageError where the database does not answer at the end.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            rest_s = pause_s = max(0.0, deadline - loop.time())
            try:
                job = await self._jobs.get(account, job_id)
                if job.status.is_final or not rest_s:
                    return job
            except StorageError:
                if not rest_s:
                    raise
                pause_s = min(_RETRY_S, rest_s)
            await self._ends.wait(job_id, timeout_s=pause_s)

    async def _named(self, account: str, once: bytes) -> tuple[str, Job | None]:
        """The id of the job of this name, and the job if there is one that is not too old."""
        for turn in itertools.count():
            job_id = derived_id("ftjob-", 24, once + turn.to_bytes(4, "big"))
            try:
                job = await self._jobs.get(account, job_id)
            except JobNotFound:
                break
            if self._now() - job.created_at < KEPT_FOR_S:
                return job_id, job
        return job_id, None

    async def _change(self, account: str, job_id: str, transition: Callable[[Job, float], Change]) -> Job:
        job = await self._jobs.change(account, job_id, lambda job: transition(job, self._now()))
        self._nudge()
        return job

    async def _num_tokens(self, command: FineTuneCommand, base_model: str, file_id: str, param: str) -> int:
        """Of all documents. Raises InvalidTrainingData, naming the first that has none."""
        file = await self._trainable(command.account, file_id, param)
        return await count_tokens(self._tokenizer, base_model, await self._files.documents(file), param)

    async def _trainable(self, account: str, file_id: str, param: str) -> TrainingFile:
        try:
            return await self._files.get(account, file_id)
        except NotFound:
            raise InvalidParameter(f"there is no file {file_id!r}", param) from None

    def _check(self, params: TrainingParams) -> None:
        """Raises InvalidParameter, naming the first field that is out of its range."""
        config = self._config
        ranges: Mapping[str, tuple[float, float]] = {
            "epochs": (1, config.max_epochs),
            "learning_rate": (1e-9, 1.0),
            "batch_size": (1, 1024),
            "sequence_length": (8, 1_000_000),
            "rank": (1, config.max_rank),
            "alpha": (1e-3, 10_000.0),
            "dropout": (0.0, 0.9),
            "warmup_ratio": (0.0, 1.0),
            "weight_decay": (0.0, 1.0),
            "seed": (0, 2**31 - 1),
            "validation_split": (0.0, 0.5),
            "num_workers": (1, config.max_workers),
        }
        for name, (least, most) in ranges.items():
            value = getattr(params, name)
            if value is not None and not least <= value <= most:
                raise InvalidParameter(f"{name} must be from {least:g} to {most:g}", name)
