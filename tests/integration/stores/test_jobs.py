"""Jobs of accounts in SQL: what is stored is what was given, each account sees its own, transitions are whole."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from deployments.errors import InvalidParameter, InvalidRequest, JobNotFound
from deployments.training import TrainingParams
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobError, JobStatus
from serve_app.jobs.transitions import Change
from serve_app.stores.database import Database
from serve_app.stores.jobs import SqlJobs
from tests.fake_fine_tuner import checkpoint, finished, progress
from tests.job_rows import add_endpoint, add_job, make_job, rows

CONFIG = FineTuningConfig()
AT = 2_000_000.0


@pytest.fixture
def jobs(database: Database) -> SqlJobs:
    return SqlJobs(database)


def claimed(job: Job) -> Change:
    return transitions.claimed(job, AT, worker="worker", config=CONFIG)


async def test_every_field_comes_back_as_it_was_stored(jobs: SqlJobs) -> None:
    job = make_job(
        params=TrainingParams(epochs=7, learning_rate=1e-3, batch_size=4, validation_split=0.1),
        metadata={"team": "blue", "größe": "é"},
        validation_file="file-2",
        error=JobError("code", "why", "field"),
        started_at=1.5,
        finished_at=2.5,
        worker="w",
        lease_until=3.5,
        fence=7,
        attempts=2,
        step=5,
        total_steps=9,
        progress={"loss": 1.25, "seconds_left": 3.0},
        trained_tokens=2**40,
        training_time_s=9.5,
        manifest="f" * 64,
    )
    await jobs.add(Change(job), most_queued=100)
    assert await jobs.get(job.account, job.id) == job


async def test_job_is_not_there_for_another_account(database: Database, jobs: SqlJobs) -> None:
    job = await add_job(database)
    for call in (
        jobs.get("other", job.id),
        jobs.change("other", job.id, lambda job: transitions.cancelled(job, AT)),
        jobs.events("other", job.id, after=None, limit=5),
        jobs.checkpoints("other", job.id, after=None, limit=5),
    ):
        with pytest.raises(JobNotFound):
            await call
    assert await jobs.list("other", after=None, limit=5, metadata={}) == []
    assert (await jobs.get(job.account, job.id)).status is JobStatus.QUEUED


async def test_those_that_have_ended_are_told_of_whosever_they_are(database: Database, jobs: SqlJobs) -> None:
    ids = []
    for number in range(3):
        job = await add_job(database, account=f"account-{number}")
        ids.append(job.id)
        if number:
            await jobs.change(job.account, job.id, lambda job: transitions.cancelled(job, AT))
    assert set(await jobs.ended([*ids[:2], "unknown"])) == {ids[1]}
    assert await jobs.ended([]) == []


async def test_list_is_newest_first_in_pages(database: Database, jobs: SqlJobs) -> None:
    first, second, third = [await add_job(database, created_at=AT + number // 2) for number in range(3)]
    page = await jobs.list("account", after=None, limit=2, metadata={})
    assert page[0] == third
    rest = await jobs.list("account", after=page[1].id, limit=2, metadata={})
    assert {job.id for job in (*page, *rest)} == {first.id, second.id, third.id}
    assert [*page, *rest] == sorted([first, second, third], key=lambda job: (job.created_at, job.id), reverse=True)


async def test_list_can_be_narrowed_to_metadata(database: Database, jobs: SqlJobs) -> None:
    wanted = await add_job(database, metadata={"team": "blue", "it's": "a.b"})
    await add_job(database, metadata={"team": "red"})
    await add_job(database)
    for metadata in ({"team": "blue"}, {"it's": "a.b"}, {"team": "blue", "it's": "a.b"}):
        assert await jobs.list("account", after=None, limit=5, metadata=metadata) == [wanted]
    assert await jobs.list("account", after=None, limit=5, metadata={"team": "green"}) == []
    with pytest.raises(InvalidParameter):
        await jobs.list("account", after=None, limit=5, metadata={'"': "x"})


async def test_transition_stores_its_event_model_and_webhooks(database: Database, jobs: SqlJobs) -> None:
    both = await add_endpoint(database, "account", ["finetune.completed", "fine_tuning.job.succeeded"])
    await add_endpoint(database, "account", ["finetune.failed"])
    await add_endpoint(database, "other", ["finetune.completed"])
    job = await add_job(database, name="mine")
    await jobs.change(job.account, job.id, claimed)
    done = await jobs.change(
        job.account, job.id, lambda job: transitions.published(job, AT, finished(), training_time_s=2.0)
    )
    assert await jobs.get(job.account, job.id) == done
    [model] = await rows(database, "tuned_models")
    assert (model["id"], model["job"], model["name"], model["deployed"]) == (job.model_id, job.id, "mine", True)
    events = await jobs.events(job.account, job.id, after=None, limit=10)
    assert [event.message for event in events][:2] == [
        "The job has successfully completed",
        f"New fine-tuned model created: {job.model_id}",
    ]
    assert {row["type"] for row in await rows(database, "webhook_events")} == {
        "finetune.completed",
        "fine_tuning.job.succeeded",
    }
    assert [row["endpoint"] for row in await rows(database, "webhook_deliveries")] == [both, both]


async def test_transition_that_raises_changes_nothing(database: Database, jobs: SqlJobs) -> None:
    job = await add_job(database)
    cancelled = await jobs.change(job.account, job.id, lambda job: transitions.cancelled(job, AT))
    num_events = len(await rows(database, "job_events"))
    with pytest.raises(InvalidRequest):
        await jobs.change(job.account, job.id, lambda job: transitions.resumed(job, AT))
    assert await jobs.get(job.account, job.id) == cancelled
    assert len(await rows(database, "job_events")) == num_events


async def test_model_that_cannot_be_stored_leaves_the_job_running(database: Database, jobs: SqlJobs) -> None:
    job = await add_job(database)
    running = await jobs.change(job.account, job.id, claimed)

    def published_under_no_name(job: Job) -> Change:
        change = transitions.published(job, AT, finished(), training_time_s=1.0)
        assert change.model is not None
        return replace(change, model=replace(change.model, id=None))  # type: ignore[arg-type]

    with pytest.raises(Exception, match=r"(?i)null"):
        await jobs.change(job.account, job.id, published_under_no_name)
    assert await jobs.get(job.account, job.id) == running
    assert await rows(database, "webhook_events") == []


async def test_events_are_newest_first_in_pages(database: Database, jobs: SqlJobs) -> None:
    job = await add_job(database)
    await jobs.change(job.account, job.id, claimed)
    for step in (1, 2, 3):
        await jobs.change(
            job.account,
            job.id,
            lambda job, step=step: transitions.progressed(job, AT, progress(step), training_time_s=1),  # type: ignore[misc]
        )
    page = await jobs.events(job.account, job.id, after=None, limit=2)
    assert [event.data["step"] for event in page] == [3, 2]
    assert page[0].type == "metrics"
    rest = await jobs.events(job.account, job.id, after=page[-1].id, limit=9)
    assert [event.message[:7] for event in rest] == ["Step 1/", "Created"]


async def test_checkpoints_are_newest_first_and_a_repeated_step_replaces_its_own(
    database: Database, jobs: SqlJobs
) -> None:
    job = await add_job(database)
    await jobs.change(job.account, job.id, claimed)
    for event in (checkpoint(5), checkpoint(10), replace(checkpoint(10), manifest="b" * 64), checkpoint(15)):
        await jobs.change(
            job.account,
            job.id,
            lambda job, event=event: transitions.checkpointed(job, AT, event),  # type: ignore[misc]
        )
    page = await jobs.checkpoints(job.account, job.id, after=None, limit=2)
    assert [(found.step, found.manifest) for found in page] == [(15, f"{15:064x}"), (10, "b" * 64)]
    rest = await jobs.checkpoints(job.account, job.id, after=page[-1].manifest, limit=2)
    assert [(found.step, found.metrics) for found in rest] == [(5, {"loss": 2.0})]


async def test_the_newest_three_checkpoints_of_a_job_are_kept(database: Database, jobs: SqlJobs) -> None:
    job, other = await add_job(database), await add_job(database)
    for each, steps in ((other, [1]), (job, [5, 10, 15, 20, 25])):
        await save(jobs, each, steps)
    assert await saved_steps(jobs, job) == [25, 20, 15]
    assert await saved_steps(jobs, other) == [1]


async def test_training_that_began_again_forgets_what_it_could_not_go_on_from(
    database: Database, jobs: SqlJobs
) -> None:
    """Or it would begin again after each loss until it comes as far."""
    job = await add_job(database)
    await save(jobs, job, [500, 550, 50])
    assert await saved_steps(jobs, job) == [50]
    await save(jobs, job, [100])
    assert await saved_steps(jobs, job) == [100, 50]


async def save(jobs: SqlJobs, job: Job, steps: Sequence[int]) -> None:
    if (await jobs.get(job.account, job.id)).status is JobStatus.QUEUED:
        await jobs.change(job.account, job.id, claimed)
    for step in steps:
        saved = partial(transitions.checkpointed, now=AT, event=checkpoint(step))
        await jobs.change(job.account, job.id, saved)


async def saved_steps(jobs: SqlJobs, job: Job) -> list[int]:
    return [found.step for found in await jobs.checkpoints(job.account, job.id, after=None, limit=10)]
