"""Usage by day, model, key and API, and the ledger request by request, as pages, JSON lines and CSV."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve_app.admin.call import administrator
from serve_app.admin.report_wire import (
    CSV,
    JSON_LINES,
    LINE_COLUMNS,
    SUM_COLUMNS,
    LedgerParameters,
    Row,
    UsageParameters,
    as_csv,
    as_json_lines,
    ledger_cursor,
    line_row,
    parse_ledger_cursor,
    parse_usage_cursor,
    row_object,
    sum_row,
    to_ledger_query,
    to_usage_query,
    usage_cursor,
)
from serve_app.http.documented import documented, page_of
from serve_app.http.query import parse_query
from serve_app.http.resources import json_answer, page_object
from serve_app.services import Services
from serve_app.use_cases.usage import LedgerQuery, UsageQuery, UsageReports, all_lines, all_sums

T = TypeVar("T")

_ACCOUNT = Field(None, description="Only this account.")

SUM_EXAMPLE: dict[str, Any] = {
    "day": "2026-01-31",
    "account": "acme",
    "key": "0NPvBYYJqMZjhFkd9",
    "dialect": "totalgpt",
    "model": "SmolLM2-135M-Instruct",
    "requests": 12,
    "prompt_tokens": 340,
    "completion_tokens": 800,
    "characters": 3120,
    "cost": 3540,
}
_LINE_EXAMPLE: dict[str, Any] = {
    "id": "5f0c1f9f4f0b4a1e.9c2d11aa",
    "account": "acme",
    "key": "0NPvBYYJqMZjhFkd9",
    "dialect": "inferkit",
    "model": "SmolLM2-135M-Instruct",
    "created_at": "2026-01-31T12:00:00Z",
    "settled_at": "2026-01-31T12:00:02Z",
    "outcome": "completed",
    "prompt_tokens": 9,
    "completion_tokens": 20,
    "characters": 84,
    "held": 200,
    "cost": 100,
}


class AdminUsageParameters(UsageParameters):
    account: str | None = _ACCOUNT


class AdminLedgerParameters(LedgerParameters):
    account: str | None = _ACCOUNT


def add_routes(routes: APIRouter, services: Services) -> None:
    async def read_usage(request: Request) -> Response:
        """Sums of settled requests. A request counts on the day, in UTC, of its settlement."""
        await administrator(request, services)
        query = parse_query(AdminUsageParameters, request)
        return await answer_usage(services.usage, query, to_usage_query(query, account=query.account))

    async def read_ledger(request: Request) -> Response:
        """Every request that may cost something, oldest first; those that run have no outcome yet."""
        await administrator(request, services)
        query = parse_query(AdminLedgerParameters, request)
        return await answer_ledger(services.usage, query, to_ledger_query(query, account=query.account))

    used = documented("Read usage", content=report_content(SUM_EXAMPLE), query=AdminUsageParameters)
    routes.add_api_route("/v1/admin/usage", read_usage, methods=["GET"], **used)
    lines = documented("Export the ledger", content=report_content(_LINE_EXAMPLE), query=AdminLedgerParameters)
    routes.add_api_route("/v1/admin/ledger", read_ledger, methods=["GET"], **lines)


async def answer_usage(reports: UsageReports, parameters: UsageParameters, query: UsageQuery) -> Response:
    """Raises InvalidParameter."""
    after = parse_usage_cursor(parameters.after, query)
    if parameters.format != "json":
        columns = (*query.group_by, *SUM_COLUMNS)
        return _export(parameters.format, columns, _rows(all_sums(reports, query), sum_row))
    sums = await reports.sums(query, after=after, limit=parameters.limit + 1)
    return json_answer(page_object(sums, parameters.limit, lambda found: row_object(sum_row(found)), usage_cursor))


async def answer_ledger(reports: UsageReports, parameters: LedgerParameters, query: LedgerQuery) -> Response:
    """Raises InvalidParameter."""
    after = parse_ledger_cursor(parameters.after)
    if parameters.format != "json":
        return _export(parameters.format, LINE_COLUMNS, _rows(all_lines(reports, query), line_row))
    lines = await reports.ledger(query, after=after, limit=parameters.limit + 1)
    return json_answer(page_object(lines, parameters.limit, lambda line: row_object(line_row(line)), ledger_cursor))


async def _rows(found: AsyncIterator[T], render: Callable[[T], Row]) -> AsyncGenerator[Row, None]:
    async for item in found:
        yield render(item)


def _export(form: str, columns: Sequence[str], rows: AsyncGenerator[Row, None]) -> Response:
    """Everything, page by page. Where the store fails on the way, the connection is cut: a part is no export."""
    if form == "csv":
        return StreamingResponse(as_csv(columns, rows), media_type=CSV)
    return StreamingResponse(as_json_lines(rows), media_type=JSON_LINES)


def report_content(example: dict[str, Any]) -> dict[str, Any]:
    """What the reference shows of a report."""
    return {
        "application/json": {"schema": {"type": "object"}, "example": page_of(example)},
        JSON_LINES: {"schema": {"type": "string"}},
        CSV: {"schema": {"type": "string"}},
    }
