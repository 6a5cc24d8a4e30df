"""The command `tritext`: starts the service, and administers it beside it. Knows no HTTP."""

from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from deployments.errors import ServiceError
from deployments.model_files import ModelSourceError
from serve_app.cli import accounts, database, keys, models, reports
from serve_app.cli.options import DEFAULT_PORT, LOCAL_CONFIG, Config
from serve_app.config import SetupError
from serve_app.launcher import main as run_service

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(accounts.app, name="accounts")
app.add_typer(keys.app, name="keys")
app.add_typer(database.app, name="database")
app.add_typer(models.app, name="model")
app.command("usage")(reports.usage)
app.command("ledger")(reports.ledger)
app.command("audit")(reports.audit)


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


def main() -> None:
    """Runs the command line; what the user can mend is told in one sentence."""
    try:
        app()
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        _fail("; ".join(problems))
    except (ServiceError, SetupError, ModelSourceError, OSError) as error:
        _fail(error.message if isinstance(error, ServiceError) else str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"tritext: {message}", err=True)
    raise SystemExit(1)
