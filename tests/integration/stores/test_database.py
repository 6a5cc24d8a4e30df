"""What both databases promise: snapshots, rows that are locked, transactions that are run again, typed failures."""

import asyncio

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import StorageError
from serve_app.config import SetupError
from serve_app.stores.database import Database, open_database
from serve_app.stores.tables import accounts
from serve_app.stores.upsert import insert as insert_or
from tests.databases import PostgreSQLServer, running_postgresql


async def add_account(database: Database, account_id: str = "acme", **columns: object) -> None:
    async with database.write() as connection:
        await connection.execute(insert(accounts).values(id=account_id, name="n", created_at=0.0, **columns))


async def credit(database: Database, account_id: str = "acme") -> int:
    async with database.read() as connection:
        return int(
            (await connection.execute(select(accounts.c.credit).where(accounts.c.id == account_id))).scalar_one()
        )


async def test_an_exception_rolls_a_write_back(database: Database) -> None:
    await add_account(database, credit=1)
    with pytest.raises(ZeroDivisionError):
        async with database.write() as connection:
            await connection.execute(update(accounts).values(credit=2))
            raise ZeroDivisionError
    assert await credit(database) == 1


async def test_a_reader_sees_one_moment_and_waits_for_no_writer(database: Database) -> None:
    await add_account(database, credit=1)
    async with database.read() as reader:
        assert (await reader.execute(select(accounts.c.credit))).scalar_one() == 1
        async with database.write() as writer:
            await writer.execute(update(accounts).values(credit=2))
            assert await credit(database) == 1
        assert (await reader.execute(select(accounts.c.credit))).scalar_one() == 1
    assert await credit(database) == 2


async def test_rows_that_are_read_for_update_lose_no_change(database_url: str) -> None:
    """Each of many transactions reads a number and writes the next one."""
    databases = [await Database.open(database_url) for _ in range(3)]
    await add_account(databases[0], credit=0)

    async def add_one(connection: AsyncConnection) -> None:
        found = await connection.execute(select(accounts.c.credit).where(accounts.c.id == "acme").with_for_update())
        await connection.execute(update(accounts).values(credit=found.scalar_one() + 1))

    await asyncio.gather(*(database.transact(add_one) for database in databases for _ in range(10)))
    assert await credit(databases[0]) == 30
    for database in databases:
        await database.close()


async def test_a_savepoint_undoes_a_part_of_a_transaction(database: Database) -> None:
    await add_account(database, credit=1)
    async with database.write() as connection:
        await connection.execute(update(accounts).values(credit=2))
        with pytest.raises(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(update(accounts).values(credit=3))
                await connection.execute(insert(accounts).values(id="acme", name="n", created_at=0.0))
    assert await credit(database) == 2


async def test_an_upsert_adds_to_what_is_there(database: Database) -> None:
    for amount in (5, 7):
        async with database.write() as connection:
            row = insert_or(connection, accounts).values(id="acme", name="n", created_at=0.0, credit=amount)
            added = {"credit": accounts.c.credit + row.excluded.credit}
            await connection.execute(row.on_conflict_do_update(index_elements=[accounts.c.id], set_=added))
    assert await credit(database) == 12


async def test_a_fault_of_the_statement_stays_what_it_is_and_shows_no_values(database: Database) -> None:
    await add_account(database)
    with pytest.raises(IntegrityError) as fault:
        await add_account(database, credit=123454321)
    assert "123454321" not in str(fault.value)


async def test_a_deadlock_is_run_again(postgresql_url: str) -> None:
    async with open_database(postgresql_url) as database:
        for account_id in ("a", "b"):
            await add_account(database, account_id, credit=0)
        both_hold_one = asyncio.Barrier(2)
        num_runs = 0

        async def add_to_both(first: str, second: str, connection: AsyncConnection) -> None:
            nonlocal num_runs
            num_runs += 1
            statement = update(accounts).values(credit=accounts.c.credit + 1)
            await connection.execute(statement.where(accounts.c.id == first))
            if num_runs <= 2:
                await both_hold_one.wait()
            await connection.execute(statement.where(accounts.c.id == second))

        await asyncio.gather(
            database.transact(lambda connection: add_to_both("a", "b", connection)),
            database.transact(lambda connection: add_to_both("b", "a", connection)),
        )
        assert num_runs == 3
        assert [await credit(database, account_id) for account_id in ("a", "b")] == [2, 2]


async def test_a_transaction_whose_connection_is_lost_is_run_again(
    postgresql_url: str, postgresql_server: PostgreSQLServer
) -> None:
    async with open_database(postgresql_url) as database:
        await add_account(database, credit=0)
        num_runs = 0

        async def add_one(connection: AsyncConnection) -> None:
            nonlocal num_runs
            num_runs += 1
            await connection.execute(update(accounts).values(credit=accounts.c.credit + 1))
            if num_runs == 1:
                pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                postgresql_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            await connection.execute(update(accounts).values(name="renamed"))

        await database.transact(add_one)
        assert num_runs == 2
        assert await credit(database) == 1


async def test_a_server_that_was_restarted_costs_no_read_its_answer(
    postgresql_url: str, postgresql_server: PostgreSQLServer
) -> None:
    async with open_database(postgresql_url) as database:
        await add_account(database, credit=1)
        postgresql_server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'tritext'"
        )
        assert await credit(database) == 1


async def test_a_server_that_is_down_is_a_typed_error() -> None:
    with running_postgresql() as server:
        url = server.url_of(server.create_database())
        database = Database(url)
        await database.migrate()
        await add_account(database, credit=1)
    for attempt in (credit(database), add_account(database, "other"), database.transact(lambda _: asyncio.sleep(0))):
        with pytest.raises(StorageError) as failure:
            await attempt
        assert failure.value.status == 503
        assert failure.value.message == "the database does not answer"
    await database.close()
    with pytest.raises(SetupError, match="does not answer"):
        await Database.open(url)
