"""Fine-tuning jobs of accounts in SQL."""

from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import InvalidParameter, JobNotFound, PermissionDenied, RateLimited
from serve_app.jobs.job import Job, JobCheckpoint, JobEvent, JobStatus
from serve_app.jobs.transitions import Change
from serve_app.stores import job_rows
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import accounts, job_checkpoints, job_events, jobs

_QUEUE_FULL_RETRY_S = 60.0


class SqlJobs:
    """See `serve_app.use_cases.fine_tuning.JobStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, change: Change, *, most_queued: int) -> bool:
        # Locked, so that no two count at the same time, and that it is not closed meanwhile.
        account = (
            select(accounts.c.closed_at).where(accounts.c.id == change.job.account).with_for_update(key_share=True)
        )

        async def work(connection: AsyncConnection) -> bool:
            if (await connection.execute(account)).scalar() is not None:
                raise PermissionDenied("the account is closed")
            if not await job_rows.add(connection, change):
                return False
            if await _num_queued(connection, change.job.account) > most_queued:
                raise _queue_full(most_queued)
            return True

        return await self._database.transact(work)

    async def require_room(self, account: str, *, most_queued: int) -> None:
        async with self._database.read() as connection:
            if await _num_queued(connection, account) >= most_queued:
                raise _queue_full(most_queued)

    async def get(self, account: str, job_id: str) -> Job:
        async with self._database.read() as connection:
            return await _read(connection, account, job_id)

    async def ended(self, job_ids: Collection[str]) -> Collection[str]:
        statement = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.finished_at.is_not(None))
        async with self._database.read() as connection:
            return (await connection.execute(statement)).scalars().all()

    async def list(self, account: str, *, after: str | None, limit: int, metadata: Mapping[str, str]) -> Sequence[Job]:
        statement = select(jobs).where(owned_by(jobs, account)).limit(limit)
        statement = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        for key, value in metadata.items():
            if '"' in key:  # the paths of SQLite's JSON have no way to write it
                raise InvalidParameter("keys to look for must not hold quotes", "metadata")
            statement = statement.where(jobs.c.metadata[key].as_string() == value)
        if after is not None:
            last = jobs.alias("last")
            place = select(last.c.created_at, last.c.id).where(last.c.id == after, owned_by(last, account))
            statement = statement.where(tuple_(jobs.c.created_at, jobs.c.id) < place.scalar_subquery())
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [job_rows.to_job(row) for row in rows]

    async def change(self, account: str, job_id: str, transition: Callable[[Job], Change]) -> Job:
        async def work(connection: AsyncConnection) -> Job:
            job = await job_rows.read_locked(connection, job_id, account)
            change = transition(job)
            await job_rows.write(connection, job, change)
            return change.job

        return await self._database.transact(work)

    async def events(self, account: str, job_id: str, *, after: int | None, limit: int) -> Sequence[JobEvent]:
        statement = select(job_events).where(job_events.c.job == job_id, owned_by(job_events, account))
        statement = statement.order_by(job_events.c.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(job_events.c.id < after)
        async with self._database.read() as connection:
            await _read(connection, account, job_id)
            rows = (await connection.execute(statement)).all()
        return [job_rows.to_event(row) for row in rows]

    async def checkpoints(self, account: str, job_id: str, *, after: str | None, limit: int) -> Sequence[JobCheckpoint]:
        columns = job_checkpoints.c
        is_its = (columns.job == job_id) & owned_by(job_checkpoints, account)
        statement = select(job_checkpoints).where(is_its).order_by(columns.step.desc()).limit(limit)
        if after is not None:
            last = job_checkpoints.alias("last")
            step = select(last.c.step).where(last.c.job == job_id, owned_by(last, account), last.c.manifest == after)
            statement = statement.where(columns.step < step.scalar_subquery())
        async with self._database.read() as connection:
            await _read(connection, account, job_id)
            rows = (await connection.execute(statement)).all()
        return [job_rows.to_checkpoint(row) for row in rows]


async def _num_queued(connection: AsyncConnection, account: str) -> int:
    """How many jobs of the account wait or are paused."""
    is_queued = jobs.c.finished_at.is_(None) & (jobs.c.status != JobStatus.RUNNING.value)
    number = select(func.count()).where(owned_by(jobs, account), is_queued)
    return int((await connection.execute(number)).scalar_one())


def _queue_full(most_queued: int) -> RateLimited:
    return RateLimited(
        f"an account may have {most_queued} fine-tuning jobs that wait (max_queued_jobs_per_account)",
        _QUEUE_FULL_RETRY_S,
    )


async def _read(connection: AsyncConnection, account: str, job_id: str) -> Job:
    statement = select(jobs).where(jobs.c.id == job_id, owned_by(jobs, account))
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return job_rows.to_job(row)
