"""The database: its settings, its transactions, and what it refuses."""

import asyncio
import stat
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from serve_app.config import SetupError
from serve_app.stores import sqlite
from serve_app.stores.database import Database
from serve_app.stores.keys import SqlKeyStore, open_keys
from serve_app.stores.tables import keys
from serve_app.use_cases.keys import KeyRecord


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'tritext.db'}"


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10000)]
)
async def test_connections_are_durable_and_patient(url: str, pragma: str, value: object) -> None:
    database = await Database.open(url)
    async with database.read() as connection:
        assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value
    await database.close()


async def test_the_sqlite_in_use_is_one_that_is_safe(url: str) -> None:
    database = await Database.open(url)
    async with database.read() as connection:
        version = (await connection.execute(select(func.sqlite_version()))).scalar_one()
    await database.close()
    assert tuple(map(int, version.split("."))) >= sqlite.MIN_VERSION


async def test_the_directory_of_the_database_is_made_for_its_owner_only(url: str, tmp_path: Path) -> None:
    await (await Database.open(url)).close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_what_was_written_is_there_when_opened_again(url: str) -> None:
    async with open_keys(url, b"pepper") as first:
        key, record = await first.create("acme", "laptop")
    async with open_keys(url, b"pepper") as second:
        assert (await second.authenticate(key)).key_id == record.id


async def test_an_exception_rolls_a_write_back(url: str) -> None:
    database = await Database.open(url)
    with pytest.raises(ZeroDivisionError):
        async with database.write() as connection:
            await connection.execute(keys.insert().values(id="1", account="a", name="n", digest=b"", created_at=0.0))
            raise ZeroDivisionError
    assert await SqlKeyStore(database).list(None) == []
    await database.close()


async def test_writers_in_several_processes_wait_for_each_other(url: str) -> None:
    """Each reads the number of rows and writes one more: a lost update would show as a repeated number."""
    databases = [await Database.open(url) for _ in range(3)]

    async def add(database: Database) -> None:
        async with database.write() as connection:
            count = (await connection.execute(select(func.count()).select_from(keys))).scalar_one()
            await connection.execute(
                keys.insert().values(id=str(count), account="a", name="n", digest=b"", created_at=0.0)
            )

    await asyncio.gather(*(add(database) for database in databases for _ in range(10)))
    assert len(await SqlKeyStore(databases[0]).list(None)) == 30
    for database in databases:
        await database.close()


async def test_a_reader_does_not_wait_for_a_writer(url: str) -> None:
    database = await Database.open(url)
    record = KeyRecord("1", "a", "n", b"", created_at=0.0)
    async with database.write() as connection:
        await connection.execute(keys.insert().values(id="2", account="a", name="n", digest=b"", created_at=1.0))
        assert await SqlKeyStore(database).get("2") is None
    await SqlKeyStore(database).add(record)
    assert [found.id for found in await SqlKeyStore(database).list(None)] == ["1", "2"]
    await database.close()


async def test_processes_that_open_a_new_database_at_once_agree(url: str) -> None:
    for database in await asyncio.gather(*(Database.open(url) for _ in range(5))):
        assert await SqlKeyStore(database).list(None) == []
        await database.close()


@pytest.mark.parametrize("bad", ["postgresql://user:secret-word@db/tritext", "sqlite://", "sqlite:///:memory:"])
async def test_other_databases_are_refused_without_showing_a_password(bad: str) -> None:
    with pytest.raises(SetupError, match="not supported") as refused:
        await Database.open(bad)
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 2)])
def test_an_sqlite_that_could_lose_data_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(SetupError, match="pysqlite3"):
        sqlite.check_version(version)


@pytest.mark.parametrize("version", [(3, 51, 3), (3, 53, 0), (4, 0, 0)])
def test_a_repaired_sqlite_is_accepted(version: tuple[int, ...]) -> None:
    sqlite.check_version(version)
