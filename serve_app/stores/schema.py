"""The version of a database's schema: read at every start, brought up to date by migrations. Knows no table."""

from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table

from serve_app.config import SetupError
from serve_app.stores.backend import Backend

VERSION = "0002"
"""The newest migration, which this code needs."""

_versions = table("alembic_version", column("version_num"))


def version(connection: Connection) -> str | None:
    """The last migration that was run; None for a database without any."""
    if not inspect(connection).has_table(_versions.name):
        return None
    return connection.execute(select(_versions.c.version_num)).scalar_one_or_none()


def require_current(connection: Connection) -> None:
    """Raises SetupError where the schema is not the one that this code needs."""
    found = version(connection)
    if found == VERSION:
        return
    _require_known(found)
    raise SetupError(
        f"the schema of the database is {found or 'empty'} and {VERSION} is needed; "
        "stop the service, make a backup and run: tritext database migrate --config FILE"
    )


def migrate(connection: Connection, backend: Backend) -> tuple[str | None, str]:
    """Runs what is missing in the transaction of this connection; the versions before and after. Raises SetupError."""
    backend.lock_schema(connection)
    found = version(connection)
    _require_known(found)
    if found != VERSION:
        _run_migrations(connection)
    return found, VERSION


def _require_known(found: str | None) -> None:
    if found is not None and found > VERSION:
        raise SetupError(f"the schema of the database is {found}, made by a later version of tritext; run that one")


def _run_migrations(connection: Connection) -> None:
    # Imported here: most starts find nothing to do.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    command.upgrade(config, VERSION)
