"""The audit log in SQL."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.stores.database import Database
from serve_app.stores.tables import audit_log
from serve_app.use_cases.audit import AuditEntry, AuditRow


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Adds the entry in the transaction of the act that it tells about."""
    await connection.execute(
        audit_log.insert().values(
            at=entry.at, actor=entry.actor, action=entry.action, target=entry.target, details=dict(entry.details)
        )
    )


class SqlAuditLog:
    """See `serve_app.use_cases.audit.AuditLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, *, before: int | None = None, limit: int = 100) -> Sequence[AuditRow]:
        statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(audit_log.c.id < before)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [AuditRow(row.id, AuditEntry(row.at, row.actor, row.action, row.target, row.details)) for row in rows]
