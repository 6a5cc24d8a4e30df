"""Fine-tuning jobs as dispatchers share them, in SQL."""

from collections.abc import Callable, Collection, Mapping

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobStatus
from serve_app.jobs.transitions import Change
from serve_app.stores import job_rows
from serve_app.stores.database import Database
from serve_app.stores.locks import alone
from serve_app.stores.tables import accounts, files, job_checkpoints, jobs
from serve_app.use_cases.job_queue import Claim, ClaimLost

_columns = jobs.c
_IS_OPEN = _columns.finished_at.is_(None)  # few of many; they have an index of their own
_IS_CLOSED = exists().where(accounts.c.id == _columns.account, accounts.c.closed_at.is_not(None))
_IS_RUNNING = and_(_IS_OPEN, _columns.status == JobStatus.RUNNING.value)


class SqlJobQueue:
    """See `serve_app.use_cases.job_queue.JobQueue`."""

    def __init__(self, database: Database, config: FineTuningConfig) -> None:
        self._database = database
        self._config = config

    async def claim(self, worker: str, now: float, *, besides: Collection[str], takes_over: bool) -> Claim | Job | None:
        is_expired = and_(_IS_RUNNING, _columns.lease_until <= now, _columns.id.not_in(besides), literal(takes_over))
        is_due = and_(
            _IS_OPEN,
            _columns.status == JobStatus.QUEUED.value,
            _columns.not_before <= now,
            _columns.id.not_in(besides),
            ~_IS_CLOSED,
        )
        # Most often there is nothing to claim, and nobody need wait for that.
        anything = select(exists().where(_IS_OPEN, or_(is_expired, is_due)))
        async with self._database.read() as connection:
            if not (await connection.execute(anything)).scalar_one():
                return None

        async def work(connection: AsyncConnection) -> Claim | Job | None:
            await alone(connection, "claiming fine-tuning jobs")
            while (job_id := await self._next(connection, is_expired, is_due)) is not None:
                job = await job_rows.read_locked(connection, job_id)
                if not transitions.is_claimable(job, now):  # its owner has just cancelled or paused it
                    continue
                change = transitions.claimed(job, now, worker=worker, config=self._config)
                await job_rows.write(connection, job, change)
                return change.job if change.job.status.is_final else await _claim(connection, change.job)
            return None

        return await self._database.transact(work)

    async def renew(self, worker: str, lease_until: float) -> Mapping[str, int]:
        statement = (
            update(jobs)
            .where(_IS_RUNNING, _columns.worker == worker)
            .values(lease_until=lease_until)
            .returning(_columns.id, _columns.fence)
        )

        async def work(connection: AsyncConnection) -> Mapping[str, int]:
            return {row.id: row.fence for row in await connection.execute(statement)}

        return await self._database.transact(work)

    async def held(self, worker: str) -> Mapping[str, int]:
        statement = select(_columns.id, _columns.fence).where(_IS_RUNNING, _columns.worker == worker)
        async with self._database.read() as connection:
            return {row.id: row.fence for row in await connection.execute(statement)}

    async def advance(self, job_id: str, fence: int, transition: Callable[[Job], Change]) -> Job:
        async def work(connection: AsyncConnection) -> Job:
            job = await job_rows.read_locked(connection, job_id)
            if (job.status, job.fence) != (JobStatus.RUNNING, fence):
                raise ClaimLost(job_id)
            change = transition(job)
            await job_rows.write(connection, job, change)
            return change.job

        return await self._database.transact(work)

    async def _next(
        self, connection: AsyncConnection, is_expired: ColumnElement[bool], is_due: ColumnElement[bool]
    ) -> str | None:
        """The id of the job whose turn it is: one that was left, which has its place among the running ones already;
        else, where there is room, the oldest of the account that has the fewest running; of accounts with equally many,
        the one that was given a worker the longest time ago, or never."""
        left = select(_columns.id).where(is_expired).order_by(_columns.lease_until, _columns.id).limit(1)
        if (job_id := (await connection.execute(left)).scalar()) is not None:
            return str(job_id)
        num_running = select(func.count()).select_from(jobs).where(_IS_RUNNING)
        if (await connection.execute(num_running)).scalar_one() >= self._config.max_jobs:
            return None
        found = (await connection.execute(_fairest(is_due, self._config.max_jobs_per_account))).scalar()
        return None if found is None else str(found)


def _fairest(is_due: ColumnElement[bool], max_per_account: int) -> Select[str]:
    of_account = (
        select(_columns.account, func.count().label("number")).where(_IS_RUNNING).group_by(_columns.account).subquery()
    )
    number = func.coalesce(of_account.c.number, 0)
    each = jobs.alias("each")
    last_turn = select(func.max(each.c.claimed_at)).where(each.c.account == _columns.account).scalar_subquery()
    return (
        select(_columns.id)
        .outerjoin(of_account, of_account.c.account == _columns.account)
        .where(is_due, number < max_per_account)
        .order_by(number, last_turn.nulls_first(), _columns.created_at, _columns.id)
        .limit(1)
    )


async def _claim(connection: AsyncConnection, job: Job) -> Claim:
    """What a worker needs. Deleted files are found too: jobs that were created from them go on."""
    wanted = [file_id for file_id in (job.training_file, job.validation_file) if file_id is not None]
    digests = {
        row.id: row.digest
        for row in await connection.execute(select(files.c.id, files.c.digest).where(files.c.id.in_(wanted)))
    }
    last = (
        select(job_checkpoints.c.manifest)
        .where(job_checkpoints.c.job == job.id)
        .order_by(job_checkpoints.c.step.desc())
        .limit(1)
    )
    return Claim(
        job=job,
        training_data=digests[job.training_file],
        validation_data=None if job.validation_file is None else digests[job.validation_file],
        checkpoint=(await connection.execute(last)).scalar(),
    )
