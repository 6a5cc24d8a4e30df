"""Key records in SQL."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import func, select, update

from serve_app.stores.database import Database
from serve_app.stores.tables import keys
from serve_app.use_cases.keys import KeyRecord, Keys


@asynccontextmanager
async def open_keys(database_url: str, pepper: bytes) -> AsyncGenerator[Keys, None]:
    """The keys that are kept in this database, for as long as the context lasts. Raises what `Database.open` raises."""
    database = await Database.open(database_url)
    try:
        yield Keys(SqlKeyStore(database), pepper)
    finally:
        await database.close()


class SqlKeyStore:
    """The key store of a service; see `serve_app.use_cases.keys.KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: KeyRecord) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                keys.insert().values(
                    id=record.id,
                    account=record.account,
                    name=record.name,
                    digest=record.digest,
                    created_at=record.created_at,
                    expires_at=record.expires_at,
                    revoked_at=record.revoked_at,
                )
            )

    async def get(self, key_id: str) -> KeyRecord | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
        return None if row is None else KeyRecord(**row._mapping)

    async def list(self, account: str | None) -> Sequence[KeyRecord]:
        statement = select(keys).order_by(keys.c.created_at, keys.c.id)
        if account is not None:
            statement = statement.where(keys.c.account == account)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [KeyRecord(**row._mapping) for row in rows]

    async def revoke(self, key_id: str, revoked_at: float) -> bool:
        statement = (
            update(keys).where(keys.c.id == key_id).values(revoked_at=func.coalesce(keys.c.revoked_at, revoked_at))
        )
        async with self._database.write() as connection:
            return (await connection.execute(statement)).rowcount == 1
