"""Accounts and the credit granted to them, in SQL."""

from collections.abc import Sequence

from sqlalchemy import Update, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import transitions
from serve_app.stores import audit as audit_store
from serve_app.stores import job_rows
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import accounts, credit_grants, jobs
from serve_app.stores.upsert import insert_new
from serve_app.use_cases.accounts import Account
from serve_app.use_cases.audit import AuditEntry


class SqlAccountStore:
    """See `serve_app.use_cases.accounts.AccountStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, account: Account, audit: AuditEntry) -> bool:
        row = {
            "id": account.id,
            "name": account.name,
            "created_at": account.created_at,
            "closed_at": account.closed_at,
            "credit": account.credit,
            "reserved": account.reserved,
        }

        async def work(connection: AsyncConnection) -> bool:
            if not await insert_new(connection, accounts, row):
                return False
            if account.credit is not None:
                await _add_grant(connection, account.id, account.credit, "", audit.at)
            await audit_store.record(connection, audit)
            return True

        return await self._database.transact(work)

    async def get(self, account_id: str) -> Account | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(accounts).where(accounts.c.id == account_id))).one_or_none()
        return None if row is None else Account(**row._mapping)

    async def list(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Account]:
        statement = select(accounts).order_by(accounts.c.id).limit(limit)
        if after is not None:
            statement = statement.where(accounts.c.id > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [Account(**row._mapping) for row in rows]

    async def rename(self, account_id: str, name: str, audit: AuditEntry) -> bool:
        return await self._update(update(accounts).where(accounts.c.id == account_id).values(name=name), audit)

    async def close(self, account_id: str, closed_at: float, audit: AuditEntry) -> bool:
        # Locked before its jobs are looked for: nobody adds one until it is closed.
        found = select(accounts.c.closed_at).where(accounts.c.id == account_id).with_for_update(key_share=True)
        close = update(accounts).where(accounts.c.id == account_id).values(closed_at=closed_at)

        async def work(connection: AsyncConnection) -> bool:
            account = (await connection.execute(found)).one_or_none()
            if account is None:
                return False
            if account.closed_at is None:
                # Before the closing, after which webhooks are told nothing.
                await _cancel_jobs(connection, account_id, closed_at)
                await connection.execute(close)
            await audit_store.record(connection, audit)
            return True

        return await self._database.transact(work)

    async def grant(self, account_id: str, amount: int, note: str, audit: AuditEntry) -> Account | None:
        statement = (
            update(accounts)
            .where(accounts.c.id == account_id)
            .values(credit=func.coalesce(accounts.c.credit, 0) + amount)
            .returning(accounts)
        )

        async def work(connection: AsyncConnection) -> Account | None:
            row = (await connection.execute(statement)).one_or_none()
            if row is None:
                return None
            await _add_grant(connection, account_id, amount, note, audit.at)
            await audit_store.record(connection, audit)
            return Account(**row._mapping)

        return await self._database.transact(work)

    async def set_unlimited(self, account_id: str, audit: AuditEntry) -> bool:
        return await self._update(update(accounts).where(accounts.c.id == account_id).values(credit=None), audit)

    async def _update(self, statement: Update, audit: AuditEntry) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            is_found = (await connection.execute(statement)).rowcount == 1
            if is_found:
                await audit_store.record(connection, audit)
            return is_found

        return await self._database.transact(work)


async def _cancel_jobs(connection: AsyncConnection, account_id: str, at: float) -> None:
    is_open = owned_by(jobs, account_id) & jobs.c.finished_at.is_(None)
    for job_id in (await connection.execute(select(jobs.c.id).where(is_open).order_by(jobs.c.id))).scalars().all():
        job = await job_rows.read_locked(connection, job_id)
        if not job.status.is_final:  # it has ended at this moment
            await job_rows.write(connection, job, transitions.cancelled(job, at))


async def _add_grant(connection: AsyncConnection, account_id: str, amount: int, note: str, at: float) -> None:
    await connection.execute(credit_grants.insert().values(account=account_id, amount=amount, note=note, created_at=at))
