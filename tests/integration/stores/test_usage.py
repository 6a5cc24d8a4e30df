"""Sums of usage and pages of the ledger: filtered, in order, whole; and of one account only where that is asked."""

from collections.abc import Sequence
from itertools import product

import pytest
from sqlalchemy import insert

from serve_app.stores.database import Database
from serve_app.stores.tables import ledger, usage_by_day
from serve_app.stores.usage import SqlUsageReports
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.usage import (
    LedgerLine,
    LedgerQuery,
    UsageGroup,
    UsageQuery,
    UsageSum,
    all_lines,
    all_sums,
)

DAYS = ("2026-01-30", "2026-01-31", "2026-02-01")
KEYS = (("acme", "key-1"), ("acme", "key-2"), ("other", "key-3"))
DIALECTS = (Dialect.AITEXTGEN, Dialect.TOTALGPT)
MODELS = ("big", "small")
BIG = 10**17


@pytest.fixture
async def reports(database: Database) -> SqlUsageReports:
    """Each combination has one request more than the one before; the cost of each request is large."""
    rows = [
        {
            "day": day,
            "account": account,
            "key_id": key_id,
            "dialect": dialect.value,
            "model": model,
            "requests": number,
            "prompt_tokens": 10 * number,
            "completion_tokens": 100 * number,
            "characters": 1000 * number,
            "cost": BIG,
        }
        for number, (day, (account, key_id), dialect, model) in enumerate(product(DAYS, KEYS, DIALECTS, MODELS), 1)
    ]
    async with database.write() as connection:
        await connection.execute(insert(usage_by_day), rows)
    return SqlUsageReports(database)


def requests(sums: Sequence[UsageSum]) -> list[tuple[object, ...]]:
    return [(*dict(found.by).values(), found.requests) for found in sums]


async def test_everything_is_summed_exactly(reports: SqlUsageReports) -> None:
    total = sum(range(1, 37))
    assert await reports.sums(UsageQuery(group_by=())) == [
        UsageSum((), total, 10 * total, 100 * total, 1000 * total, 36 * BIG)
    ]


async def test_sums_are_kept_apart_by_what_is_asked_in_order(reports: SqlUsageReports) -> None:
    by_day = await reports.sums(UsageQuery(group_by=(UsageGroup.DAY,)))
    assert requests(by_day) == [("2026-01-30", 78), ("2026-01-31", 222), ("2026-02-01", 366)]
    by_key = await reports.sums(UsageQuery(account="acme", group_by=(UsageGroup.KEY, UsageGroup.MODEL)))
    assert [dict(found.by) for found in by_key] == [
        {"key": key, "model": model} for key in ("key-1", "key-2") for model in ("big", "small")
    ]
    assert len(await reports.sums(UsageQuery())) == 36


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (UsageQuery(account="other"), 9 + 10 + 11 + 12 + 21 + 22 + 23 + 24 + 33 + 34 + 35 + 36),
        (UsageQuery(account="acme", key_id="key-3"), None),
        (UsageQuery(key_id="key-1", first_day="2026-01-31", last_day="2026-01-31"), 13 + 14 + 15 + 16),
        (UsageQuery(dialect=Dialect.TOTALGPT, model="small", last_day="2026-01-30"), 4 + 8 + 12),
        (UsageQuery(first_day="2026-02-02"), None),
        (UsageQuery(account="' OR 1=1 --"), None),
    ],
)
async def test_filters(reports: SqlUsageReports, query: UsageQuery, expected: int | None) -> None:
    found = await reports.sums(query)
    assert (sum(one.requests for one in found) if found else None) == expected


@pytest.mark.parametrize("group_by", [(), (UsageGroup.DAY,), tuple(UsageGroup)])
async def test_pages_hold_every_group_once(reports: SqlUsageReports, group_by: tuple[UsageGroup, ...]) -> None:
    query = UsageQuery(group_by=group_by)
    paged = [found async for found in all_sums(reports, query, page_size=5)]
    assert paged == await reports.sums(query)


def line(number: int, *, account: str = "acme", at: float = 0.0) -> LedgerLine:
    return LedgerLine(
        id=f"request-{number}",
        account=account,
        key_id="key-1",
        dialect=Dialect.INFERKIT,
        model="big",
        created_at=at,
        settled_at=None if number % 2 else at + 1.5,
        held=BIG,
        prompt_tokens=number,
        completion_tokens=2,
        characters=3,
        cost=4,
        outcome=None if number % 2 else "completed",
    )


LINES = [line(number, account="other" if number % 3 == 0 else "acme", at=float(number // 4)) for number in range(10)]


@pytest.fixture
async def ledger_reports(database: Database) -> SqlUsageReports:
    columns = LedgerLine.__slots__
    rows = [{name: getattr(one, name) for name in columns} | {"held_tokens": 0} for one in reversed(LINES)]
    async with database.write() as connection:
        await connection.execute(insert(ledger), rows)
    return SqlUsageReports(database)


async def test_the_ledger_is_told_line_by_line_oldest_first(ledger_reports: SqlUsageReports) -> None:
    assert await ledger_reports.ledger(LedgerQuery()) == LINES
    for page_size in (1, 3, 100):
        assert [one async for one in all_lines(ledger_reports, LedgerQuery(), page_size=page_size)] == LINES


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (LedgerQuery(account="other"), [0, 3, 6, 9]),
        (LedgerQuery(account="acme", since=1.0, until=2.0), [4, 5, 7]),
        (LedgerQuery(key_id="key-2"), []),
        (LedgerQuery(dialect=Dialect.INFERKIT, model="big", since=2.0), [8, 9]),
        (LedgerQuery(dialect=Dialect.AITEXTGEN), []),
    ],
)
async def test_lines_are_filtered(ledger_reports: SqlUsageReports, query: LedgerQuery, expected: list[int]) -> None:
    found = [one async for one in all_lines(ledger_reports, query, page_size=2)]
    assert found == [LINES[number] for number in expected]
