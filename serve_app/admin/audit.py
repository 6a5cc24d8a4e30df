"""The audit log: `/v1/admin/audit`."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serve_app.admin.amounts import to_credits
from serve_app.admin.call import administrator
from serve_app.http.documented import documented, page_of
from serve_app.http.query import QueryModel, parse_query
from serve_app.http.resources import MAX_PAGE, json_answer, page_object
from serve_app.http.times import to_iso
from serve_app.services import Services
from serve_app.use_cases.audit import AuditRow

_AMOUNTS = ("amount", "credit", "budget")
_EXAMPLE = {
    "object": "audit_entry",
    "id": 17,
    "at": "2026-01-31T12:00:00Z",
    "actor": "0NPvBYYJqMZjhFkd9",
    "action": "account.grant",
    "target": "acme",
    "details": {"amount": 25000, "note": "invoice 17"},
}


class AuditQuery(QueryModel):
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="The largest number of items to answer.")
    after: int | None = Field(None, ge=1, lt=2**63, description="The `next` of the page before.")


def entry_object(row: AuditRow) -> dict[str, Any]:
    """`actor`: the id of the key that was presented, or `command line`."""
    details = {name: to_credits(value) if name in _AMOUNTS else value for name, value in row.entry.details.items()}
    return {
        "object": "audit_entry",
        "id": row.id,
        "at": to_iso(row.entry.at),
        "actor": row.entry.actor,
        "action": row.entry.action,
        "target": row.entry.target,
        "details": details,
    }


def add_routes(routes: APIRouter, services: Services) -> None:
    async def read_audit_log(request: Request) -> Response:
        """Every administrative act, newest first, also those of the command line."""
        await administrator(request, services)
        query = parse_query(AuditQuery, request)
        rows = await services.audit.page(before=query.after, limit=query.limit + 1)
        return json_answer(page_object(rows, query.limit, entry_object, lambda row: row.id))

    document = documented("Read the audit log", answer=page_of(_EXAMPLE), query=AuditQuery)
    routes.add_api_route("/v1/admin/audit", read_audit_log, methods=["GET"], **document)
