"""Which transactions of the ledger wait for the disk."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.ledger.entries import Counts, Outcome
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import Database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Caller, Dialect
from serve_app.use_cases.keys import Keys

T = TypeVar("T")


class WatchedDatabase(Database):
    """Remembers how its transactions were asked for."""

    are_passing: list[bool]

    async def transact_blocking(self, work: Callable[[Connection], T], *, is_passing: bool = False) -> T:
        self.are_passing.append(is_passing)
        return await super().transact_blocking(work, is_passing=is_passing)


async def test_what_was_delivered_waits_for_the_disk_and_admissions_alone_do_not(sqlite_url: str) -> None:
    database = await WatchedDatabase.open(sqlite_url)
    await Accounts(SqlAccountStore(database)).create("acme", actor="test")
    _, record = await Keys(SqlKeyStore(database), bytes(32)).create("acme", "a key", actor="test")
    rules = Rules(make_prices(BillingConfig()), make_limits(LimitsConfig()))
    admission = Admission(SqlAdmissionStore(database), rules, owner="me")

    def caller(number: int) -> Caller:
        return Caller(str(number), Dialect.AITEXTGEN, record.principal())

    database.are_passing = []
    first = await admission.admit(caller(1), "model", Counts(5, 10))
    await admission.count(caller(2))
    assert database.are_passing == [True, True]

    database.are_passing = []
    await asyncio.gather(
        admission.admit(caller(3), "model", Counts(5, 10)),
        first.settle(Outcome.COMPLETED, about_to_send=Counts(5, 7)),
    )
    assert database.are_passing == [False]  # both in one transaction
    await database.close()
