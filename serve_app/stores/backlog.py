"""What waits in the database, counted over the indexes of what is open. Reads only."""

from sqlalchemy import case, func, select

from serve_app.jobs.job import JobStatus
from serve_app.stores.database import Database
from serve_app.stores.tables import jobs, ledger, webhook_deliveries
from serve_app.use_cases.backlog import Backlog


class SqlBacklog:
    """See `serve_app.use_cases.backlog.BacklogStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def backlog(self, now: float) -> Backlog:
        is_due = (jobs.c.status == JobStatus.QUEUED.value) & (jobs.c.not_before <= now)
        open_jobs = (
            select(jobs.c.status, func.count(), func.min(case((is_due, jobs.c.created_at))))
            .where(jobs.c.finished_at.is_(None))
            .group_by(jobs.c.status)
        )
        pending = select(func.count(), func.min(webhook_deliveries.c.next_at)).where(
            webhook_deliveries.c.next_at.is_not(None)
        )
        reserved = select(func.count(), func.sum(ledger.c.held), func.min(ledger.c.created_at)).where(
            ledger.c.settled_at.is_(None)
        )
        async with self._database.read() as connection:
            by_status = (await connection.execute(open_jobs)).all()
            deliveries, due_at = (await connection.execute(pending)).one()
            reservations, held, reserved_since = (await connection.execute(reserved)).one()
        return Backlog(
            jobs={status: number for status, number, _ in by_status},
            queued_since=min((since for *_, since in by_status if since is not None), default=None),
            deliveries=deliveries,
            due_at=due_at,
            reservations=reservations,
            held=int(held or 0),  # a sum is NUMERIC in PostgreSQL and comes as Decimal
            reserved_since=reserved_since,
        )
