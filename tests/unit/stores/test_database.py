"""The SQLite database: its settings, its waiting, and what is refused. What both databases promise is tested in
tests/integration/stores."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text

from deployments.errors import StorageError
from serve_app.config import SetupError
from serve_app.stores import sqlite
from serve_app.stores.database import Database, open_database, require_reach
from serve_app.stores.tables import accounts


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'tritext.db'}"


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10000)]
)
async def test_connections_are_durable_and_patient(sqlite_url: str, pragma: str, value: object) -> None:
    async with open_database(sqlite_url) as database, database.read() as connection:
        assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value


async def test_only_what_passes_with_a_crash_does_not_wait_for_the_disk(sqlite_url: str) -> None:
    def synchronous(connection: Connection) -> int:
        return int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    async with open_database(sqlite_url) as database:
        found = [
            await database.transact_blocking(synchronous, is_passing=is_passing)
            for is_passing in (False, True, True, False, False, True)
        ]
    full, normal = 2, 1
    assert found == [full, normal, normal, full, full, normal]


async def test_the_sqlite_in_use_is_one_that_is_safe(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as database, database.read() as connection:
        version = (await connection.execute(select(func.sqlite_version()))).scalar_one()
    assert tuple(map(int, version.split("."))) >= sqlite.MIN_VERSION


async def test_the_directory_of_the_database_is_made_for_its_owner_only(url: str, tmp_path: Path) -> None:
    async with open_database(url):
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_writers_in_several_processes_wait_for_each_other(sqlite_url: str) -> None:
    """Each reads the number of rows and writes one more: a lost update would show as a repeated number."""
    databases = [await Database.open(sqlite_url) for _ in range(3)]
    count = select(func.count()).select_from(accounts)

    async def add(database: Database) -> None:
        async with database.write() as connection:
            number = (await connection.execute(count)).scalar_one()
            await connection.execute(insert(accounts).values(id=str(number), name="n", created_at=0.0))

    await asyncio.gather(*(add(database) for database in databases for _ in range(10)))
    async with databases[0].read() as connection:
        assert (await connection.execute(count)).scalar_one() == 30
    for database in databases:
        await database.close()


async def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tritext.db"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(SetupError, match=r"tritext\.db"):
        await Database.open(f"sqlite:///{path}")


async def test_a_database_that_stays_locked_is_unavailable(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as holder, open_database(sqlite_url) as database:
        async with database.write() as connection:
            await connection.execute(text("PRAGMA busy_timeout = 1"))
        async with holder.write():
            with pytest.raises(StorageError):
                async with database.write():
                    pass


async def test_failure_says_whether_its_task_may_have_written(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as holder, open_database(sqlite_url) as database:

        async def fail_after(write: Callable[[], Awaitable[object]]) -> StorageError:
            await write()
            async with holder.write():
                with pytest.raises(StorageError) as failure:
                    async with database.write() as connection:
                        await connection.execute(select(1))
            return failure.value

        async def write() -> None:
            async with database.write() as connection:
                await connection.execute(text("PRAGMA busy_timeout = 1"))

        async def elsewhere() -> None:
            await asyncio.create_task(write())

        async def transact() -> None:
            await database.transact(lambda connection: connection.execute(select(1)))

        async def transact_blocking() -> None:
            await database.transact_blocking(lambda connection: connection.execute(select(1)))

        for before, expected in ((elsewhere, True), (write, False), (transact, False), (transact_blocking, False)):
            failure = await asyncio.create_task(fail_after(before))
            assert failure.is_without_effect is expected, before


@pytest.mark.parametrize(
    "bad", ["mysql://user:secret-word@db/tritext", "nonsense secret-word", "", "postgresqlx://user:secret-word@db"]
)
async def test_other_databases_are_refused_without_showing_a_password(bad: str) -> None:
    with pytest.raises(SetupError, match="not supported") as refused:
        await Database.open(bad)
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize("bad", ["sqlite://", "sqlite:///:memory:"])
async def test_a_database_in_memory_is_refused(bad: str) -> None:
    with pytest.raises(SetupError, match="must be a file"):
        await Database.open(bad)


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 2)])
def test_an_sqlite_that_could_lose_data_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(SetupError, match="pysqlite3"):
        sqlite.check_version(version)


@pytest.mark.parametrize("version", [(3, 51, 3), (3, 53, 0), (4, 0, 0)])
def test_a_repaired_sqlite_is_accepted(version: tuple[int, ...]) -> None:
    sqlite.check_version(version)


def test_sqlite_is_refused_on_several_machines_with_what_to_do() -> None:
    with pytest.raises(SetupError, match=r"3 nodes.*database_url to postgresql://.*tritext database migrate"):
        require_reach("sqlite:////path/tritext.db", 3)


@pytest.mark.parametrize(("url", "num_machines"), [("sqlite:////path/tritext.db", 1), ("postgresql://u@db/t", 3)])
def test_a_database_that_all_machines_reach_is_accepted(url: str, num_machines: int) -> None:
    require_reach(url, num_machines)
