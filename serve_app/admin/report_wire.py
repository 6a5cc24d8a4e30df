"""Usage and the ledger on the wire: which of it is asked for, and rows as objects, JSON lines or CSV. No routes."""

import base64
import binascii
import csv
import io
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from deployments.errors import InvalidParameter
from serve_app.admin.amounts import to_credits
from serve_app.http.json_text import to_json
from serve_app.http.resources import PageQuery
from serve_app.http.times import check_day, from_iso, to_iso
from serve_app.ledger.credits import spell_credits
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.usage import LedgerLine, LedgerQuery, UsageGroup, UsageQuery, UsageSum

Row = Mapping[str, Any]

CSV = "text/csv; charset=utf-8"
JSON_LINES = "application/x-ndjson"

SUM_COLUMNS = ("requests", "prompt_tokens", "completion_tokens", "characters", "cost")
LINE_COLUMNS = (
    "id",
    "account",
    "key",
    "dialect",
    "model",
    "created_at",
    "settled_at",
    "outcome",
    "prompt_tokens",
    "completion_tokens",
    "characters",
    "held",
    "cost",
)
_AMOUNTS = ("held", "cost")
_ROWS_IN_CHUNK = 500


class ReportQuery(PageQuery):
    """What both reports can be narrowed to, and how they are answered."""

    key: str | None = Field(None, description="Only the key of this id.")
    dialect: Literal["aitextgen", "inferkit", "totalgpt"] | None = Field(None, description="Only this API.")
    model: str | None = Field(None, description="Only the model of this id.")
    format: Literal["json", "jsonl", "csv"] = Field(
        "json", description="`json`: a page; `jsonl` and `csv`: everything, as a stream."
    )

    def api(self) -> Dialect | None:
        return None if self.dialect is None else Dialect(self.dialect)


class UsageParameters(ReportQuery):
    first_day: str | None = Field(None, description="Such as 2026-01-31, UTC; included.")
    last_day: str | None = Field(None, description="Such as 2026-01-31, UTC; included.")
    group_by: str = Field(
        "day,account,key,dialect,model", description="What the sums are kept apart by, joined by commas."
    )


class LedgerParameters(ReportQuery):
    since: str | None = Field(None, description="Requests from this time on, such as 2026-01-31T12:00:00Z.")
    until: str | None = Field(None, description="Requests before this time.")


def to_usage_query(query: UsageParameters, *, account: str | None) -> UsageQuery:
    """Raises InvalidParameter."""
    return UsageQuery(
        account=account,
        key_id=query.key,
        dialect=query.api(),
        model=query.model,
        first_day=check_day(query.first_day, "first_day"),
        last_day=check_day(query.last_day, "last_day"),
        group_by=_to_groups(query.group_by),
    )


def to_ledger_query(query: LedgerParameters, *, account: str | None) -> LedgerQuery:
    """Raises InvalidParameter."""
    return LedgerQuery(
        account=account,
        key_id=query.key,
        dialect=query.api(),
        model=query.model,
        since=from_iso(query.since, "since"),
        until=from_iso(query.until, "until"),
    )


def _to_groups(text: str) -> tuple[UsageGroup, ...]:
    names = [name for name in text.split(",") if name]
    if len(set(names)) < len(names) or not set(names) <= set(UsageGroup):
        known = ", ".join(UsageGroup)
        raise InvalidParameter(f"group_by must name some of {known}, each once, joined by commas", "group_by")
    return tuple(map(UsageGroup, names))


def sum_row(found: UsageSum) -> Row:
    """Amounts are microcredits still."""
    sums = {name: getattr(found, name) for name in SUM_COLUMNS}
    return {**{group.value: value for group, value in found.by}, **sums}


def line_row(line: LedgerLine) -> Row:
    """Amounts are microcredits still."""
    row = {name: getattr(line, name) for name in LINE_COLUMNS if name != "key"}
    times = {"created_at": to_iso(line.created_at), "settled_at": to_iso(line.settled_at)}
    return {**row, **times, "key": line.key_id, "dialect": line.dialect.value}


def row_object(row: Row) -> dict[str, Any]:
    """For JSON: amounts in credits."""
    return {name: to_credits(value) if name in _AMOUNTS else value for name, value in row.items()}


def usage_cursor(found: UsageSum) -> str:
    return _to_cursor([value for _, value in found.by])


def parse_usage_cursor(text: str | None, query: UsageQuery) -> UsageSum | None:
    """The sum after which a page begins. Raises InvalidParameter."""
    if text is None:
        return None
    values = _from_cursor(text, [str] * len(query.group_by))
    return UsageSum(tuple(zip(query.group_by, values, strict=True)), 0, 0, 0, 0, 0)


def ledger_cursor(line: LedgerLine) -> str:
    return _to_cursor([line.created_at, line.id])


def parse_ledger_cursor(text: str | None) -> LedgerLine | None:
    """The line after which a page begins. Raises InvalidParameter."""
    if text is None:
        return None
    created_at, line_id = _from_cursor(text, [float, str])
    return LedgerLine(line_id, "", "", Dialect.AITEXTGEN, "", created_at, None, 0, 0, 0, 0, 0, None)


def _to_cursor(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(to_json(values)).decode().rstrip("=")


def _from_cursor(text: str, types: Sequence[type]) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(text.encode() + b"=="))
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or list(map(type, values)) != list(types) or not all(map(_is_sane, values)):
        raise InvalidParameter("after must be the `next` of a page of the same request", "after")
    return values


def _is_sane(value: str | float) -> bool:
    return value.isprintable() if isinstance(value, str) else math.isfinite(value)


async def as_json_lines(rows: AsyncIterator[Row]) -> AsyncGenerator[bytes, None]:
    """A line for each row, many lines in a chunk."""
    async for chunk in _in_chunks(rows):
        yield b"".join(to_json(row_object(row)) + b"\n" for row in chunk)


async def as_csv(columns: Sequence[str], rows: AsyncIterator[Row]) -> AsyncGenerator[bytes, None]:
    """RFC 4180 with a line of names; amounts are exact decimal numbers, nothing is an empty field."""
    yield _csv_lines([columns])
    async for chunk in _in_chunks(rows):
        yield _csv_lines([[_spell(name, row[name]) for name in columns] for row in chunk])


async def _in_chunks(rows: AsyncIterator[Row]) -> AsyncGenerator[list[Row], None]:
    chunk: list[Row] = []
    async for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_IN_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _spell(column: str, value: Any) -> str:
    if value is None:
        return ""
    return spell_credits(value) if column in _AMOUNTS else str(value)


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()
