"""The SQL database of one process: opened once, asked in transactions, closed. Knows no table's meaning."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import StorageError
from serve_app.config import SetupError
from serve_app.stores import schema
from serve_app.stores.backend import Backend, Failure
from serve_app.stores.postgresql import PostgreSQL
from serve_app.stores.sqlite import SQLite

T = TypeVar("T")

_BACKENDS: Mapping[str, type[Backend]] = {"sqlite": SQLite, "postgresql": PostgreSQL}
_ATTEMPTS = 4
_PAUSE_S = 0.02

_may_have_written: ContextVar[bool] = ContextVar("may_have_written", default=False)
"""Whether a commit has begun in this task: a read that fails after it does not undo it."""


class Database:
    """An SQLite file or a PostgreSQL server, shared by any number of processes.

    One set of statements runs on both. Rows by which a transaction decides what it writes must be locked as they are
    read, by `select(...).with_for_update()`; on SQLite, where one write transaction runs at a time, this says nothing.
    `read`, `write` and `transact` raise StorageError while the database does not answer; it is without effect where no
    commit had begun in the task that meets it.
    """

    def __init__(self, url: str) -> None:
        """Takes `sqlite:///path/to/file.db` or `postgresql://user:password@host/name`; connects to nothing yet.

        Raises SetupError where this is no such URL, or the SQLite of this Python cannot be used.
        """
        try:
            parsed = make_url(url)
            self._backend = _BACKENDS[parsed.get_backend_name()]()
        except (ArgumentError, KeyError):
            raise SetupError(
                "this database is not supported; give sqlite:///path/to/file.db or postgresql://user:password@host/name"
            ) from None
        self._name = parsed.render_as_string(hide_password=True)
        self._engine = self._backend.create_engine(parsed)
        self._blocking_engine = self._backend.create_blocking_engine(parsed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        # Waiting here is fair and costs nothing; waiting in SQLite is polling.
        self._writer = asyncio.Lock() if self._backend.has_one_writer else None

    @classmethod
    async def open(cls, url: str) -> Self:
        """A database that is ready for use. An SQLite file is made if missing, and brought up to date.

        Raises SetupError where it cannot be reached, or PostgreSQL's schema is not the one that this code needs.
        """
        database = cls(url)
        try:
            with database._failing_as(SetupError):
                async with database._transaction(database._backend.read_options) as connection:
                    is_current = await connection.run_sync(schema.version) == schema.VERSION
                    if not is_current and not database._backend.migrates_at_start:
                        await connection.run_sync(schema.require_current)
            if not is_current:
                await database.migrate()
        except BaseException:
            await database.close()
            raise
        return database

    async def migrate(self) -> tuple[str | None, str]:
        """Brings the schema up to date, all or nothing, alone among all processes; the versions before and after.

        Raises SetupError.
        """
        with self._failing_as(SetupError):
            async with self._transaction(self._backend.write_options) as connection:
                return await connection.run_sync(schema.migrate, self._backend)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection, None]:
        """One transaction that only reads: it sees the database as it was at its first query."""
        with self._failing_as(StorageError):
            async with self._transaction(self._backend.read_options) as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection, None]:
        """One transaction that may write; an exception rolls it back. `transact` also tries again."""
        with self._failing_as(StorageError):
            async with self._transaction(self._backend.write_options) as connection:
                yield connection
                _may_have_written.set(True)

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What `work` answers in a transaction that may write.

        It is run again, a few times, where the transaction lost to another one, or the connection was lost before
        the commit; so it must have no effects but those in the database.
        """

        async def run(commit: "_Commit") -> T:
            async with self._transaction(self._backend.write_options) as connection:
                answer = await work(connection)
                commit.has_begun = True
            return answer

        return await self._persist(run)

    async def transact_blocking(self, work: Callable[[Connection], T], *, is_passing: bool = False) -> T:
        """As `transact`, for work that runs many statements often: in a thread, over a connection that blocks.

        One transaction takes a third of the time so, because nothing waits for the event loop or another thread
        between its statements; but all that is done in this way is done one after the other.
        is_passing: what is written is worth nothing once this machine has crashed, so it need not be on disk.
        """
        options = self._backend.passing_options if is_passing else self._backend.write_options
        loop = asyncio.get_running_loop()

        async def run(commit: "_Commit") -> T:
            async with self._writer or nullcontext():
                return await loop.run_in_executor(self._thread, self._block, work, commit, options)

        return await self._persist(run)

    async def close(self) -> None:
        await self._engine.dispose()
        self._thread.shutdown()
        self._blocking_engine.dispose()

    def _block(self, work: Callable[[Connection], T], commit: "_Commit", options: Mapping[str, Any]) -> T:
        with self._blocking_engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin():
                answer = work(connection)
                commit.has_begun = True
        return answer

    async def _persist(self, run: Callable[["_Commit"], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            try:
                return await self._attempt(run, is_last=attempt == _ATTEMPTS)
            except _TryAgain:
                await asyncio.sleep(random.uniform(0, attempt * _PAUSE_S))  # noqa: S311  # two shall not meet again
                attempt += 1

    async def _attempt(self, run: Callable[["_Commit"], Awaitable[T]], *, is_last: bool) -> T:
        commit = _Commit()
        with self._failing_as(StorageError):
            try:
                try:
                    return await run(commit)
                finally:
                    if commit.has_begun:
                        _may_have_written.set(True)
            except DBAPIError as error:
                was_rolled_back = self._backend.failure(error) is Failure.ROLLED_BACK
                was_lost = error.connection_invalidated and not commit.has_begun
                if is_last or not (was_rolled_back or was_lost):
                    raise
                raise _TryAgain from error

    @asynccontextmanager
    async def _transaction(self, options: Mapping[str, Any]) -> AsyncGenerator[AsyncConnection, None]:
        async with AsyncExitStack() as stack:
            if self._writer is not None and options is self._backend.write_options:
                await stack.enter_async_context(self._writer)
            connection = await stack.enter_async_context(self._engine.connect())
            await connection.execution_options(**options)
            await stack.enter_async_context(connection.begin())
            yield connection

    @contextmanager
    def _failing_as(self, kind: type[SetupError] | type[StorageError]) -> Generator[None, None, None]:
        """Raises this error where the database does not answer; the fault of a statement stays what it is."""
        try:
            yield
        except PoolTimeout as error:
            if kind is StorageError:
                raise _storage_error("the database is too busy") from error
            raise kind("the database is too busy") from error
        except DBAPIError as error:
            if self._backend.failure(error) is None:
                raise
            if kind is StorageError:
                raise _storage_error("the database does not answer") from error
            raise kind(f"the database {self._name} does not answer: {str(error.orig).strip()}") from error


def _storage_error(message: str) -> StorageError:
    return StorageError(message, is_without_effect=not _may_have_written.get())


@dataclass(slots=True)
class _Commit:
    """From when on a lost connection leaves open whether the transaction took place."""

    has_begun: bool = False


def require_reach(url: str, num_machines: int) -> None:
    """Raises SetupError where processes on so many machines cannot share the database of this URL."""
    if num_machines > 1 and make_url(url).get_backend_name() == "sqlite":
        raise SetupError(
            f"the cluster has {num_machines} nodes, and an SQLite file can be shared by the processes of one machine "
            "only: set database_url to postgresql://user:password@host/name and run: tritext database migrate"
        )


class _TryAgain(Exception):
    """A transaction was rolled back through no fault of its own."""


@asynccontextmanager
async def open_database(url: str) -> AsyncGenerator[Database, None]:
    """The database for as long as the context lasts. Raises what `Database.open` raises."""
    database = await Database.open(url)
    try:
        yield database
    finally:
        await database.close()
