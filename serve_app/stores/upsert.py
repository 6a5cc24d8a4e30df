"""INSERT ... ON CONFLICT, which both databases have and SQLAlchemy spells apart. Knows no table."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


def insert(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can go on with `on_conflict_do_update` or `on_conflict_do_nothing`; `excluded` is the new row."""
    return insert_in(connection.dialect.name, table)


def insert_in(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """The same for a database of this kind, so that it can be made once and kept."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


async def insert_new(connection: AsyncConnection, table: Table, row: Mapping[str, Any]) -> bool:
    """Adds the row, or does nothing and returns False where its primary key, or another unique one, is taken.

    Where another transaction is adding a row with the same key, this waits for its end.
    """
    statement = insert(connection, table).values(row).on_conflict_do_nothing().returning(*table.primary_key)
    return (await connection.execute(statement)).first() is not None
