import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from serve_app.launcher.first_key import ensure_first_key
from serve_app.stores.database import open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.callers import Scope
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import Keys

PEPPER = b"p" * 32
T = TypeVar("T")


def url(directory: Path) -> str:
    return f"sqlite:///{directory / 'test.db'}"


def ensure(directory: Path) -> str:
    return ensure_first_key(directory / "first_key", database_url=url(directory), pepper=PEPPER)


def ask(directory: Path, question: Callable[[Keys], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_database(url(directory)) as database:
            return await question(Keys(SqlKeyStore(database), PEPPER))

    return asyncio.run(run())


def test_every_start_gives_the_same_key(tmp_path: Path) -> None:
    assert ensure(tmp_path) == ensure(tmp_path)
    assert stat.S_IMODE((tmp_path / "first_key").stat().st_mode) == 0o600


def test_a_revoked_key_is_replaced_by_one_that_works(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    ask(tmp_path, lambda keys: keys.revoke(first.split("_")[1], actor="test"))
    second = ensure(tmp_path)
    assert second != first
    assert ensure(tmp_path) == second


def test_a_key_of_another_database_is_replaced(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    for path in tmp_path.glob("test.db*"):
        path.unlink()
    assert ensure(tmp_path) != first


def test_the_key_may_do_everything_for_the_default_account(tmp_path: Path) -> None:
    key = ensure(tmp_path)
    principal = ask(tmp_path, lambda keys: keys.authenticate(key))
    assert principal.account == "default"
    assert principal.scopes == frozenset(Scope)


def test_a_key_that_may_not_do_everything_is_replaced_and_still_works(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    ask(tmp_path, lambda keys: keys.change(first.split("_")[1], KeyGrant(), actor="test"))
    assert ensure(tmp_path) != first
    assert ask(tmp_path, lambda keys: keys.authenticate(first)).scopes == {Scope.INFERENCE}
