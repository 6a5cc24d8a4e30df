"""Work that one transaction does at a time, whichever rows it finds. Knows no table."""

import hashlib

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection


async def alone(connection: AsyncConnection, name: str) -> None:
    """Waits until no other transaction has this name, and keeps it until the transaction ends.

    Rows that are read afterwards are as the last one to have the name left them. On SQLite, where one write
    transaction runs at a time, there is nothing to wait for.
    """
    if connection.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        await connection.execute(select(func.pg_advisory_xact_lock(number)))
