"""`tritext database`: the schema."""

import asyncio

import typer

from serve_app.cli.options import DEFAULT_PORT, LOCAL_CONFIG, Config
from serve_app.config import Home
from serve_app.launcher.serve_file import read_serve_file
from serve_app.stores.database import Database

app = typer.Typer(no_args_is_help=True, help="The database of the service.")


@app.callback()
def database() -> None:
    """The database of the service."""


@app.command("migrate")
def migrate_database(config: Config = LOCAL_CONFIG) -> None:
    """Bring the schema up to date. Make a backup first, and stop the service."""

    async def migrate() -> tuple[str | None, str]:
        database = Database(Home().database_url(read_serve_file(config, http_port=DEFAULT_PORT).config))
        try:
            return await database.migrate()
        finally:
            await database.close()

    before, after = asyncio.run(migrate())
    typer.echo(f"The schema is {after} already." if before == after else f"The schema is {after} now.")
