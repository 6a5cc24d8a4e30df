"""INSERT ... ON CONFLICT, which both databases have and SQLAlchemy spells apart. Knows no table."""

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


def insert(connection: AsyncConnection | Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can go on with `on_conflict_do_update` or `on_conflict_do_nothing`; `excluded` is the new row."""
    is_sqlite = connection.dialect.name == "sqlite"
    return sqlite.insert(table) if is_sqlite else postgresql.insert(table)
