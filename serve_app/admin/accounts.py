"""Accounts and their credit: `/v1/admin/accounts`."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from serve_app.admin.amounts import Credits, to_credits, to_microcredits
from serve_app.admin.call import administrator, once, read_body
from serve_app.admin.documents import ACCOUNT
from serve_app.http.documented import documented, page_of
from serve_app.http.query import parse_query
from serve_app.http.resources import PageQuery, json_answer, page_object, path_id
from serve_app.http.times import to_iso
from serve_app.http.wire_model import WireModel
from serve_app.services import Services
from serve_app.use_cases.accounts import Account


class NewAccount(WireModel):
    id: str | None = Field(None, description="By default one that nobody can guess.")
    name: str | None = Field(None, description="For people; by default the id.")
    credit: Credits | None = Field(None, description="What it may spend; without it there is no bound.")


class RenamedAccount(WireModel):
    name: str


class Grant(WireModel):
    amount: Credits | None = Field(None, description="Credits to add; below zero: to take back.")
    unlimited: bool = Field(False, description="Instead of an amount: takes the bound of the credit away.")
    note: str = Field("", description="For the list of grants and the audit log.")


def account_object(account: Account) -> dict[str, Any]:
    """`credit` null: no bound."""
    return {
        "object": "account",
        "id": account.id,
        "name": account.name,
        "credit": to_credits(account.credit),
        "reserved": to_credits(account.reserved),
        "created_at": to_iso(account.created_at),
        "closed_at": to_iso(account.closed_at),
    }


def add_routes(routes: APIRouter, services: Services) -> None:
    @once(services)
    async def create_account(request: Request) -> Response:
        """Makes an account. A grant or an account without keys costs nothing; `credit` left out means no bound."""
        admin = await administrator(request, services)
        body = await read_body(request, services, NewAccount)
        account = await services.accounts.create(
            body.id, name=body.name, credit=to_microcredits(body.credit, "credit"), actor=admin.key_id
        )
        return json_answer(account_object(account), status=201, location=f"/v1/admin/accounts/{account.id}")

    async def list_accounts(request: Request) -> Response:
        """Accounts by id, closed ones too."""
        await administrator(request, services)
        query = parse_query(PageQuery, request)
        accounts = await services.accounts.list(after=query.after, limit=query.limit + 1)
        return json_answer(page_object(accounts, query.limit, account_object, lambda account: account.id))

    async def get_account(request: Request) -> Response:
        """One account."""
        await administrator(request, services)
        return json_answer(account_object(await services.accounts.get(path_id(request, "account"))))

    async def rename_account(request: Request) -> Response:
        """Changes the name of an account; its id stays."""
        admin = await administrator(request, services)
        account_id = path_id(request, "account")
        await services.accounts.get(account_id)
        body = await read_body(request, services, RenamedAccount)
        account = await services.accounts.rename(account_id, body.name, actor=admin.key_id)
        return json_answer(account_object(account))

    async def close_account(request: Request) -> Response:
        """Ends an account for good: its keys are refused. Its usage and its lines in the ledger stay."""
        admin = await administrator(request, services)
        account = await services.accounts.close(path_id(request, "account"), actor=admin.key_id)
        return json_answer(account_object(account))

    @once(services)
    async def grant_credit(request: Request) -> Response:
        """Adds to the credit of an account, or takes back. An account without a bound gets one: this amount."""
        admin = await administrator(request, services)
        account_id = path_id(request, "account")
        await services.accounts.get(account_id)
        body = await read_body(request, services, Grant)
        amount = to_microcredits(body.amount, "amount")
        if (amount is None) is not body.unlimited:
            raise InvalidParameter("amount must be given, or unlimited must be true, and not both", "amount")
        if amount is None:
            account = await services.accounts.set_unlimited(account_id, actor=admin.key_id)
        else:
            account = await services.accounts.grant(account_id, amount, note=body.note, actor=admin.key_id)
        return json_answer(account_object(account), status=201)

    path = "/v1/admin/accounts"
    requests: dict[str, dict[str, Any]] = {
        "prepaid": {"id": "acme", "name": "Acme Ltd.", "credit": 25000},
        "without bound": {},
    }
    created = documented("Create an account", answer=ACCOUNT, created=True, body=NewAccount, requests=requests)
    routes.add_api_route(path, create_account, methods=["POST"], **created)
    listed = documented("List accounts", answer=page_of(ACCOUNT), query=PageQuery)
    routes.add_api_route(path, list_accounts, methods=["GET"], **listed)
    routes.add_api_route(
        f"{path}/{{account}}", get_account, methods=["GET"], **documented("Retrieve an account", answer=ACCOUNT)
    )
    renamed = documented(
        "Rename an account", answer=ACCOUNT, body=RenamedAccount, requests={"rename": {"name": "Acme Ltd."}}
    )
    routes.add_api_route(f"{path}/{{account}}", rename_account, methods=["PATCH"], **renamed)
    closed = documented("Close an account", answer={**ACCOUNT, "closed_at": "2026-02-28T08:00:00Z"})
    routes.add_api_route(f"{path}/{{account}}", close_account, methods=["DELETE"], **closed)
    granted = documented(
        "Grant credit",
        answer=ACCOUNT,
        created=True,
        body=Grant,
        requests={"add": {"amount": 25000, "note": "invoice 17"}, "no bound": {"unlimited": True}},
    )
    routes.add_api_route(f"{path}/{{account}}/credits", grant_credit, methods=["POST"], **granted)
