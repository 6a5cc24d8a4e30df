"""The API key that a start prints: made once, kept in a private file, checked to work."""

import asyncio
from pathlib import Path

from deployments.errors import Unauthenticated
from serve_app.launcher.local_state import write_private
from serve_app.stores.keys import open_keys
from serve_app.use_cases.keys import Keys

ACCOUNT = "default"


def ensure_first_key(key_file: Path, *, database_url: str, pepper: bytes) -> str:
    """The key in the file if it is still valid, else a new one, which the file then holds."""

    kept = key_file.read_text("ascii").strip() if key_file.exists() else ""
    key = asyncio.run(_valid_key(kept, database_url, pepper))
    if key != kept:
        write_private(key_file, key)
    return key


async def _valid_key(kept: str, database_url: str, pepper: bytes) -> str:
    async with open_keys(database_url, pepper) as keys:
        if await _is_valid(kept, keys):
            return kept
        key, _ = await keys.create(ACCOUNT, "first key")
        return key


async def _is_valid(key: str, keys: Keys) -> bool:
    try:
        await keys.authenticate(key)
    except Unauthenticated:
        return False
    return True
