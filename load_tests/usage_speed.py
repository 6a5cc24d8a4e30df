"""Measures pages of usage and ledger in a large database: `python -m load_tests.usage_speed sqlite:////tmp/usage.db`.

Each URL names an empty database with the newest schema (an SQLite file is made), or one that an earlier run has
filled: a year of requests by 100 accounts with 2 keys and 3 models each. Prints medians of milliseconds, and for
comparison what the same sums take when they are computed from the ledger's lines.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import typer
from sqlalchemy import func, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.stores.database import Database, open_database
from serve_app.stores.tables import ledger, usage_by_day
from serve_app.stores.usage import SqlUsageReports
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.usage import LedgerLine, LedgerQuery, UsageGroup, UsageQuery

_START = 1_735_689_600  # 2025-01-01
_YEAR_S = 365 * 86400
_FILL = """
    INSERT INTO ledger (id, account, key_id, dialect, model, created_at, settled_at, held, held_tokens,
                        prompt_tokens, completion_tokens, characters, cost, outcome)
    WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :rows)
    SELECT 'request-' || n, 'account-' || MOD(n, 100), 'key-' || (MOD(n, 100) * 2 + MOD(n / 100, 2)),
           'totalgpt', 'model-' || MOD(n / 200, 3),
           :start + n * (:year / :rows), :start + n * (:year / :rows) + 1,
           2000000, 0, 100, 150, 600, 700000000, 'completed'
    FROM numbers
"""
_SUMS = ("prompt_tokens", "completion_tokens", "characters", "cost")
_REPEATS = 20


async def fill(connection: AsyncConnection, num_rows: int) -> None:
    await connection.execute(text(_FILL), {"rows": num_rows, "start": float(_START), "year": float(_YEAR_S)})
    is_sqlite = connection.dialect.name == "sqlite"
    day = literal_column(
        "date(settled_at, 'unixepoch')"
        if is_sqlite
        else "to_char(to_timestamp(settled_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    )
    columns = ledger.c
    place = (day, columns.account, columns.key_id, columns.dialect, columns.model)
    sums = select(*place, func.count(), *(func.sum(columns[name]) for name in _SUMS)).group_by(*place)
    names = ["day", "account", "key_id", "dialect", "model", "requests", *_SUMS]
    await connection.execute(usage_by_day.insert().from_select(names, sums))
    await connection.execute(text("ANALYZE"))


def queries(database: Database) -> dict[str, Callable[[], Awaitable[object]]]:
    reports = SqlUsageReports(database)
    month = {"first_day": "2025-06-01", "last_day": "2025-06-30"}
    middle = LedgerLine(
        "request-5", "account-7", "", Dialect.TOTALGPT, "", _START + _YEAR_S / 2, None, 0, 0, 0, 0, 0, None
    )

    async def from_lines() -> None:
        sums = (func.sum(ledger.c[name]) for name in _SUMS)
        async with database.read() as connection:
            await connection.execute(select(ledger.c.account, *sums).group_by(ledger.c.account))

    by_day = (UsageGroup.DAY,)
    return {
        "an account's month by day": lambda: reports.sums(UsageQuery("account-7", group_by=by_day, **month)),
        "an account's month, one sum": lambda: reports.sums(UsageQuery("account-7", group_by=(), **month)),
        "an account's year by day": lambda: reports.sums(UsageQuery("account-7", group_by=by_day)),
        "an account's first page, all groups": lambda: reports.sums(UsageQuery("account-7"), limit=100),
        "everybody's month by day": lambda: reports.sums(UsageQuery(group_by=by_day, **month)),
        "everybody's year by account": lambda: reports.sums(UsageQuery(group_by=(UsageGroup.ACCOUNT,))),
        "the same from the lines": from_lines,
        "100 lines of an account": lambda: reports.ledger(LedgerQuery("account-7"), limit=100),
        "100 lines of an account, amid the year": lambda: reports.ledger(
            LedgerQuery("account-7"), after=middle, limit=100
        ),
        "100 lines of everybody, amid the year": lambda: reports.ledger(LedgerQuery(), after=middle, limit=100),
        "1000 lines of everybody, amid the year": lambda: reports.ledger(LedgerQuery(), after=middle, limit=1000),
    }


async def measure(query: Callable[[], Awaitable[object]]) -> float:
    """The median in milliseconds."""
    times = []
    for _ in range(_REPEATS + 2):
        started_at = time.perf_counter()
        await query()
        times.append(time.perf_counter() - started_at)
    return statistics.median(times[2:]) * 1000


async def run(url: str, num_rows: int) -> None:
    async with open_database(url) as database:
        async with database.read() as connection:
            present = (await connection.execute(select(func.count()).select_from(ledger))).scalar_one()
        if not present:
            async with database.write() as connection:
                if connection.dialect.name != "sqlite":
                    await connection.execute(text("SET LOCAL statement_timeout = 0"))
                await fill(connection, num_rows)
        async with database.read() as connection:
            lines = (await connection.execute(select(func.count()).select_from(ledger))).scalar_one()
            sums = (await connection.execute(select(func.count()).select_from(usage_by_day))).scalar_one()
            name = connection.dialect.name
        typer.echo(f"{name}: {lines} lines, {sums} sums")
        for title, query in queries(database).items():
            typer.echo(f"  {await measure(query):9.2f} ms  {title}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many requests an empty database gets")
    arguments = parser.parse_args()
    for url in arguments.urls:
        asyncio.run(run(url, arguments.rows))


if __name__ == "__main__":
    main()
