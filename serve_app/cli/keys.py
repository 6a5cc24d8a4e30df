"""`tritext keys`: who may call, and what with."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from serve_app.cli.administration import Administration, administer
from serve_app.cli.key_limits import parse_window, with_limits
from serve_app.cli.options import (
    DEFAULT_ACCOUNT,
    LOCAL_CONFIG,
    AsJson,
    Config,
    credits_or_none,
    to_iso,
    to_microcredits,
)
from serve_app.cli.output import print_json, say
from serve_app.ledger.credits import spell_credits
from serve_app.use_cases.audit import COMMAND_LINE
from serve_app.use_cases.callers import Dialect, KeyLimits, Scope
from serve_app.use_cases.key_records import KeyGrant, KeyRecord, describe_limits
from serve_app.use_cases.keys import CACHE_TTL_S, Keys
from serve_app.use_cases.models import ModelCatalog

app = typer.Typer(no_args_is_help=True, help="API keys: who may call, and what with.")

KeyId = Annotated[str, typer.Argument(metavar="ID")]
Scopes = Annotated[list[Scope] | None, typer.Option("--scope", help="What it may be used for; may be repeated.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model that it may use; may be repeated.")]
Budget = Annotated[str | None, typer.Option(help="Credits that it may spend in all.")]


@app.command("create")
def create_key(
    account: Annotated[str, typer.Option(help="Who is charged for what the key does.")] = DEFAULT_ACCOUNT,
    name: Annotated[str, typer.Option(help="A word to know the key by.")] = "key",
    scopes: Scopes = None,
    models: Models = None,
    budget: Budget = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="By default it does not expire.")] = None,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: the only time that it can be seen. By default for inference, with every model."""
    expires_at = None if expires_in_days is None else datetime.now(UTC).timestamp() + expires_in_days * 86400

    async def create(admin: Administration) -> tuple[str, KeyRecord]:
        grant = KeyGrant(
            scopes=frozenset(scopes or [Scope.INFERENCE]),
            models=_ids(models, admin.models) if models else None,
            budget=None if budget is None else to_microcredits(budget),
        )
        if account == DEFAULT_ACCOUNT:
            await admin.accounts.ensure(account, actor=COMMAND_LINE)
        return await admin.keys.create(account, name, grant=grant, expires_at=expires_at, actor=COMMAND_LINE)

    text, record = administer(config, create, create=True)
    _print_secret(text, record, as_json=as_json)


@app.command("list")
def list_keys(
    account: Annotated[str | None, typer.Option(help="Only the keys of this account.")] = None,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first; the keys themselves cannot be shown."""
    records = administer(config, lambda admin: _all(admin.keys, account))
    if as_json:
        print_json([_public(record) for record in records])
    else:
        for record in records:
            typer.echo(_line(record))


@app.command("change")
def change_key(
    key_id: KeyId,
    scopes: Scopes = None,
    models: Models = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Every model, also later ones.")] = False,
    budget: Budget = None,
    no_budget: Annotated[bool, typer.Option("--no-budget", help="No bound of its own.")] = False,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Change what a key may do; what is not named stays."""

    def changed(grant: KeyGrant, catalog: ModelCatalog) -> KeyGrant:
        if scopes:
            grant = replace(grant, scopes=frozenset(scopes))
        if models or all_models:
            grant = replace(grant, models=None if all_models else _ids(models or [], catalog))
        if budget is not None or no_budget:
            grant = replace(grant, budget=None if no_budget else to_microcredits(budget or ""))
        return grant

    async def change(admin: Administration) -> KeyRecord:
        present = await admin.keys.get(key_id)
        return await admin.keys.change(key_id, changed(present.grant, admin.models), actor=COMMAND_LINE)

    _print_changed(administer(config, change), as_json=as_json)


@app.command("limits")
def limit_key(
    key_id: KeyId,
    dialect: Annotated[Dialect, typer.Option(help="The API that is limited.")],
    windows: Annotated[
        list[str] | None,
        typer.Option("--window", help="NAME=QUOTA/SECONDS, with `:tokens` where it counts tokens; may be repeated."),
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=0, help="Answers made at the same time.")] = None,
    configured: Annotated[bool, typer.Option("--configured", help="Take the key's own limits away.")] = False,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Replace the configured limits of one API for a key; without any window the key has none."""
    own = None if configured else KeyLimits(tuple(map(parse_window, windows or [])), max_concurrent)

    async def change(admin: Administration) -> KeyRecord:
        present = await admin.keys.get(key_id)
        return await admin.keys.change(key_id, with_limits(present.grant, dialect, own), actor=COMMAND_LINE)

    _print_changed(administer(config, change), as_json=as_json)


@app.command("rotate")
def rotate_key(
    key_id: KeyId,
    overlap_hours: Annotated[float, typer.Option(min=0, help="How long the old secret is still accepted.")] = 24.0,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and print it; id, limits, budget and usage stay."""
    text, record = administer(
        config, lambda admin: admin.keys.rotate(key_id, overlap_s=overlap_hours * 3600, actor=COMMAND_LINE)
    )
    _print_secret(text, record, as_json=as_json)


@app.command("revoke")
def revoke_key(key_id: KeyId, config: Config = LOCAL_CONFIG) -> None:
    """End a key for good."""
    administer(config, lambda admin: admin.keys.revoke(key_id, actor=COMMAND_LINE))
    typer.echo(f"Key {key_id} is revoked; every process refuses it within {CACHE_TTL_S:g} s.")


async def _all(keys: Keys, account: str | None) -> Sequence[KeyRecord]:
    found: list[KeyRecord] = []
    while page := await keys.list(account, after=found[-1].id if found else None):
        found += page
    return found


def _ids(names: Sequence[str], catalog: ModelCatalog) -> frozenset[str]:
    return frozenset(map(catalog.grantable_id, names))


def _print_secret(text: str, record: KeyRecord, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": text, **_public(record)})
        return
    typer.echo(text)
    say(f"Key {record.id} of account {record.account}. Keep it: it is not shown again.")


def _print_changed(record: KeyRecord, *, as_json: bool) -> None:
    if as_json:
        print_json(_public(record))
    else:
        typer.echo(f"{_line(record)}\nEvery process knows it within {CACHE_TTL_S:g} s.")


def _line(record: KeyRecord) -> str:
    notes = [", ".join(sorted(record.grant.scopes))]
    if record.grant.models is not None:
        notes.append(f"only {', '.join(sorted(record.grant.models))}")
    if record.grant.budget is not None:
        notes.append(f"spent {spell_credits(record.spent)} of {spell_credits(record.grant.budget)} credits")
    notes += [f"own limits for {dialect}" for dialect, _ in record.grant.limits]
    if record.last_used_at is not None:
        notes.append(f"last used {to_iso(record.last_used_at)}")
    if record.revoked_at is not None:
        notes.append("revoked")
    elif record.expires_at is not None:
        notes.append(f"expires {to_iso(record.expires_at)}")
    return f"{record.id}  {to_iso(record.created_at)}  {record.account}  {record.name}  {'; '.join(notes)}"


def _public(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "account": record.account,
        "name": record.name,
        "scopes": sorted(record.grant.scopes),
        "models": None if record.grant.models is None else sorted(record.grant.models),
        "limits": {dialect.value: describe_limits(limits) for dialect, limits in record.grant.limits},
        "budget": credits_or_none(record.grant.budget),
        "spent": spell_credits(record.spent),
        "reserved": spell_credits(record.reserved),
        "created_at": to_iso(record.created_at),
        "expires_at": to_iso(record.expires_at),
        "revoked_at": to_iso(record.revoked_at),
        "last_used_at": to_iso(record.last_used_at),
        "old_secret_valid_until": to_iso(record.old_valid_until),
    }
