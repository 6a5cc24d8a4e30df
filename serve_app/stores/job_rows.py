"""Rows of fine-tuning jobs: read, locked, and written with everything that belongs to a transition."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import JobNotFound
from deployments.training import TrainingParams
from serve_app.jobs.job import Job, JobCheckpoint, JobError, JobEvent, JobStatus, TunedModel
from serve_app.jobs.transitions import Change
from serve_app.stores import outbox
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import job_checkpoints, job_events, jobs, tuned_models
from serve_app.stores.upsert import insert, insert_new

_KEPT_CHECKPOINTS = 3
"""Of each job, as OpenAI keeps. Training goes on from the newest; each may be hundreds of megabytes."""


def to_job(row: Row[Any]) -> Job:
    columns = dict(row._mapping)
    error = columns.pop("error")
    return Job(
        params=TrainingParams(**columns.pop("params")),
        status=JobStatus(columns.pop("status")),
        error=None if error is None else JobError(**error),
        **columns,
    )


def to_event(row: Row[Any]) -> JobEvent:
    return JobEvent(**row._mapping)


def to_checkpoint(row: Row[Any]) -> JobCheckpoint:
    return JobCheckpoint(**row._mapping)


async def read_locked(connection: AsyncConnection, job_id: str, account: str | None = None) -> Job:
    """The job, which nobody else can change before the transaction ends. Raises JobNotFound; with an account, also
    where it is another's."""
    statement = select(jobs).where(jobs.c.id == job_id).with_for_update()
    if account is not None:
        statement = statement.where(owned_by(jobs, account))
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return to_job(row)


async def add(connection: AsyncConnection, change: Change) -> bool:
    """False where there is a job with this id."""
    is_new = await insert_new(connection, jobs, _columns(change.job))
    if is_new:
        await _add_rest(connection, change)
    return is_new


async def write(connection: AsyncConnection, before: Job, change: Change) -> None:
    """The job was read as `before` in this transaction, locked."""
    old = _columns(before)
    differences = {name: value for name, value in _columns(change.job).items() if value != old[name]}
    if differences:
        await connection.execute(update(jobs).where(jobs.c.id == before.id).values(differences))
    await _add_rest(connection, change)


async def _add_rest(connection: AsyncConnection, change: Change) -> None:
    for event in change.events:
        row = {**asdict(event), "data": dict(event.data)}
        del row["id"]
        await connection.execute(job_events.insert().values(row))
    if change.checkpoint is not None:
        await _put_checkpoint(connection, change.checkpoint)
    if change.model is not None:
        await _add_model(connection, change.model)
    for announcement in change.webhooks:
        await outbox.enqueue(connection, announcement)


async def _put_checkpoint(connection: AsyncConnection, checkpoint: JobCheckpoint) -> None:
    """Of the job, it and the `_KEPT_CHECKPOINTS - 1` before it are left. What was saved after later steps could not be
    gone on from, or those steps would not be trained again."""
    row = {**asdict(checkpoint), "metrics": dict(checkpoint.metrics)}
    statement = insert(connection, job_checkpoints).values(row)
    new = {name: row[name] for name in ("manifest", "metrics", "created_at")}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=list(job_checkpoints.primary_key), set_=new)
    )
    columns = job_checkpoints.c
    is_its = columns.job == checkpoint.job
    newest = select(columns.step).where(is_its, columns.step <= checkpoint.step).order_by(columns.step.desc())
    kept = newest.limit(_KEPT_CHECKPOINTS)
    await connection.execute(delete(job_checkpoints).where(is_its, columns.step.not_in(kept)))


async def _add_model(connection: AsyncConnection, model: TunedModel) -> None:
    await connection.execute(tuned_models.insert().values(asdict(model)))


def _columns(job: Job) -> Mapping[str, Any]:
    return {
        **{name: getattr(job, name) for name in Job.__slots__},
        "params": asdict(job.params),
        "metadata": dict(job.metadata),
        "status": job.status.value,
        "error": None if job.error is None else asdict(job.error),
        "progress": None if job.progress is None else dict(job.progress),
    }
