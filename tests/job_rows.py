"""Jobs for tests, as values and as rows, and looks at what the database holds of them."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from sqlalchemy import insert, select

from deployments.training import TrainingParams
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, TrainingFile
from serve_app.stores.database import Database
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.tables import metadata, webhook_endpoints
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.job_queue import Claim

_numbers = count()


class Clock:
    """A time that passes when the test says so."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def make_job(**fields: Any) -> Job:
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "id": f"ftjob-{number:024}",
        "account": "account",
        "key_id": "key",
        "dialect": "totalgpt",
        "base_model": "base",
        "model_id": f"ft_model_{number:016}",
        "name": "",
        "training_file": f"file-{number:024}",
        "params": TrainingParams(),
        "created_at": 1_000_000.0 + number / 1000,
    }
    return Job(**defaults | fields)


def make_claim(job: Job) -> Claim:
    return Claim(job, training_data="d" * 64, validation_data=None, checkpoint=None)


async def add_job(database: Database, **fields: Any) -> Job:
    """A queued job with its file."""
    job = make_job(**fields)
    file = TrainingFile(
        id=job.training_file,
        account=job.account,
        filename="data.jsonl",
        purpose="fine-tune",
        bytes=10,
        digest="d" * 64,
        original="e" * 64,
        num_documents=3,
        created_at=job.created_at,
    )
    await SqlTrainingFiles(database).add(file)
    await SqlJobs(database).add(transitions.created(job), most_queued=100)
    return job


async def add_endpoint(database: Database, account: str, events: Sequence[str]) -> str:
    """A webhook endpoint that subscribed to these events; its id."""
    row = {
        "id": f"whep_{next(_numbers):024}",
        "account": account,
        "url": "https://example.com/hook",
        "events": list(events),
        "secret": b"",
        "created_at": 0.0,
    }
    async with database.write() as connection:
        await connection.execute(insert(webhook_endpoints).values(row))
    return str(row["id"])


async def rows(database: Database, table: str, **conditions: Any) -> Sequence[Mapping[str, Any]]:
    """In the order of their primary keys."""
    columns = metadata.tables[table].c
    statement = select(metadata.tables[table]).order_by(*metadata.tables[table].primary_key)
    statement = statement.where(*(columns[name] == value for name, value in conditions.items()))
    async with database.read() as connection:
        return [dict(row) for row in (await connection.execute(statement)).mappings()]


async def stored(database: Database, job: Job) -> Job:
    return await SqlJobs(database).get(job.account, job.id)
