"""What the tests of the ledger put into a database and read from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update

from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import Database
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.tables import accounts, keys, ledger, metadata
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import Keys

RULES = Rules(make_prices(BillingConfig()), make_limits(LimitsConfig()))


async def add_key(
    database: Database, *, account: str = "acme", budget: int | None = None, credit: int | None = None
) -> Principal:
    """A new key, of an account that is made if it is missing."""
    if not await rows(database, "accounts", id=account):
        await Accounts(SqlAccountStore(database)).create(account, actor="test")
    _, record = await Keys(SqlKeyStore(database), bytes(32)).create(
        account, "test", actor="test", grant=KeyGrant(budget=budget)
    )
    async with database.write() as connection:
        await connection.execute(update(accounts).where(accounts.c.id == account).values(credit=credit))
    return record.principal()


def make_admission(database: Database, *, owner: str = "owner") -> Admission:
    return Admission(SqlAdmissionStore(database), RULES, owner=owner)


def make_caller(principal: Principal, request_id: str, dialect: Dialect = Dialect.TOTALGPT) -> Caller:
    return Caller(request_id, dialect, principal)


async def rows(database: Database, table: str, **values: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of a table whose columns have these values."""
    found = metadata.tables[table]
    statement = select(found).where(*(found.c[name] == value for name, value in values.items()))
    async with database.read() as connection:
        return [dict(row) for row in (await connection.execute(statement)).mappings()]


async def row(database: Database, table: str, **values: Any) -> Mapping[str, Any]:
    [only] = await rows(database, table, **values)
    return only


async def assert_consistent(database: Database) -> None:
    """Nothing is open, nothing is reserved, and every sum is that of the ledger's lines."""
    lines = await rows(database, ledger.name)
    assert [line["id"] for line in lines if line["settled_at"] is None or line["owner"] is not None] == []
    for key in await rows(database, keys.name):
        assert key["reserved"] == 0
        assert key["spent"] == sum(line["cost"] for line in lines if line["key_id"] == key["id"])
    for account in await rows(database, accounts.name):
        assert account["reserved"] == 0
    usage = await rows(database, "usage_by_day")
    assert sum(day["requests"] for day in usage) == len(lines)
    for name in ("prompt_tokens", "completion_tokens", "characters", "cost"):
        assert sum(day[name] for day in usage) == sum(line[name] for line in lines)
