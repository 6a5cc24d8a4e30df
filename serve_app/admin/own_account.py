"""What any key sees of its own account: `/v1/account` and `/v1/usage`. Every answer is about that account alone."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import NotFound
from serve_app.admin.accounts import account_object
from serve_app.admin.documents import ACCOUNT, KEY
from serve_app.admin.key_wire import key_object
from serve_app.admin.report_wire import UsageParameters, to_usage_query
from serve_app.admin.reports import SUM_EXAMPLE, answer_usage, report_content
from serve_app.http.authentication import identify
from serve_app.http.documented import documented
from serve_app.http.query import QueryModel, parse_query
from serve_app.http.rate_limit_headers import whole_seconds
from serve_app.http.resources import json_answer
from serve_app.services import Services
from serve_app.use_cases.callers import Dialect, Principal, Scope, WindowStanding

_STANDING_EXAMPLE = {
    "name": "minute",
    "counts": "requests",
    "quota": 100,
    "period_s": 60.0,
    "remaining": 98,
    "resets_in_s": 41,
}


class NoParameters(QueryModel):
    """The request is the same with any key."""


def standing_object(standing: WindowStanding) -> dict[str, Any]:
    return {
        "name": standing.window.name,
        "counts": standing.window.counts,
        "quota": standing.window.quota,
        "period_s": standing.window.period_s,
        "remaining": standing.remaining,
        "resets_in_s": whole_seconds(standing.resets_in_s),
    }


def add_routes(routes: APIRouter, services: Services) -> None:
    async def owner(request: Request) -> Principal:
        return await identify(request, services, scope=Scope.INFERENCE)

    async def read_account(request: Request) -> Response:
        """The key's account with its credit, the key itself, and how its windows stand. Counts in no window."""
        principal = await owner(request)
        parse_query(NoParameters, request)
        account = await services.accounts.get(principal.account)
        record = await services.keys.get(principal.key_id)
        limits = {
            dialect.value: [
                standing_object(standing) for standing in await services.admission.standings(principal, dialect)
            ]
            for dialect in Dialect
        }
        return json_answer({**account_object(account), "key": key_object(record), "windows": limits})

    async def read_usage(request: Request) -> Response:
        """Sums of the account's settled requests. A request counts on the day, in UTC, of its settlement."""
        principal = await owner(request)
        query = parse_query(UsageParameters, request)
        if query.key is not None and (await services.keys.get(query.key)).account != principal.account:
            raise NotFound(f"there is no key with the id {query.key!r}")
        return await answer_usage(services.usage, query, to_usage_query(query, account=principal.account))

    windows = {"aitextgen": [_STANDING_EXAMPLE], "inferkit": [], "totalgpt": []}
    account = documented("Read the key's account", answer={**ACCOUNT, "key": KEY, "windows": windows})
    routes.add_api_route("/v1/account", read_account, methods=["GET"], **account)
    used = documented("Read the account's usage", content=report_content(SUM_EXAMPLE), query=UsageParameters)
    routes.add_api_route("/v1/usage", read_usage, methods=["GET"], **used)
