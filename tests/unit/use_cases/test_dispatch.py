"""A dispatcher with a scripted fine-tuner over a database of its own: what jobs become, whatever happens to workers."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from deployments.errors import (
    CorruptObject,
    InvalidTrainingData,
    ModelNotFound,
    ObjectStoreError,
    Overloaded,
    StorageError,
    TrainingFailed,
    WorkerLost,
)
from deployments.training import Alive, TrainingEvent, TrainingRequest, Validated
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobStatus
from serve_app.jobs.transitions import Change
from serve_app.stores.database import Database, open_database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.jobs import SqlJobs
from serve_app.use_cases import dispatch, job_run
from serve_app.use_cases.dispatch import Dispatcher
from serve_app.use_cases.job_queue import Claim
from tests.fake_fine_tuner import (
    MANIFEST,
    SUCCESS,
    FakeFineTuner,
    Script,
    Silence,
    checkpoint,
    finished,
    progress,
    started,
)
from tests.job_rows import Clock, add_job, rows, stored
from tests.recording_meter import RecordingMeter

CONFIG: dict[str, Any] = {"max_jobs": 8, "max_jobs_per_account": 8, "retry_s": 2.0, "max_attempts": 3}


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    async with open_database(sqlite_url) as opened:
        yield opened


class Bench:
    """Dispatchers that share a database and a clock."""

    def __init__(self, database: Database, stack: AsyncExitStack) -> None:
        self.database = database
        self.clock = Clock()
        self.meter = RecordingMeter()
        self._stack = stack
        self._num_workers = 0

    async def start(self, fine_tuner: FakeFineTuner, queue: SqlJobQueue | None = None, **fields: Any) -> Dispatcher:
        config = FineTuningConfig(**CONFIG | fields)
        self._num_workers += 1
        dispatcher = Dispatcher(
            queue or SqlJobQueue(self.database, config),
            fine_tuner,
            config,
            worker=f"worker-{self._num_workers}",
            meter=self.meter,
            now=self.clock,
        )
        await self._stack.enter_async_context(dispatcher.running())
        return dispatcher

    async def until(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        while not condition(found := await stored(self.database, job)):
            await asyncio.sleep(0.005)
        return found

    async def until_final(self, job: Job) -> Job:
        return await self.until(job, lambda job: job.status.is_final)

    async def messages(self, job: Job) -> list[str]:
        return [row["message"] for row in await rows(self.database, "job_events", job=job.id)]


@pytest.fixture
async def bench(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(dispatch, "LOOK_S", 0.02)
    monkeypatch.setattr(job_run, "_TRY_AGAIN_S", 0.01)
    monkeypatch.setattr(dispatch, "_RELEASE_S", 60.0)
    async with AsyncExitStack() as stack:
        yield Bench(database, stack)


async def test_job_is_trained_published_and_told(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), progress(1), Validated(1, 1.5), checkpoint(1), progress(2), finished()))
    await bench.start(fine_tuner)
    done = await bench.until_final(job)
    assert (done.status, done.manifest, done.step, done.trained_tokens) == (JobStatus.SUCCEEDED, MANIFEST, 2, 200)
    assert done.training_time_s == 4.0
    assert await bench.messages(job) == [
        f"Created fine-tuning job: {job.id}",
        "Fine-tuning job started: 3 documents, 300 tokens, 2 steps",
        "Step 1/2: training loss=2.5000",
        "Step 1/2: validation loss=1.5000",
        "Checkpoint saved after step 1",
        "Step 2/2: training loss=2.5000",
        f"New fine-tuned model created: {job.model_id}",
        "The job has successfully completed",
    ]
    [request] = fine_tuner.requests
    assert (request.job_id, request.fence, request.training_data, request.checkpoint) == (job.id, 1, "d" * 64, None)


async def test_progress_is_stored_once_a_second_and_the_last_always(bench: Bench) -> None:
    job = await add_job(bench.database)
    steps = [progress(step, total_steps=99) for step in range(1, 100)]
    await bench.start(FakeFineTuner((started(), *steps, finished())))
    assert (await bench.until_final(job)).step == 99
    metrics = await rows(bench.database, "job_events", job=job.id, type="metrics")
    assert [row["data"]["step"] for row in metrics] == [99]


class Slow(FakeFineTuner):
    """Its events come a second apart."""

    def __init__(self, clock: Clock, script: Script) -> None:
        super().__init__(script)
        self._clock = clock

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        async for event in super().train(request):
            self._clock.at += 1.0
            yield event


async def test_history_of_a_long_training_is_thinned_and_its_progress_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_run, "_FIRST_TOLD", 20)
    steps = [progress(step, total_steps=99) for step in range(1, 56)]
    await bench.start(Slow(bench.clock, (started(), *steps, Silence.FOREVER)), lease_s=1e6)
    job = await add_job(bench.database)
    await bench.until(job, lambda job: job.step == 55)
    metrics = await rows(bench.database, "job_events", job=job.id, type="metrics")
    assert [row["data"]["step"] for row in metrics] == [*range(1, 21), 30, 40, 50]


async def test_last_step_is_told_always(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "_FIRST_TOLD", 1)
    await bench.start(
        Slow(bench.clock, (started(), *(progress(step, total_steps=3) for step in (1, 2, 3)), finished()))
    )
    job = await add_job(bench.database)
    await bench.until_final(job)
    metrics = await rows(bench.database, "job_events", job=job.id, type="metrics")
    assert [row["data"]["step"] for row in metrics] == [1, 3]


async def test_progress_that_waited_is_stored_when_the_worker_has_nothing_new(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner(itertools.chain((started(), progress(1)), itertools.repeat(Alive())))
    await bench.start(fine_tuner)
    await bench.until(job, lambda job: job.started_at is not None)
    bench.clock.at += 1
    assert (await bench.until(job, lambda job: job.step == 1)).status is JobStatus.RUNNING


@pytest.mark.parametrize(
    "error",
    [
        WorkerLost("it was killed"),
        CorruptObject("other bytes"),
        RuntimeError("secret text of a document"),
    ],
)
async def test_worker_that_is_lost_is_followed_by_another_from_the_last_checkpoint(
    bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), progress(1), checkpoint(1), error), SUCCESS)
    await bench.start(fine_tuner)
    waiting = await bench.until(job, lambda job: job.attempts == 1)
    assert (waiting.status, waiting.not_before) == (JobStatus.QUEUED, bench.clock.at + 2)
    assert len(fine_tuner.requests) == 1
    bench.clock.at += 2
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED
    assert [(request.fence, request.checkpoint) for request in fine_tuner.requests] == [(1, None), (2, f"{1:064x}")]
    while fine_tuner.num_open:
        await asyncio.sleep(0.005)
    assert "secret" not in caplog.text and "secret" not in str(await bench.messages(job))


@pytest.mark.parametrize("error", [Overloaded("no room", 60.0), ObjectStoreError("no answer")])
async def test_job_that_cannot_be_run_at_the_moment_waits_however_often(bench: Bench, error: Exception) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner(*[(started(), error)] * 6, SUCCESS)
    await bench.start(fine_tuner)
    for number in range(1, 7):
        waiting = await bench.until(
            job,
            lambda job, number=number: (job.status, job.fence) == (JobStatus.QUEUED, number),  # type: ignore[misc]
        )
        assert waiting.attempts == 0
        bench.clock.at += 300
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED


async def test_job_whose_workers_come_no_further_fails(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), progress(1), WorkerLost("it was killed")))
    await bench.start(fine_tuner)
    for attempt in (1, 2):
        await bench.until(job, lambda job, attempt=attempt: job.attempts == attempt)  # type: ignore[misc]
        bench.clock.at += 100
    done = await bench.until_final(job)
    assert (done.status, len(fine_tuner.requests)) == (JobStatus.FAILED, 3)
    assert done.error is not None and done.error.code == "worker_lost"


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (InvalidTrainingData("nothing is left", "training_data"), "invalid_training_data", "training_data"),
        (TrainingFailed("the loss is no number"), "training_failed", None),
        (ModelNotFound("base"), "model_not_found", "model"),
    ],
)
async def test_failure_that_would_come_again_is_the_end(
    bench: Bench, error: Exception, code: str, param: str | None
) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), error))
    await bench.start(fine_tuner)
    done = await bench.until_final(job)
    assert done.status is JobStatus.FAILED and done.error is not None
    assert (done.error.code, done.error.param, len(fine_tuner.requests)) == (code, param, 1)


async def test_silent_worker_is_ended_and_followed_by_another(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), progress(1), Silence.FOREVER), SUCCESS)
    await bench.start(fine_tuner, hang_s=0.05)
    lost = await bench.until(job, lambda job: job.attempts == 1)
    assert fine_tuner.num_open == 0
    assert lost.step == 1  # its last progress was not lost with it
    bench.clock.at += 2
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED
    assert any("silent" in message for message in await bench.messages(job))


async def test_worker_that_ends_without_a_word_is_lost(bench: Bench) -> None:
    job = await add_job(bench.database)
    await bench.start(FakeFineTuner((started(),), SUCCESS))
    await bench.until(job, lambda job: job.attempts == 1)


@pytest.mark.parametrize("transition", [transitions.cancelled, transitions.paused])
async def test_job_that_its_owner_stops_has_no_worker_any_more(
    bench: Bench, transition: Callable[[Job, float], Change]
) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), Silence.FOREVER))
    await bench.start(fine_tuner)
    await fine_tuner.silent.wait()
    await SqlJobs(bench.database).change(job.account, job.id, lambda job: transition(job, bench.clock.at))
    while fine_tuner.num_open:
        await asyncio.sleep(0.005)
    assert len(fine_tuner.requests) == 1


async def test_resumed_job_goes_on_from_its_checkpoint(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), checkpoint(1), Silence.FOREVER), SUCCESS)
    await bench.start(fine_tuner)
    await fine_tuner.silent.wait()
    for transition in (transitions.paused, transitions.resumed):
        await SqlJobs(bench.database).change(
            job.account,
            job.id,
            lambda job, transition=transition: transition(job, bench.clock.at),  # type: ignore[misc]
        )
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED
    assert fine_tuner.requests[1].checkpoint == f"{1:064x}"


async def test_nudged_dispatcher_looks_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LOOK_S", 1000.0)
    dispatcher = await bench.start(FakeFineTuner())
    await asyncio.sleep(0.02)  # so that it waits
    job = await add_job(bench.database)
    dispatcher.nudge()
    await bench.until_final(job)


async def test_next_job_starts_when_one_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [await add_job(bench.database) for _ in range(3)]
    monkeypatch.setattr(dispatch, "LOOK_S", 1000.0)
    await bench.start(FakeFineTuner(), max_jobs=1)
    for job in jobs:
        await bench.until_final(job)


async def test_dispatcher_that_stops_leaves_its_jobs_to_the_next(bench: Bench) -> None:
    job = await add_job(bench.database)
    config = FineTuningConfig(**CONFIG)
    silent = FakeFineTuner((started(), checkpoint(1), Silence.FOREVER))
    dispatcher = Dispatcher(SqlJobQueue(bench.database, config), silent, config, worker="old", now=bench.clock)
    async with dispatcher.running():
        await silent.silent.wait()
    assert silent.num_open == 0
    left = await stored(bench.database, job)
    assert (left.status, left.attempts, left.worker) == (JobStatus.QUEUED, 0, None)
    fine_tuner = FakeFineTuner()
    await bench.start(fine_tuner)
    await bench.until_final(job)
    assert fine_tuner.requests[0].checkpoint == f"{1:064x}"


async def test_job_of_a_dead_dispatcher_is_taken_over_and_the_dead_one_s_worker_is_stale(bench: Bench) -> None:
    """The old dispatcher sleeps through its lease, as a stopped process does, and finds its job gone."""
    job = await add_job(bench.database)
    config = FineTuningConfig(**CONFIG)
    old_tuner = FakeFineTuner((started(), Silence.FOREVER))
    old = Dispatcher(SqlJobQueue(bench.database, config), old_tuner, config, worker="old", now=bench.clock)
    await old.look()
    await old_tuner.silent.wait()
    bench.clock.at += config.lease_s
    new = await bench.start(FakeFineTuner())
    while (await stored(bench.database, job)).status is not JobStatus.SUCCEEDED:
        bench.clock.at += 1
        await new.look()
    assert old_tuner.num_open == 1
    await old.look()
    while old_tuner.num_open:
        await asyncio.sleep(0.005)


async def test_job_is_not_taken_over_from_one_that_has_had_no_time_to_say_that_it_lives(bench: Bench) -> None:
    """As after an outage of the database, when all leases are over at once."""
    config = FineTuningConfig(**CONFIG)
    queue = SqlJobQueue(bench.database, config)
    first_tuner, second_tuner = FakeFineTuner((started(), Silence.FOREVER)), FakeFineTuner()
    first = Dispatcher(queue, first_tuner, config, worker="first", now=bench.clock)
    second = Dispatcher(queue, second_tuner, config, worker="second", now=bench.clock)
    await add_job(bench.database)
    await first.look()
    for _ in range(10):
        bench.clock.at += 1
        await second.look()
    bench.clock.at += 1000
    await second.look()
    await first.look()
    for _ in range(10):
        bench.clock.at += 1
        await second.look()
    await first_tuner.silent.wait()
    assert (first_tuner.num_open, second_tuner.requests) == (1, [])


async def test_lease_is_renewed_while_the_job_runs(bench: Bench) -> None:
    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner((started(), Silence.FOREVER))
    await bench.start(fine_tuner)
    await fine_tuner.silent.wait()
    for _ in range(5):
        bench.clock.at += 20
        await bench.until(job, lambda job: job.lease_until == bench.clock.at + 30)
    assert len(fine_tuner.requests) == 1


class BrokenQueue(SqlJobQueue):
    """Does not answer while `is_down`. refused: what was asked then."""

    is_down = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.refused: set[str] = set()

    async def claim(self, *args: Any, **kwargs: Any) -> Claim | Job | None:
        self._check("claim")
        return await super().claim(*args, **kwargs)

    async def held(self, worker: str) -> Any:
        self._check("held")
        return await super().held(worker)

    async def renew(self, worker: str, lease_until: float) -> Any:
        self._check("renew")
        return await super().renew(worker, lease_until)

    async def advance(self, job_id: str, fence: int, transition: Callable[[Job], Change]) -> Job:
        self._check("advance")
        return await super().advance(job_id, fence, transition)

    def _check(self, name: str) -> None:
        if self.is_down:
            self.refused.add(name)
            raise StorageError("the database does not answer")


async def test_outage_of_the_database_is_waited_through(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    queue = BrokenQueue(bench.database, FineTuningConfig(**CONFIG))
    job = await add_job(bench.database)
    gate = asyncio.Event()

    class Gated(FakeFineTuner):
        async def train(self, request: Any) -> Any:
            async for event in super().train(request):
                if event == checkpoint(1):
                    await gate.wait()
                yield event

    fine_tuner = Gated()
    await bench.start(fine_tuner, queue)
    await bench.until(job, lambda job: job.started_at is not None)
    queue.is_down = True
    gate.set()
    bench.clock.at += 1000  # its lease ends meanwhile

    def warnings() -> list[int]:
        return [record.levelno for record in caplog.records if "training goes on" in record.message]

    while "advance" not in queue.refused or not warnings():
        await asyncio.sleep(0.005)
    assert (await stored(bench.database, job)).status is JobStatus.RUNNING
    queue.is_down = False
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED
    assert len(fine_tuner.requests) == 1
    assert warnings() == [logging.WARNING]


async def test_claim_whose_answer_was_lost_is_given_back(bench: Bench) -> None:
    """The database has the claim, and the dispatcher does not know of it: it must not be kept alive for ever."""

    class Forgetful(BrokenQueue):
        async def claim(self, *args: Any, **kwargs: Any) -> Claim | Job | None:
            claim = await super().claim(*args, **kwargs)
            if isinstance(claim, Claim) and claim.job.fence == 1:
                raise StorageError("the connection was lost")
            return claim

    job = await add_job(bench.database)
    fine_tuner = FakeFineTuner()
    await bench.start(fine_tuner, Forgetful(bench.database, FineTuningConfig(**CONFIG)))
    assert (await bench.until_final(job)).status is JobStatus.SUCCEEDED
    assert [request.fence for request in fine_tuner.requests] == [2]


async def test_jobs_that_end_by_themselves_are_counted_by_how_they_end(bench: Bench) -> None:
    failing = (started(), TrainingFailed("the loss is not finite"))
    await bench.start(FakeFineTuner(SUCCESS, failing))
    for _ in range(2):
        await bench.until_final(await add_job(bench.database))
    while (counts := ended(bench)) != {"succeeded": 1, "failed": 1}:
        assert sum(counts.values()) < 2
        await asyncio.sleep(0.005)


async def test_a_run_that_has_ended_its_job_is_not_cancelled_for_it(bench: Bench) -> None:
    """The database has the end, and the run does not know it yet, when the dispatcher finds the job not its own."""

    class Late(SqlJobQueue):
        has_ended, may_answer = asyncio.Event(), asyncio.Event()

        async def advance(self, job_id: str, fence: int, transition: Callable[[Job], Change]) -> Job:
            job = await super().advance(job_id, fence, transition)
            if job.status.is_final:
                self.has_ended.set()
                await self.may_answer.wait()
            return job

    queue = Late(bench.database, FineTuningConfig(**CONFIG))
    await add_job(bench.database)
    dispatcher = await bench.start(FakeFineTuner(), queue)
    await queue.has_ended.wait()
    await dispatcher.look()
    queue.may_answer.set()
    while not ended(bench)["succeeded"]:
        await asyncio.sleep(0.005)


async def test_job_that_fails_as_it_is_taken_over_counts_as_one_that_has_ended(bench: Bench) -> None:
    config = FineTuningConfig(**CONFIG | {"max_attempts": 1})
    queue = SqlJobQueue(bench.database, config)
    job = await add_job(bench.database)
    is_told = asyncio.Event()
    assert await queue.claim("dead", bench.clock(), besides=(), takes_over=True)
    bench.clock.at += 1000  # its lease ends
    dispatcher = Dispatcher(
        queue,
        FakeFineTuner(),
        config,
        worker="alive",
        on_end=is_told.set,
        meter=bench.meter,
        now=bench.clock,
    )
    await dispatcher.look()
    assert not is_told.is_set()  # it has to look for a while without a gap before it takes jobs over
    bench.clock.at += 5
    await dispatcher.look()
    assert (await stored(bench.database, job)).status is JobStatus.FAILED
    assert ended(bench) == {"succeeded": 0, "failed": 1}
    assert is_told.is_set()


def ended(bench: Bench) -> dict[str, float]:
    return {status: bench.meter.total(job_run.JOBS_ENDED, status=status) for status in ("succeeded", "failed")}
