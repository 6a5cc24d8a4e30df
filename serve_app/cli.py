"""The command `tritext`: starts the service, and manages API keys and models beside it. Knows no HTTP."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError

from deployments.errors import ServiceError
from deployments.model_files import ModelSourceError
from deployments.model_source import resolve
from serve_app.config import Home, Secrets, SetupError
from serve_app.launcher import main as run_service
from serve_app.launcher.serve_file import read_serve_file
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.database import Database, open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.audit import COMMAND_LINE
from serve_app.use_cases.key_records import KeyRecord
from serve_app.use_cases.keys import CACHE_TTL_S, Keys

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
database_app = typer.Typer(no_args_is_help=True, help="The database of the service.")
model_app = typer.Typer(no_args_is_help=True, help="Models on this machine.")
app.add_typer(keys_app, name="keys")
app.add_typer(database_app, name="database")
app.add_typer(model_app, name="model")

Config = Annotated[Path, typer.Option(help="A Serve configuration file; its `args` say what to run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_ACCOUNT = "default"
DEFAULT_PORT = 8000
LOCAL_CONFIG = Path("infra/serve/local.yaml")


@app.callback()
def tritext() -> None:
    """Tritext: three text generation APIs over one deployment graph."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the HTTP API.")] = DEFAULT_PORT,
    config: Config = LOCAL_CONFIG,
    profile: Annotated[
        str, typer.Option(help="`throughput` (HAProxy, Linux), `plain`, or `auto`: the first that works here.")
    ] = "auto",
) -> None:
    """Start the service on this machine and run until Ctrl-C."""
    raise typer.Exit(run_service(port=port, config=config, profile=profile))


@keys_app.command("create")
def create_key(
    account: Annotated[str, typer.Option(help="Who is charged for what the key does.")] = DEFAULT_ACCOUNT,
    name: Annotated[str, typer.Option(help="A word to know the key by.")] = "key",
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="By default it does not expire.")] = None,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    expires_at = None if expires_in_days is None else datetime.now(UTC).timestamp() + expires_in_days * 86400

    async def create(database: Database, keys: Keys) -> tuple[str, KeyRecord]:
        if account == DEFAULT_ACCOUNT:
            await Accounts(SqlAccountStore(database)).ensure(account, actor=COMMAND_LINE)
        return await keys.create(account, name, actor=COMMAND_LINE, expires_at=expires_at)

    text, record = _with_keys(config, create, create=True)
    if as_json:
        _print_json({"key": text, **_public(record)})
    else:
        typer.echo(text)
        typer.echo(f"Key {record.id} of account {account}. Keep it: it is not shown again.", err=True)


@keys_app.command("list")
def list_keys(
    account: Annotated[str | None, typer.Option(help="Only the keys of this account.")] = None,
    config: Config = LOCAL_CONFIG,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first; the keys themselves cannot be shown."""
    rows = [_public(record) for record in _with_keys(config, lambda _, keys: keys.list(account))]
    if as_json:
        _print_json(rows)
    else:
        for row in rows:
            ended = "revoked" if row["revoked_at"] else f"expires {row['expires_at']}" if row["expires_at"] else ""
            typer.echo(f"{row['id']}  {row['created_at']}  {row['account']}  {row['name']}  {ended}".rstrip())


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")], config: Config = LOCAL_CONFIG) -> None:
    """End a key for good."""
    _with_keys(config, lambda _, keys: keys.revoke(key_id, actor=COMMAND_LINE))
    typer.echo(f"Key {key_id} is revoked; every process refuses it within {CACHE_TTL_S:g} s.")


@database_app.command("migrate")
def migrate_database(config: Config = LOCAL_CONFIG) -> None:
    """Bring the schema of the database up to date. Make a backup first, and stop the service."""

    async def migrate() -> tuple[str | None, str]:
        database = Database(Home().database_url(read_serve_file(config, http_port=DEFAULT_PORT).config))
        try:
            return await database.migrate()
        finally:
            await database.close()

    before, after = asyncio.run(migrate())
    typer.echo(f"The schema is {after} already." if before == after else f"The schema is {after} now.")


@model_app.command("prepare")
def prepare_models(config: Config = LOCAL_CONFIG) -> None:
    """Make the files of the configured models, so that the next start of the service need not."""
    # Imported here: they bring libraries that no other command needs.
    from deployments.engine.native.architecture import Unsupported
    from deployments.engine.native.loading import prepare

    home = Home().home
    for model in read_serve_file(config, http_port=DEFAULT_PORT).config.graph.models:
        directory = resolve(model.source, home, on_progress=_say, verify_digests=True)
        try:
            prepare(directory, model.engine, home, report=_say)
        except Unsupported as reason:
            _say(f"{model.id} runs on torch, not on the native kernels: {reason}")
        typer.echo(f"{model.id}  {directory}")


def main() -> None:
    """Runs the command line; what the user can mend is told in one sentence."""
    try:
        app()
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        _fail("; ".join(problems))
    except (ServiceError, SetupError, ModelSourceError, OSError) as error:
        _fail(error.message if isinstance(error, ServiceError) else str(error))


def _with_keys(config: Path, ask: Callable[[Database, Keys], Awaitable[T]], *, create: bool = False) -> T:
    """What `ask` answers about the keys of the configured database. `create` makes the pepper where it is missing."""
    secrets = Secrets.load(create=create)
    database_url = secrets.database_url(read_serve_file(config, http_port=DEFAULT_PORT).config)

    async def run() -> T:
        async with open_database(database_url) as database:
            return await ask(database, Keys(SqlKeyStore(database), secrets.pepper()))

    return asyncio.run(run())


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _public(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "account": record.account,
        "name": record.name,
        "created_at": _iso(record.created_at),
        "expires_at": _iso(record.expires_at),
        "revoked_at": _iso(record.revoked_at),
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str) -> NoReturn:
    typer.echo(f"tritext: {message}", err=True)
    raise SystemExit(1)
