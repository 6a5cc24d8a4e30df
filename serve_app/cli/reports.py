"""`tritext usage`, `ledger` and `audit`: what was used, request by request too, and who changed what."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from serve_app.cli.administration import Administration, administer
from serve_app.cli.options import LOCAL_CONFIG, Config, credits_or_none, to_iso, to_seconds
from serve_app.cli.output import CsvPrinter, print_line, print_table
from serve_app.ledger.credits import spell_credits
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

Account = Annotated[str | None, typer.Option(help="Only this account.")]
Key = Annotated[str | None, typer.Option(help="Only the key of this id.")]
OneDialect = Annotated[Dialect | None, typer.Option(help="Only this API.")]
Model = Annotated[str | None, typer.Option(help="Only the model of this id.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
AsLines = Annotated[bool, typer.Option("--jsonl", help="Print JSON lines.")]

_DAYS = ["%Y-%m-%d"]
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
_SUMS = ("requests", "prompt_tokens", "completion_tokens", "characters", "cost")
_LINE = ("id", "account", "key", "dialect", "model", "created_at", "settled_at", "held", *_SUMS[1:], "outcome")
_AUDIT = ("id", "at", "actor", "action", "target", "details")


def usage(
    group_by: Annotated[
        list[UsageGroup] | None, typer.Option("--by", help="What sums are kept apart by; may be repeated.")
    ] = None,
    first_day: Annotated[datetime | None, typer.Option("--from", formats=_DAYS, help="The first day, UTC.")] = None,
    last_day: Annotated[datetime | None, typer.Option("--to", formats=_DAYS, help="The last day, UTC.")] = None,
    account: Account = None,
    key: Key = None,
    dialect: OneDialect = None,
    model: Model = None,
    as_csv: AsCsv = False,
    as_lines: AsLines = False,
    config: Config = LOCAL_CONFIG,
) -> None:
    """Sums of what was used and what it cost, in credits; by default by day and account."""
    groups = tuple(dict.fromkeys(group_by or [UsageGroup.DAY, UsageGroup.ACCOUNT]))
    query = UsageQuery(
        account=account,
        key_id=key,
        dialect=dialect,
        model=model,
        first_day=None if first_day is None else first_day.date().isoformat(),
        last_day=None if last_day is None else last_day.date().isoformat(),
        group_by=groups,
    )

    async def rows(admin: Administration) -> AsyncIterator[Mapping[str, Any]]:
        async for found in all_sums(admin.usage, query):
            yield _sum(found)

    async def report(admin: Administration) -> None:
        await _print((*groups, *_SUMS), rows(admin), as_csv=as_csv, as_lines=as_lines)

    administer(config, report)


def ledger(
    since: Annotated[
        datetime | None, typer.Option("--from", formats=_TIMES, help="Requests from then on, UTC.")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=_TIMES, help="Requests before then, UTC.")] = None,
    account: Account = None,
    key: Key = None,
    dialect: OneDialect = None,
    model: Model = None,
    as_csv: AsCsv = False,
    as_lines: AsLines = False,
    config: Config = LOCAL_CONFIG,
) -> None:
    """Every request with what it used and what it cost, oldest first."""
    query = LedgerQuery(account, key, dialect, model, to_seconds(since), to_seconds(until))

    async def rows(admin: Administration) -> AsyncIterator[Mapping[str, Any]]:
        async for line in all_lines(admin.usage, query):
            yield _line(line)

    async def report(admin: Administration) -> None:
        await _print(_LINE, rows(admin), as_csv=as_csv, as_lines=as_lines)

    administer(config, report)


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many acts.")] = 50,
    before: Annotated[int | None, typer.Option(help="Only acts with a smaller number.")] = None,
    as_lines: AsLines = False,
    config: Config = LOCAL_CONFIG,
) -> None:
    """Who changed what in the administration, newest first."""

    async def rows(admin: Administration) -> AsyncIterator[Mapping[str, Any]]:
        for row in await admin.audit.page(before=before, limit=limit):
            entry = row.entry
            values = (row.id, to_iso(entry.at), entry.actor, entry.action, entry.target, entry.details)
            yield dict(zip(_AUDIT, values, strict=True))

    async def report(admin: Administration) -> None:
        await _print(_AUDIT, rows(admin), as_csv=False, as_lines=as_lines)

    administer(config, report)


async def _print(
    columns: tuple[str, ...], rows: AsyncIterator[Mapping[str, Any]], *, as_csv: bool, as_lines: bool
) -> None:
    """CSV and JSON lines go out as they come; a table must know its longest values first."""
    if as_csv:
        printer = CsvPrinter(columns)
        async for row in rows:
            printer.print(row)
    elif as_lines:
        async for row in rows:
            print_line(row)
    else:
        print_table(columns, [row async for row in rows])


def _sum(found: UsageSum) -> dict[str, Any]:
    return {
        **{group.value: value for group, value in found.by},
        "requests": found.requests,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "characters": found.characters,
        "cost": spell_credits(found.cost),
    }


def _line(line: LedgerLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "account": line.account,
        "key": line.key_id,
        "dialect": line.dialect.value,
        "model": line.model,
        "created_at": to_iso(line.created_at),
        "settled_at": to_iso(line.settled_at),
        "held": spell_credits(line.held),
        "prompt_tokens": line.prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "characters": line.characters,
        "cost": credits_or_none(line.cost),
        "outcome": line.outcome,
    }
