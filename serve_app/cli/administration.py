"""The use cases of administration over the configured database, for one command."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serve_app.cli.options import DEFAULT_PORT
from serve_app.config import Secrets
from serve_app.launcher.serve_file import read_serve_file
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.usage import SqlUsageReports
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.audit import AuditLog
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.models import ModelCatalog
from serve_app.use_cases.usage import UsageReports

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Administration:
    accounts: Accounts
    keys: Keys
    usage: UsageReports
    audit: AuditLog
    models: ModelCatalog


def administer(config: Path, ask: Callable[[Administration], Awaitable[T]], *, create: bool = False) -> T:
    """What `ask` answers. `create` makes the pepper where it is missing. Raises SetupError, ServiceError."""
    secrets = Secrets.load(create=create)
    app = read_serve_file(config, http_port=DEFAULT_PORT).config

    async def run() -> T:
        async with open_database(secrets.database_url(app)) as database:
            return await ask(
                Administration(
                    accounts=Accounts(SqlAccountStore(database)),
                    keys=Keys(SqlKeyStore(database), secrets.pepper()),
                    usage=SqlUsageReports(database),
                    audit=SqlAuditLog(database),
                    models=ModelCatalog(app.graph.models),
                )
            )

    return asyncio.run(run())
