"""The API key that a start prints: made once, kept in a private file, checked to work."""

import asyncio
from pathlib import Path

from deployments.errors import Unauthenticated
from serve_app.launcher.local_state import write_private
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.database import open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.callers import Scope
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import Keys

ACCOUNT = "default"
ACTOR = "launcher"


def ensure_first_key(key_file: Path, *, database_url: str, pepper: bytes) -> str:
    """The key in the file if it is still valid for everything, else a new one, which the file then holds."""

    kept = key_file.read_text("ascii").strip() if key_file.exists() else ""
    key = asyncio.run(_valid_key(kept, database_url, pepper))
    if key != kept:
        write_private(key_file, key)
    return key


async def _valid_key(kept: str, database_url: str, pepper: bytes) -> str:
    async with open_database(database_url) as database:
        keys = Keys(SqlKeyStore(database), pepper)
        if await _is_valid(kept, keys):
            return kept
        await Accounts(SqlAccountStore(database)).ensure(ACCOUNT, actor=ACTOR)
        key, _ = await keys.create(ACCOUNT, "first key", grant=KeyGrant(scopes=frozenset(Scope)), actor=ACTOR)
        return key


async def _is_valid(key: str, keys: Keys) -> bool:
    try:
        principal = await keys.authenticate(key)
    except Unauthenticated:
        return False
    return principal.scopes == frozenset(Scope)
