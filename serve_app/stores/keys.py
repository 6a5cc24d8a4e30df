"""Key records in SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, Update, bindparam, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import NotFound
from serve_app.stores import audit as audit_store
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import accounts, keys
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.callers import Dialect, Scope
from serve_app.use_cases.key_records import KeyGrant, KeyRecord, describe_grant, parse_limits


class SqlKeyStore:
    """The key store of a service; see `serve_app.use_cases.key_records.KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: KeyRecord, audit: AuditEntry) -> None:
        row = {
            "id": record.id,
            "account": record.account,
            "name": record.name,
            "digest": record.digest,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
            "revoked_at": record.revoked_at,
            "old_digest": record.old_digest,
            "old_valid_until": record.old_valid_until,
            "last_used_at": record.last_used_at,
            "spent": record.spent,
            "reserved": record.reserved,
            **describe_grant(record.grant),
        }
        # Locked, so that the account cannot be closed before the key is there.
        account = select(accounts.c.closed_at).where(accounts.c.id == record.account).with_for_update()

        async def work(connection: AsyncConnection) -> None:
            found = (await connection.execute(account)).one_or_none()
            if found is None or found.closed_at is not None:
                raise NotFound(f"there is no account {record.account!r}, or it is closed")
            await connection.execute(keys.insert().values(row))
            await audit_store.record(connection, audit)

        await self._database.transact(work)

    async def get(self, key_id: str) -> KeyRecord | None:
        async with self._database.read() as connection:
            row = (await connection.execute(_records().where(keys.c.id == key_id))).one_or_none()
        return None if row is None else _record(row)

    async def list(self, account: str | None, *, after: str | None = None, limit: int = 1000) -> Sequence[KeyRecord]:
        statement = _records().order_by(keys.c.created_at, keys.c.id).limit(limit)
        if account is not None:
            statement = statement.where(owned_by(keys, account))
        if after is not None:
            last = keys.alias("last")
            place = select(last.c.created_at, last.c.id).where(last.c.id == after).scalar_subquery()
            statement = statement.where(tuple_(keys.c.created_at, keys.c.id) > place)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [_record(row) for row in rows]

    async def change(self, key_id: str, grant: KeyGrant, audit: AuditEntry) -> bool:
        return await self._update(update(keys).where(keys.c.id == key_id).values(describe_grant(grant)), audit)

    async def rotate(self, key_id: str, digest: bytes, *, old_valid_until: float, audit: AuditEntry) -> bool:
        values = {"digest": digest, "old_digest": keys.c.digest, "old_valid_until": old_valid_until}
        return await self._update(update(keys).where(keys.c.id == key_id).values(values), audit)

    async def revoke(self, key_id: str, revoked_at: float, audit: AuditEntry) -> bool:
        values = {"revoked_at": func.coalesce(keys.c.revoked_at, revoked_at)}
        return await self._update(update(keys).where(keys.c.id == key_id).values(values), audit)

    async def touch(self, last_used_at: Mapping[str, float]) -> None:
        statement = (
            update(keys)
            .where(keys.c.id == bindparam("key_id"))
            .where(or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < bindparam("at")))
            .values(last_used_at=bindparam("at"))
        )
        rows = [{"key_id": key_id, "at": at} for key_id, at in last_used_at.items()]
        # Locked in the database's order, as the ledger does, so that no two transactions wait for each other's rows.
        lock = select(keys.c.id).where(keys.c.id.in_(last_used_at)).order_by(keys.c.id).with_for_update()

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(lock)
            await connection.execute(statement, rows)

        await self._database.transact(work)

    async def _update(self, statement: Update, audit: AuditEntry) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            is_found = (await connection.execute(statement)).rowcount == 1
            if is_found:
                await audit_store.record(connection, audit)
            return is_found

        return await self._database.transact(work)


def _records() -> Select[Any]:
    return select(keys, accounts.c.closed_at.label("account_closed_at")).join_from(keys, accounts)


def _record(row: Row[Any]) -> KeyRecord:
    columns = dict(row._mapping)
    models = columns.pop("models")
    limits = columns.pop("limits")
    grant = KeyGrant(
        scopes=frozenset(map(Scope, columns.pop("scopes"))),
        models=None if models is None else frozenset(models),
        limits=tuple((Dialect(dialect), parse_limits(own)) for dialect, own in limits.items()),
        budget=columns.pop("budget"),
    )
    return KeyRecord(grant=grant, **columns)
