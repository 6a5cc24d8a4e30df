"""Dispatchers at one queue: whose turn it is, leases, and fences against whoever has lost its claim."""

import pytest

from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobError, JobStatus
from serve_app.jobs.transitions import Change
from serve_app.stores.database import Database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.job_queue import Claim, ClaimLost
from tests.fake_fine_tuner import checkpoint, finished, progress, started
from tests.job_rows import add_job, rows, stored

AT = 2_000_000.0


def make_queue(database: Database, **fields: object) -> SqlJobQueue:
    return SqlJobQueue(database, FineTuningConfig(**{"max_jobs": 10, "max_jobs_per_account": 10} | fields))  # type: ignore[arg-type]


async def claim(queue: SqlJobQueue, worker: str = "w", now: float = AT) -> Claim:
    found = await queue.claim(worker, now, besides=(), takes_over=True)
    assert isinstance(found, Claim)
    return found


async def test_nothing_waits_nothing_is_claimed(database: Database) -> None:
    assert await make_queue(database).claim("w", AT, besides=(), takes_over=True) is None


async def test_claim_carries_what_a_worker_needs(database: Database) -> None:
    queue = make_queue(database)
    job = await add_job(database)
    await SqlTrainingFiles(database).delete(job.account, job.training_file, AT)
    first = await claim(queue)
    assert (first.job.id, first.job.fence, first.training_data, first.checkpoint) == (job.id, 1, "d" * 64, None)
    await queue.advance(first.job.id, first.job.fence, lambda job: transitions.checkpointed(job, AT, checkpoint(9)))
    await queue.advance(first.job.id, first.job.fence, lambda job: transitions.checkpointed(job, AT, checkpoint(10)))
    await queue.advance(first.job.id, first.job.fence, lambda job: transitions.released(job, AT))
    again = await claim(queue)
    assert (again.job.fence, again.checkpoint) == (2, f"{10:064x}")
    request = again.request()
    assert (request.job_id, request.fence, request.model_id) == (job.id, 2, job.model_id)


async def test_oldest_is_first_and_accounts_with_fewer_running_jobs_before_others(database: Database) -> None:
    queue = make_queue(database)
    a1, a2, a3 = [await add_job(database, account="a", created_at=AT - 10 + number) for number in range(3)]
    b1, b2 = [await add_job(database, account="b", created_at=AT - 5 + number) for number in range(2)]
    order = [(await claim(queue)).job.id for _ in range(5)]
    assert order == [job.id for job in (a1, b1, a2, b2, a3)]


async def test_long_backlog_of_one_account_lets_another_be_second(database: Database) -> None:
    queue = make_queue(database, max_jobs=1)
    for number in range(10):
        await add_job(database, account="a", created_at=AT - 100 + number)
    await add_job(database, account="b", created_at=AT - 1)
    served = []
    for number in range(4):
        found = (await claim(queue, now=AT + number)).job
        served.append(found.account)
        await queue.advance(found.id, found.fence, lambda job: transitions.failed(job, AT, JobError("x", "y")))
        if number == 1:  # the more lately served waits, also where it has an older job
            await add_job(database, account="b", created_at=AT - 200)
    assert served == ["a", "b", "a", "b"]


async def test_no_more_run_than_are_allowed_in_all_and_of_one_account(database: Database) -> None:
    queue = make_queue(database, max_jobs=3, max_jobs_per_account=2)
    for account in "aaabb":
        await add_job(database, account=account)
    claims = [await claim(queue) for _ in range(3)]
    assert sorted(found.job.account for found in claims) == ["a", "a", "b"]
    assert await queue.claim("w", AT, besides=(), takes_over=True) is None
    [of_b] = [found for found in claims if found.job.account == "b"]
    await queue.advance(of_b.job.id, of_b.job.fence, lambda job: transitions.released(job, AT + 100))
    assert (await claim(queue)).job.account == "b"  # its other job: the released one waits, and `a` has its two


async def test_account_at_its_bound_leaves_room_for_none_of_its_own(database: Database) -> None:
    queue = make_queue(database, max_jobs=3, max_jobs_per_account=1)
    for _ in range(2):
        await add_job(database)
    await claim(queue)
    assert await queue.claim("w", AT, besides=(), takes_over=True) is None


async def test_job_that_waits_for_its_next_attempt_is_passed_over(database: Database) -> None:
    queue = make_queue(database, retry_s=5.0)
    job = await add_job(database)
    first = await claim(queue)
    config = FineTuningConfig(retry_s=5.0)
    await queue.advance(
        first.job.id, first.job.fence, lambda job: transitions.worker_lost(job, AT, reason="it is gone", config=config)
    )
    assert await queue.claim("w", AT + 4.9, besides=(), takes_over=True) is None
    assert (await claim(queue, now=AT + 5)).job.id == job.id


async def test_jobs_that_one_has_itself_can_be_left_out(database: Database) -> None:
    queue = make_queue(database)
    job = await add_job(database)
    await claim(queue)
    assert await queue.claim("w", AT + 999, besides=[job.id], takes_over=True) is None


async def test_job_whose_lease_is_over_goes_to_another_although_all_places_are_taken(database: Database) -> None:
    queue = make_queue(database, max_jobs=1, lease_s=30.0)
    await add_job(database)
    first = await claim(queue, "old")
    assert await queue.claim("new", AT + 29, besides=(), takes_over=True) is None
    assert await queue.claim("new", AT + 30, besides=(), takes_over=False) is None
    second = await claim(queue, "new", AT + 30)
    assert (second.job.id, second.job.worker, second.job.fence) == (first.job.id, "new", 2)


async def test_job_that_was_left_too_often_fails_and_the_next_is_claimed(database: Database) -> None:
    queue = make_queue(database, max_jobs=1, max_attempts=1, lease_s=30.0)
    left, waiting = await add_job(database), await add_job(database)
    await claim(queue)
    failed = await queue.claim("w", AT + 30, besides=(), takes_over=True)
    assert isinstance(failed, Job)
    assert (failed.id, failed.status) == (left.id, JobStatus.FAILED)
    assert await stored(database, left) == failed
    assert (await claim(queue, now=AT + 30)).job.id == waiting.id


async def test_renewed_lease_keeps_the_job(database: Database) -> None:
    queue = make_queue(database, lease_s=30.0)
    job = await add_job(database)
    await claim(queue)
    assert await queue.renew("w", AT + 60) == {job.id: 1}
    assert await queue.renew("other", AT + 99) == {}
    assert await queue.claim("other", AT + 59, besides=(), takes_over=True) is None
    assert await queue.held("w") == {job.id: 1}


@pytest.mark.parametrize("transition", [transitions.cancelled, transitions.paused])
async def test_job_that_its_owner_stops_is_not_held_any_more(database: Database, transition: object) -> None:
    queue = make_queue(database)
    job = await add_job(database)
    await claim(queue)
    await SqlJobs(database).change(job.account, job.id, lambda job: transition(job, AT))  # type: ignore[operator]
    assert await queue.held("w") == {}
    assert await queue.renew("w", AT + 60) == {}
    assert await queue.claim("w", AT + 99, besides=(), takes_over=True) is None


def from_worker(_job: Job) -> Change:
    raise AssertionError("the transition of a stale claim must not even be tried")


async def test_stale_claim_changes_nothing(database: Database) -> None:
    queue = make_queue(database, lease_s=30.0)
    job = await add_job(database)
    stale = await claim(queue, "old")
    await claim(queue, "new", AT + 30)
    before = {name: await rows(database, name) for name in ("jobs", "job_events", "job_checkpoints", "tuned_models")}
    transitions_of_a_worker = (
        lambda job: transitions.started(job, AT, started()),
        lambda job: transitions.progressed(job, AT, progress(1), training_time_s=1.0),
        lambda job: transitions.checkpointed(job, AT, checkpoint(1)),
        lambda job: transitions.published(job, AT, finished(), training_time_s=1.0),
        lambda job: transitions.failed(job, AT, JobError("x", "y")),
        lambda job: transitions.released(job, AT),
    )
    for transition in transitions_of_a_worker:
        with pytest.raises(ClaimLost):
            await queue.advance(stale.job.id, stale.job.fence, transition)
    assert await queue.renew("old", AT + 999) == {}
    assert before == {name: await rows(database, name) for name in before}
    assert (await stored(database, job)).worker == "new"


async def test_claim_from_before_a_pause_stays_stale_after_the_resume(database: Database) -> None:
    queue, jobs = make_queue(database), SqlJobs(database)
    job = await add_job(database)
    stale = await claim(queue)
    for transition in (transitions.paused, transitions.resumed):
        await jobs.change(job.account, job.id, lambda job, transition=transition: transition(job, AT))  # type: ignore[misc]
    with pytest.raises(ClaimLost):
        await queue.advance(stale.job.id, stale.job.fence, from_worker)
    await claim(queue)
    with pytest.raises(ClaimLost):
        await queue.advance(stale.job.id, stale.job.fence, from_worker)
