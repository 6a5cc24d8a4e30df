"""Usage by day, which is summed as requests are settled, and the ledger's lines, in SQL. Reads only."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Table, false, func, select, tuple_

from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import ledger, usage_by_day
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.usage import LedgerLine, LedgerQuery, UsageGroup, UsageQuery, UsageSum

_COLUMNS = {
    UsageGroup.DAY: usage_by_day.c.day,
    UsageGroup.ACCOUNT: usage_by_day.c.account,
    UsageGroup.KEY: usage_by_day.c.key_id,
    UsageGroup.DIALECT: usage_by_day.c.dialect,
    UsageGroup.MODEL: usage_by_day.c.model,
}
_SUMMED = ("requests", "prompt_tokens", "completion_tokens", "characters", "cost")
_LINE = tuple(ledger.c[name] for name in LedgerLine.__slots__)


class SqlUsageReports:
    """See `serve_app.use_cases.usage.UsageReports`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sums(self, query: UsageQuery, *, after: UsageSum | None = None, limit: int = 1000) -> Sequence[UsageSum]:
        async with self._database.read() as connection:
            rows = (await connection.execute(_sums(query, after, limit))).all()
        width = len(query.group_by)
        # A sum is NUMERIC in PostgreSQL and comes as Decimal.
        return [UsageSum(tuple(zip(query.group_by, row[:width], strict=True)), *map(int, row[width:])) for row in rows]

    async def ledger(
        self, query: LedgerQuery, *, after: LedgerLine | None = None, limit: int = 1000
    ) -> Sequence[LedgerLine]:
        async with self._database.read() as connection:
            rows = (await connection.execute(_lines(query, after, limit))).all()
        return [LedgerLine(**{**row._mapping, "dialect": Dialect(row.dialect)}) for row in rows]


def _sums(query: UsageQuery, after: UsageSum | None, limit: int) -> Select[Any]:
    groups = [_COLUMNS[group] for group in query.group_by]
    columns = usage_by_day.c
    statement = (
        select(*groups, *(func.sum(columns[name]) for name in _SUMMED)).having(func.count() > 0)  # no row for nothing
    )
    statement = _filtered(statement, usage_by_day, query).group_by(*groups).order_by(*groups).limit(limit)
    if query.first_day is not None:
        statement = statement.where(columns.day >= query.first_day)
    if query.last_day is not None:
        statement = statement.where(columns.day <= query.last_day)
    if after is not None and not groups:
        return statement.where(false())  # the one row was the last
    if after is not None:
        statement = statement.where(tuple_(*groups) > tuple(value for _, value in after.by))
    return statement


def _lines(query: LedgerQuery, after: LedgerLine | None, limit: int) -> Select[Any]:
    place = (ledger.c.created_at, ledger.c.id)
    statement = _filtered(select(*_LINE), ledger, query).order_by(*place).limit(limit)
    if query.since is not None:
        statement = statement.where(ledger.c.created_at >= query.since)
    if query.until is not None:
        statement = statement.where(ledger.c.created_at < query.until)
    if after is not None:
        statement = statement.where(tuple_(*place) > (after.created_at, after.id))
    return statement


def _filtered(statement: Select[Any], table: Table, query: UsageQuery | LedgerQuery) -> Select[Any]:
    if query.account is not None:
        statement = statement.where(owned_by(table, query.account))
    for name in ("key_id", "dialect", "model"):
        value = getattr(query, name)
        if value is not None:
            statement = statement.where(table.c[name] == value)
    return statement
