"""What every key store promises, held against the one in memory and the one in SQL."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.stores.database import Database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.keys import KeyRecord, KeyStore
from tests.unit.key_stores import InMemoryKeyStore

RECORD = KeyRecord("id-1", "acme", "laptop", b"\x00" * 32, created_at=1.25)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield InMemoryKeyStore()
        return
    database = await Database.open(f"sqlite:///{tmp_path / 'tritext.db'}")
    yield SqlKeyStore(database)
    await database.close()


@pytest.mark.parametrize(
    "record", [RECORD, replace(RECORD, expires_at=2.5, revoked_at=3.5, name="naïve 👍", digest=bytes(range(32)))]
)
async def test_a_record_comes_back_as_it_was(store: KeyStore, record: KeyRecord) -> None:
    await store.add(record)
    assert await store.get(record.id) == record


async def test_an_unknown_id_has_no_record(store: KeyStore) -> None:
    await store.add(RECORD)
    assert await store.get("id-2") is None
    assert await store.get("ID-1") is None
    assert await store.get("' OR 1=1 --") is None


async def test_ids_are_unique(store: KeyStore) -> None:
    await store.add(RECORD)
    with pytest.raises(Exception, match="id"):
        await store.add(replace(RECORD, account="other"))
    assert await store.list(None) == [RECORD]


async def test_records_are_listed_oldest_first(store: KeyStore) -> None:
    second = replace(RECORD, id="id-0", created_at=2.0)
    third = replace(RECORD, id="id-2", created_at=3.0, account="other")
    for record in (third, RECORD, second):
        await store.add(record)
    assert await store.list(None) == [RECORD, second, third]
    assert await store.list("acme") == [RECORD, second]
    assert await store.list("nobody") == []


async def test_revoking_marks_one_record_for_good(store: KeyStore) -> None:
    other = replace(RECORD, id="id-2", created_at=2.0)
    await store.add(RECORD)
    await store.add(other)
    assert await store.revoke("id-1", 5.0)
    assert await store.revoke("id-1", 6.0)
    assert await store.list(None) == [replace(RECORD, revoked_at=5.0), other]


async def test_revoking_nothing_says_so(store: KeyStore) -> None:
    assert not await store.revoke("id-1", 5.0)
