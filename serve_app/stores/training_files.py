"""Training files in SQL."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import NotFound
from serve_app.jobs.job import TrainingFile
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import files
from serve_app.stores.upsert import insert_new

_columns = files.c


class SqlTrainingFiles:
    """See `serve_app.use_cases.training_files.FileStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, file: TrainingFile) -> bool:
        return await self._database.transact(lambda connection: insert_new(connection, files, asdict(file)))

    async def get(self, account: str, file_id: str) -> TrainingFile:
        async with self._database.read() as connection:
            row = (await connection.execute(select(files).where(_is_there(account, file_id)))).one_or_none()
        if row is None:
            raise _not_found(file_id)
        return _to_file(row)

    async def list(
        self, account: str, *, after: str | None, limit: int, purpose: str | None, oldest_first: bool
    ) -> Sequence[TrainingFile]:
        place = tuple_(_columns.created_at, _columns.id)
        order = [column.asc() if oldest_first else column.desc() for column in (_columns.created_at, _columns.id)]
        statement = select(files).where(owned_by(files, account), _columns.deleted_at.is_(None))
        statement = statement.order_by(*order).limit(limit)
        if purpose is not None:
            statement = statement.where(_columns.purpose == purpose)
        if after is not None:
            last = files.alias("last")
            last_place = select(last.c.created_at, last.c.id).where(last.c.id == after, owned_by(last, account))
            subquery = last_place.scalar_subquery()
            statement = statement.where(place > subquery if oldest_first else place < subquery)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [_to_file(row) for row in rows]

    async def delete(self, account: str, file_id: str, now: float) -> None:
        statement = update(files).where(_is_there(account, file_id)).values(deleted_at=now)

        async def work(connection: AsyncConnection) -> None:
            if (await connection.execute(statement)).rowcount == 0:
                raise _not_found(file_id)

        await self._database.transact(work)


def _is_there(account: str, file_id: str) -> ColumnElement[bool]:
    return and_(_columns.id == file_id, owned_by(files, account), _columns.deleted_at.is_(None))


def _to_file(row: Row[Any]) -> TrainingFile:
    return TrainingFile(**row._mapping)


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"there is no file {file_id!r}")
