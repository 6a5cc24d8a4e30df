import asyncio
import stat
from pathlib import Path

from serve_app.launcher.first_key import ensure_first_key
from serve_app.stores.keys import open_keys

PEPPER = b"p" * 32


def url(directory: Path) -> str:
    return f"sqlite:///{directory / 'test.db'}"


def ensure(directory: Path) -> str:
    return ensure_first_key(directory / "first_key", database_url=url(directory), pepper=PEPPER)


def revoke(directory: Path, key_id: str) -> None:
    async def run() -> None:
        async with open_keys(url(directory), PEPPER) as keys:
            await keys.revoke(key_id)

    asyncio.run(run())


def test_every_start_gives_the_same_key(tmp_path: Path) -> None:
    assert ensure(tmp_path) == ensure(tmp_path)
    assert stat.S_IMODE((tmp_path / "first_key").stat().st_mode) == 0o600


def test_a_revoked_key_is_replaced_by_one_that_works(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    revoke(tmp_path, first.split("_")[1])
    second = ensure(tmp_path)
    assert second != first
    assert ensure(tmp_path) == second


def test_a_key_of_another_database_is_replaced(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    for path in tmp_path.glob("test.db*"):
        path.unlink()
    assert ensure(tmp_path) != first
