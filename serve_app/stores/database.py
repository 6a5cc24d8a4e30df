"""The SQL database of one process: opened once, asked in transactions, closed. Knows no table's meaning."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve_app.config import SetupError
from serve_app.stores import sqlite
from serve_app.stores.tables import metadata


class Database:
    """An embedded SQLite database, shared by any number of processes of one machine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def open(cls, url: str) -> Self:
        """Opens the database of an URL such as `sqlite:///path/to/file.db`; makes the file and the tables if missing.

        Raises SetupError where the database, or the SQLite of this Python, is not one that can be used.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
            raise SetupError(
                f"the database {parsed.render_as_string()} is not supported; give sqlite:///path/to/file.db"
            )
        sqlite.use_safe_sqlite()
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_async_engine(parsed.set(drivername="sqlite+aiosqlite"))
        sqlite.configure(engine.sync_engine)
        database = cls(engine)
        async with database.write() as connection:
            await connection.run_sync(metadata.create_all)
        return database

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection, None]:
        """One transaction that only reads: it sees the database as it was at its first query."""
        async with self._engine.connect() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection, None]:
        """One transaction that may write, alone among all processes; an exception rolls it back."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**sqlite.WRITE)
            async with connection.begin():
                yield connection

    async def close(self) -> None:
        await self._engine.dispose()
