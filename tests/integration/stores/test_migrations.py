"""Migrations and tables agree; old databases are brought over; a schema that does not fit is refused in a sentence."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, select, text

from serve_app.config import SetupError
from serve_app.stores import schema
from serve_app.stores.database import Database
from serve_app.stores.tables import accounts, keys, metadata
from tests.databases import PostgreSQLServer

MIGRATIONS = Path(schema.__file__).with_name("migrations")
OLD_SCHEMA = """
CREATE TABLE keys (
    id VARCHAR(32) NOT NULL, account VARCHAR(200) NOT NULL, name VARCHAR(200) NOT NULL, digest BLOB NOT NULL,
    created_at FLOAT NOT NULL, expires_at FLOAT, revoked_at FLOAT, PRIMARY KEY (id)
);
CREATE INDEX keys_by_account ON keys (account, created_at);
INSERT INTO keys VALUES
    ('1', 'default', 'first key', x'01', 5.5, NULL, NULL),
    ('2', 'acme', 'laptop', x'02', 7.5, 9.5, NULL),
    ('3', 'acme', 'old', x'03', 6.5, NULL, 8.5);
"""


@pytest.fixture
def empty_postgresql_url(postgresql_server: PostgreSQLServer) -> str:
    return postgresql_server.url_of(postgresql_server.create_database())


async def test_migrations_and_tables_agree(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


def test_the_version_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.VERSION]


async def test_a_database_from_before_migrations_keeps_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.executescript(OLD_SCHEMA)
    old.close()
    database = await Database.open(f"sqlite:///{path}")
    async with database.read() as connection:
        made = (await connection.execute(select(accounts).order_by(accounts.c.id))).all()
        kept = (await connection.execute(select(keys).order_by(keys.c.id))).all()
    await database.close()
    assert [(row.id, row.name, row.created_at, row.credit, row.reserved) for row in made] == [
        ("acme", "acme", 6.5, None, 0),
        ("default", "default", 5.5, None, 0),
    ]
    assert [(row.id, row.account, row.digest, row.expires_at, row.revoked_at) for row in kept] == [
        ("1", "default", b"\x01", None, None),
        ("2", "acme", b"\x02", 9.5, None),
        ("3", "acme", b"\x03", None, 8.5),
    ]
    assert {(tuple(row.scopes), row.models, str(row.limits), row.spent) for row in kept} == {
        (("inference",), None, "{}", 0)
    }


async def test_sqlite_is_brought_up_to_date_by_whoever_opens_it_even_all_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    for database in await asyncio.gather(*(Database.open(url) for _ in range(5))):
        async with database.read() as connection:
            assert await connection.run_sync(schema.version) == schema.VERSION
        await database.close()


async def test_postgresql_with_an_old_schema_is_refused_with_the_command_to_run(empty_postgresql_url: str) -> None:
    with pytest.raises(SetupError, match="tritext database migrate"):
        await Database.open(empty_postgresql_url)


async def test_migrations_that_run_at_once_run_once(empty_postgresql_url: str) -> None:
    databases = [Database(empty_postgresql_url) for _ in range(4)]
    results = await asyncio.gather(*(database.migrate() for database in databases))
    for database in databases:
        await database.close()
    assert sorted(before is None for before, _ in results) == [False, False, False, True]
    await (await Database.open(empty_postgresql_url)).close()


async def test_a_migration_that_fails_leaves_nothing(
    empty_postgresql_url: str, postgresql_server: PostgreSQLServer
) -> None:
    name = make_url(empty_postgresql_url).database
    postgresql_server.execute("CREATE TABLE usage_by_day ()", database=str(name))
    database = Database(empty_postgresql_url)
    with pytest.raises(Exception, match="usage_by_day"):
        await database.migrate()
    async with database.read() as connection:
        assert await connection.run_sync(schema.version) is None
    await database.close()


async def test_a_schema_of_a_later_version_is_refused(database_url: str) -> None:
    database = await Database.open(database_url)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(SetupError, match="later version"):
        await Database.open(database_url)
