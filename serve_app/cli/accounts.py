"""`tritext accounts`: who is charged, with what credit."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deployments.errors import InvalidParameter
from serve_app.cli.administration import Administration, administer
from serve_app.cli.options import LOCAL_CONFIG, AsJson, Config, credits_or_none, to_iso, to_microcredits
from serve_app.cli.output import print_json, print_table
from serve_app.use_cases.accounts import Account, Accounts
from serve_app.use_cases.audit import COMMAND_LINE

app = typer.Typer(no_args_is_help=True, help="Accounts: who is charged, with what credit.")

AccountId = Annotated[str, typer.Argument(metavar="ID")]


@app.command("create")
def create_account(
    account_id: AccountId,
    name: Annotated[str | None, typer.Option(help="For people; by default the id.")] = None,
    credit: Annotated[str | None, typer.Option(help="Credits that it may spend; by default without bound.")] = None,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make an account."""
    amount = None if credit is None else to_microcredits(credit)
    made = administer(
        config,
        lambda admin: admin.accounts.create(account_id, name=name, credit=amount, actor=COMMAND_LINE),
        create=True,
    )
    _print([made], as_json=as_json, is_one=True)


@app.command("list")
def list_accounts(config: Config = LOCAL_CONFIG, as_json: AsJson = False) -> None:
    """List accounts by id, closed ones too."""
    _print(administer(config, lambda admin: _all(admin.accounts)), as_json=as_json)


@app.command("credit", context_settings={"ignore_unknown_options": True})  # so that an amount may begin with a minus
def grant_credit(
    account_id: AccountId,
    amount: Annotated[str | None, typer.Argument(help="Credits to add; below zero: to take back.")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Take the bound of the credit away.")] = False,
    note: Annotated[str, typer.Option(help="For the list of grants and the audit log.")] = "",
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Add to the credit of an account. An account without a bound gets one: this amount."""
    if (amount is None) is not unlimited:
        raise InvalidParameter("give an amount of credits or --unlimited, and not both", "amount")

    async def change(admin: Administration) -> Account:
        if amount is None:
            return await admin.accounts.set_unlimited(account_id, actor=COMMAND_LINE)
        return await admin.accounts.grant(account_id, to_microcredits(amount), note=note, actor=COMMAND_LINE)

    _print([administer(config, change)], as_json=as_json, is_one=True)


@app.command("rename")
def rename_account(account_id: AccountId, name: str, config: Config = LOCAL_CONFIG, as_json: AsJson = False) -> None:
    """Change the name of an account; its id stays."""
    renamed = administer(config, lambda admin: admin.accounts.rename(account_id, name, actor=COMMAND_LINE))
    _print([renamed], as_json=as_json, is_one=True)


@app.command("close")
def close_account(account_id: AccountId, config: Config = LOCAL_CONFIG, as_json: AsJson = False) -> None:
    """End an account for good: its keys are refused, its usage stays."""
    closed = administer(config, lambda admin: admin.accounts.close(account_id, actor=COMMAND_LINE))
    _print([closed], as_json=as_json, is_one=True)


async def _all(accounts: Accounts) -> Sequence[Account]:
    found: list[Account] = []
    while page := await accounts.list(after=found[-1].id if found else None):
        found += page
    return found


def _print(accounts: Sequence[Account], *, as_json: bool, is_one: bool = False) -> None:
    rows = [_public(account) for account in accounts]
    if as_json:
        print_json(rows[0] if is_one else rows)
    else:
        print_table(("id", "name", "credit", "reserved", "created_at", "closed_at"), rows)


def _public(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "credit": credits_or_none(account.credit),
        "reserved": credits_or_none(account.reserved),
        "created_at": to_iso(account.created_at),
        "closed_at": to_iso(account.closed_at),
    }
