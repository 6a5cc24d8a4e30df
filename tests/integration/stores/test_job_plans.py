"""What is asked of jobs again and again finds its rows by an index, however many jobs have ended."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict

import pytest
from sqlalchemy import insert, text

from deployments.training import TrainingParams
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.stores.database import Database, open_database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.tables import accounts, files, job_checkpoints, job_events, jobs
from serve_app.stores.training_files import SqlTrainingFiles
from tests.databases import run_apart
from tests.fake_fine_tuner import progress
from tests.integration.stores.plans import Plans, explain, recorded
from tests.job_rows import make_job

NUM_JOBS = 6000
NUM_ACCOUNTS = 300
NUM_OPEN = 20

Query = Callable[[Database], Awaitable[object]]


@pytest.fixture(scope="module")
def filled_url(shared_database_url: str) -> str:
    run_apart(fill(shared_database_url))
    return shared_database_url


async def fill(url: str) -> None:
    """All jobs have ended but a few, half of which run."""

    def account(number: int) -> str:
        return f"account-{number % NUM_ACCOUNTS}"

    def job(number: int) -> dict[str, object]:
        is_open = number >= NUM_JOBS - NUM_OPEN
        is_running = is_open and number % 2 == 0
        return {
            "id": f"job-{number}",
            "account": account(number),
            "key_id": "key",
            "dialect": "totalgpt",
            "base_model": "base",
            "model_id": f"model-{number}",
            "name": "",
            "training_file": f"file-{number}",
            "params": asdict(TrainingParams()),
            "metadata": {},
            "status": "running" if is_running else "queued" if is_open else "succeeded",
            "created_at": float(number),
            "finished_at": None if is_open else float(number),
            "worker": "worker" if is_running else None,
            "lease_until": 1e9 if is_running else None,
            "fence": 1,
            "claimed_at": float(number) if is_running or not is_open else None,
        }

    place = {"job": "", "account": "account-1"}
    rows = {
        accounts: [
            {"id": f"account-{number}", "name": "", "created_at": 0.0, "reserved": 0} for number in range(NUM_JOBS)
        ],
        files: [
            {
                "id": f"file-{number}",
                "account": account(number),
                "filename": "f",
                "purpose": "fine-tune",
                "bytes": 1,
                "digest": "d",
                "original": "o",
                "num_documents": 1,
                "created_at": float(number),
            }
            for number in range(NUM_JOBS)
        ],
        jobs: [job(number) for number in range(NUM_JOBS)],
        job_events: [
            {**place, "job": f"job-{number}", "at": 0.0, "level": "info", "type": "message", "message": "", "data": {}}
            for number in range(NUM_JOBS)
        ],
        job_checkpoints: [
            {**place, "job": f"job-{number}", "step": 1, "manifest": "m", "metrics": {}, "created_at": 0.0}
            for number in range(NUM_JOBS)
        ],
    }
    async with open_database(url) as database, database.write() as connection:
        for table, values in rows.items():
            await connection.execute(insert(table), values)
        await connection.execute(text("ANALYZE"))


def queue(database: Database) -> SqlJobQueue:
    return SqlJobQueue(database, FineTuningConfig(max_jobs=100, max_jobs_per_account=100))


async def run_a_job(database: Database) -> None:
    claim = await queue(database).claim("new", 1e8, besides=("job-1",), takes_over=True)
    assert claim is not None
    await queue(database).advance(
        claim.job.id, claim.job.fence, lambda job: transitions.progressed(job, 1e8, progress(1), training_time_s=1.0)
    )


async def add_a_job(database: Database) -> None:
    job = make_job(account="account-7")
    assert await SqlJobs(database).add(transitions.created(job), most_queued=10)


QUERIES: dict[str, Query] = {
    "a job that is run": run_a_job,
    "a new job": add_a_job,
    "what a dispatcher holds": lambda database: queue(database).held("worker"),
    "a lease that is renewed": lambda database: queue(database).renew("worker", 1e9),
    "the jobs of an account": lambda database: SqlJobs(database).list(
        "account-7", after="job-3007", limit=10, metadata={}
    ),
    "which of some have ended": lambda database: SqlJobs(database).ended(["job-7", "job-3007"]),
    "a job": lambda database: SqlJobs(database).get("account-7", "job-7"),
    "the events of a job": lambda database: SqlJobs(database).events("account-1", "job-1", after=10**6, limit=10),
    "the checkpoints of a job": lambda database: SqlJobs(database).checkpoints(
        "account-1", "job-1", after=None, limit=10
    ),
    "the files of an account": lambda database: SqlTrainingFiles(database).list(
        "account-7", after="file-3007", limit=10, purpose=None, oldest_first=False
    ),
}


@pytest.mark.parametrize("name", list(QUERIES))
async def test_no_table_is_read_from_one_end_to_the_other(filled: Database, name: str) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await QUERIES[name](filled)
    await explain(filled, plans)
    assert plans.plans
    assert plans.scanned == set(), plans.plans
