"""Which processes are alive, and what dead ones left behind, in SQL; see `serve_app.use_cases.ledger_upkeep.Owners`."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.ledger.entries import Counts, Line
from serve_app.stores.database import Database
from serve_app.stores.tables import idempotent_requests, ledger, owners
from serve_app.stores.upsert import insert


class SqlOwners:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, owner: str, alive_until: float) -> None:
        async def work(connection: AsyncConnection) -> None:
            statement = insert(connection, owners).values(id=owner, alive_until=alive_until)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=[owners.c.id], set_={"alive_until": alive_until})
            )

        await self._database.transact(work)

    async def leave(self, owner: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(owners).where(owners.c.id == owner))

        await self._database.transact(work)

    async def lost_lines(self, now: float, *, besides: str, limit: int) -> Sequence[tuple[Line, Counts]]:
        columns = [ledger.c[name] for name in Line.__slots__]
        counts = [ledger.c[name] for name in Counts.__slots__]
        # Settled lines have no owner: only open ones are looked at.
        is_lost = (ledger.c.owner > "") & (ledger.c.owner != besides) & _is_dead(ledger.c.owner, now)
        statement = select(*columns, *counts).where(is_lost).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [(Line(*row[: len(columns)]), Counts(*row[len(columns) :])) for row in rows]

    async def forget_dead(self, now: float) -> None:
        requests = idempotent_requests
        abandoned = (requests.c.owner > "") & _is_dead(requests.c.owner, now)
        dead = (owners.c.alive_until <= now) & ~exists().where(ledger.c.owner == owners.c.id)
        # Most often there is nothing to forget, and nobody need wait for that.
        anything = select(exists(select(requests.c.key).where(abandoned)) | exists(select(owners.c.id).where(dead)))
        async with self._database.read() as connection:
            if not (await connection.execute(anything)).scalar_one():
                return

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(requests).where(abandoned))
            await connection.execute(delete(owners).where(dead))

        await self._database.transact(work)


def _is_dead(owner: ColumnElement[str | None], now: float) -> ColumnElement[bool]:
    return ~exists().where(owners.c.id == owner, owners.c.alive_until > now)
