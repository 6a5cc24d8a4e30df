"""Transactions in the database's own thread: as sure as the others, on both databases."""

import asyncio

import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from deployments.errors import StorageError
from serve_app.stores.database import Database, open_database
from serve_app.stores.tables import accounts
from tests.databases import PostgreSQLServer, running_postgresql


def add_account(connection: Connection) -> None:
    connection.execute(insert(accounts).values(id="acme", name="n", created_at=0.0, credit=0))


def add_one(connection: Connection) -> None:
    found = connection.execute(select(accounts.c.credit).where(accounts.c.id == "acme").with_for_update())
    connection.execute(update(accounts).values(credit=found.scalar_one() + 1))


def credit(connection: Connection) -> int:
    amount: int = connection.execute(select(accounts.c.credit)).scalar_one()
    return amount


async def test_transactions_of_several_processes_lose_no_change(database_url: str) -> None:
    databases = [await Database.open(database_url) for _ in range(3)]
    await databases[0].transact_blocking(add_account)
    await asyncio.gather(*(database.transact_blocking(add_one) for database in databases for _ in range(10)))
    assert await databases[0].transact_blocking(credit) == 30
    for database in databases:
        await database.close()


async def test_an_exception_rolls_back_and_comes_through(database: Database) -> None:
    await database.transact_blocking(add_account)

    def fail(connection: Connection) -> None:
        add_one(connection)
        add_account(connection)

    with pytest.raises(IntegrityError):
        await database.transact_blocking(fail)
    assert await database.transact_blocking(credit) == 0


async def test_a_connection_that_is_lost_between_or_in_transactions_costs_nothing(
    postgresql_url: str, postgresql_server: PostgreSQLServer
) -> None:
    async with open_database(postgresql_url) as database:
        await database.transact_blocking(add_account)
        postgresql_server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'tritext'"
        )
        await database.transact_blocking(add_one)
        num_runs = 0

        def add_one_twice(connection: Connection) -> None:
            nonlocal num_runs
            num_runs += 1
            add_one(connection)
            if num_runs == 1:
                pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                postgresql_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            add_one(connection)

        await database.transact_blocking(add_one_twice)
        assert num_runs == 2
        assert await database.transact_blocking(credit) == 3


async def test_a_server_that_is_down_is_a_typed_error() -> None:
    with running_postgresql() as server:
        database = Database(server.url_of(server.create_database()))
        await database.migrate()
        await database.transact_blocking(add_account)
    with pytest.raises(StorageError) as failure:
        await database.transact_blocking(add_one)
    assert failure.value.message == "the database does not answer"
    await database.close()
