"""What every key store promises, held against the one in memory and the one in SQL."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import update

from deployments.errors import NotFound
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import Database, open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.tables import keys
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.callers import Dialect, KeyLimits, Scope, Window
from serve_app.use_cases.key_records import KeyGrant, KeyRecord, KeyStore
from tests.unit.key_stores import InMemoryKeyStore

RECORD = KeyRecord("id-1", "acme", "laptop", b"\x00" * 32, created_at=1.25)
AUDIT = AuditEntry(1.5, "test", "key.test", "id-1", {"detail": [1, None, "ü"]})
GRANT = KeyGrant(
    scopes=frozenset(Scope),
    models=frozenset({"one", "two"}),
    limits=(
        (Dialect.AITEXTGEN, KeyLimits()),
        (Dialect.TOTALGPT, KeyLimits((Window("day", 7, 86400, "tokens"), Window("minute", 1, 60)), max_concurrent=3)),
    ),
    budget=10**18,
)


async def make_accounts(database: Database) -> None:
    accounts = Accounts(SqlAccountStore(database))
    for account in ("acme", "other"):
        await accounts.create(account, actor="test")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield InMemoryKeyStore(accounts=("acme", "other"))
        return
    async with open_database(request.getfixturevalue(f"{request.param}_url")) as database:
        await make_accounts(database)
        yield SqlKeyStore(database)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, expires_at=2.5, revoked_at=3.5, name="naïve 👍", digest=bytes(range(32))),
        replace(RECORD, grant=GRANT, old_digest=b"old", old_valid_until=4.5, last_used_at=60.0, spent=1, reserved=2),
    ],
)
async def test_a_record_comes_back_as_it_was(store: KeyStore, record: KeyRecord) -> None:
    await store.add(record, AUDIT)
    assert await store.get(record.id) == record


async def test_an_unknown_id_has_no_record(store: KeyStore) -> None:
    await store.add(RECORD, AUDIT)
    assert await store.get("id-2") is None
    assert await store.get("ID-1") is None
    assert await store.get("' OR 1=1 --") is None


async def test_a_key_needs_an_account(store: KeyStore) -> None:
    with pytest.raises(NotFound):
        await store.add(replace(RECORD, account="nobody"), AUDIT)
    assert await store.list(None) == []


async def test_ids_are_unique(store: KeyStore) -> None:
    await store.add(RECORD, AUDIT)
    with pytest.raises(Exception, match="id"):
        await store.add(replace(RECORD, account="other"), AUDIT)
    assert await store.list(None) == [RECORD]


async def test_records_are_listed_oldest_first_in_pages(store: KeyStore) -> None:
    second = replace(RECORD, id="id-0", created_at=2.0)
    third = replace(RECORD, id="id-2", created_at=2.0, account="other")
    for record in (third, RECORD, second):
        await store.add(record, AUDIT)
    assert await store.list(None) == [RECORD, second, third]
    assert await store.list("acme") == [RECORD, second]
    assert await store.list("nobody") == []
    assert await store.list(None, limit=1) == [RECORD]
    assert await store.list(None, after="id-1") == [second, third]
    assert await store.list(None, after="id-0") == [third]
    assert await store.list("acme", after="id-0") == []


async def test_changing_replaces_the_grant_of_one_key(store: KeyStore) -> None:
    other = replace(RECORD, id="id-2", created_at=2.0)
    await store.add(RECORD, AUDIT)
    await store.add(other, AUDIT)
    assert await store.change("id-1", GRANT, AUDIT)
    assert await store.list(None) == [replace(RECORD, grant=GRANT), other]
    assert await store.change("id-1", KeyGrant(), AUDIT)
    assert await store.list(None) == [RECORD, other]
    assert not await store.change("id-3", GRANT, AUDIT)


async def test_rotating_keeps_the_last_digest(store: KeyStore) -> None:
    await store.add(RECORD, AUDIT)
    assert await store.rotate("id-1", b"1" * 32, old_valid_until=5.5, audit=AUDIT)
    assert await store.rotate("id-1", b"2" * 32, old_valid_until=6.5, audit=AUDIT)
    expected = replace(RECORD, digest=b"2" * 32, old_digest=b"1" * 32, old_valid_until=6.5)
    assert await store.get("id-1") == expected
    assert not await store.rotate("id-3", b"1" * 32, old_valid_until=5.5, audit=AUDIT)


async def test_revoking_marks_one_record_for_good(store: KeyStore) -> None:
    other = replace(RECORD, id="id-2", created_at=2.0)
    await store.add(RECORD, AUDIT)
    await store.add(other, AUDIT)
    assert await store.revoke("id-1", 5.0, AUDIT)
    assert await store.revoke("id-1", 6.0, AUDIT)
    assert await store.list(None) == [replace(RECORD, revoked_at=5.0), other]


async def test_revoking_nothing_says_so(store: KeyStore) -> None:
    assert not await store.revoke("id-1", 5.0, AUDIT)


async def test_the_latest_use_is_kept(store: KeyStore) -> None:
    other = replace(RECORD, id="id-2", created_at=2.0)
    await store.add(RECORD, AUDIT)
    await store.add(other, AUDIT)
    await store.touch({"id-2": 60.0, "id-1": 180.0})
    await store.touch({"id-2": 120.0, "id-1": 120.0})
    assert [record.last_used_at for record in await store.list(None)] == [180.0, 120.0]


async def test_a_closed_account_shows_in_its_keys_and_gets_no_new_ones(database: Database) -> None:
    await make_accounts(database)
    store = SqlKeyStore(database)
    await store.add(RECORD, AUDIT)
    closed = await Accounts(SqlAccountStore(database), now=lambda: 7.5).close("acme", actor="test")
    assert closed.closed_at == 7.5
    assert await store.get("id-1") == replace(RECORD, account_closed_at=7.5)
    with pytest.raises(NotFound):
        await store.add(replace(RECORD, id="id-2"), AUDIT)


async def test_every_change_is_audited_in_the_same_transaction(database: Database) -> None:
    await make_accounts(database)
    store, log = SqlKeyStore(database), SqlAuditLog(database)
    before = len(await log.page())
    await store.add(RECORD, AUDIT)
    await store.change("id-1", GRANT, AUDIT)
    await store.rotate("id-1", b"1" * 32, old_valid_until=5.5, audit=AUDIT)
    await store.revoke("id-1", 5.0, AUDIT)
    await store.revoke("id-3", 5.0, AUDIT)  # nothing happens
    rows = await log.page()
    assert [row.entry for row in rows][:-before] == [AUDIT] * 4


async def test_an_act_that_cannot_be_audited_does_not_happen(database: Database) -> None:
    await make_accounts(database)
    store = SqlKeyStore(database)
    await store.add(RECORD, AUDIT)
    with pytest.raises(Exception, match="JSON"):
        await store.revoke("id-1", 9.0, replace(AUDIT, details={"not": object()}))
    assert await store.get("id-1") == RECORD
    async with database.write() as connection:
        await connection.execute(update(keys).values(name="still writable"))
