"""Which objects the database names, and what of it has had its time, in SQL."""

from collections.abc import Set

from sqlalchemy import Select, delete, or_, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.stores.database import Database
from serve_app.stores.tables import chores, files, job_checkpoints, job_events, jobs, tuned_models
from serve_app.stores.upsert import insert_new
from serve_app.use_cases.retention import Roots

_MAX_DELETED = 1000
"""At a time, so that nobody waits long for the database."""


class SqlRetention:
    """See `serve_app.use_cases.retention.RetentionStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_due(self, chore: str, now: float, *, period_s: float) -> bool:
        take = update(chores).where(chores.c.name == chore, chores.c.due_at <= now).values(due_at=now + period_s)

        async def work(connection: AsyncConnection) -> bool:
            if await insert_new(connection, chores, {"name": chore, "due_at": now + period_s}):
                return True
            return (await connection.execute(take)).rowcount == 1

        return await self._database.transact(work)

    async def forget_progress(self, ended_before: float) -> None:
        old = select(jobs.c.id).where(jobs.c.finished_at < ended_before)
        checkpoints = delete(job_checkpoints).where(job_checkpoints.c.job.in_(old))
        await self._database.transact(lambda connection: connection.execute(checkpoints))
        is_old = job_events.c.job.in_(old) & (job_events.c.type == "metrics")
        some = select(job_events.c.id).where(is_old).limit(_MAX_DELETED)
        metrics = delete(job_events).where(job_events.c.id.in_(some))
        while (await self._database.transact(lambda connection: connection.execute(metrics))).rowcount:
            pass

    async def roots(self) -> Roots:
        models = select(tuned_models.c.manifest).where(tuned_models.c.deleted_at.is_(None))
        wanted = [
            select(column).where(jobs.c.finished_at.is_(None), column.is_not(None))
            for column in (jobs.c.training_file, jobs.c.validation_file)
        ]
        needed = or_(files.c.deleted_at.is_(None), files.c.id.in_(union(*wanted)))
        async with self._database.read() as connection:
            return Roots(
                manifests=await _strings(connection, models, select(job_checkpoints.c.manifest)),
                blobs=await _strings(
                    connection, select(files.c.digest).where(needed), select(files.c.original).where(needed)
                ),
            )


async def _strings(connection: AsyncConnection, *statements: Select[str]) -> Set[str]:
    return {row[0] for statement in statements for row in await connection.execute(statement)}
