"""Hot queries find their rows by an index, on both databases, whatever else the tables hold."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import insert, text

from serve_app.ledger.entries import Counts, Line, Opening, Outcome, Progress, Settlement, Visit
from serve_app.limits.windows import Window
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import Database, open_database
from serve_app.stores.idempotency import SqlIdempotentRequests
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.owners import SqlOwners
from serve_app.stores.tables import (
    accounts,
    audit_log,
    idempotent_requests,
    keys,
    ledger,
    owners,
    rate_windows,
    usage_by_day,
)
from serve_app.stores.usage import SqlUsageReports
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.idempotency import KeptAnswer
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.usage import LedgerLine, LedgerQuery, UsageGroup, UsageQuery
from tests.databases import run_apart
from tests.integration.stores.plans import Plans, explain, recorded

NUM_ACCOUNTS = 1000
NUM_ROWS = 8000
AUDIT = AuditEntry(1.0, "test", "test", "test", {})
LINE = LedgerLine("request-5000", "account-1", "key-1", Dialect.TOTALGPT, "m", 5000.0, None, 0, 0, 0, 0, 0, None)

Query = Callable[[Database], Awaitable[object]]


@pytest.fixture(scope="module")
def filled_url(shared_database_url: str) -> str:
    run_apart(fill(shared_database_url))
    return shared_database_url


async def fill(url: str) -> None:
    """Rows of many accounts, so that reading a table from one end to the other is the worse plan."""

    def account(number: int) -> str:
        return f"account-{number % NUM_ACCOUNTS}"

    sums = {"prompt_tokens": 1, "completion_tokens": 1, "characters": 1, "cost": 1}
    place = {"dialect": "totalgpt", "model": "m"}
    rows = {
        accounts: [{"id": account(number), "name": "n", "created_at": 0.0} for number in range(NUM_ACCOUNTS)],
        keys: [
            {
                "id": f"key-{number}",
                "account": account(number),
                "name": "n",
                "digest": b"",
                "scopes": [],
                "limits": {},
                "created_at": float(number),
            }
            for number in range(NUM_ROWS)
        ],
        owners: [{"id": "here", "alive_until": 1e9}],
        ledger: [
            {
                "id": f"request-{number}",
                "account": f"account-{number % 4}",  # whose lines fill many pages
                "key_id": f"key-{number % 40}",
                "created_at": float(number),
                "settled_at": float(number),
                "held": 0,
                "held_tokens": 0,
                **place,
                **sums,
            }
            for number in range(NUM_ROWS)
        ],
        usage_by_day: [
            {
                "day": f"2026-01-{1 + number // 800:02}",
                "account": account(number),
                "key_id": f"key-{number}",
                "requests": 1,
                **place,
                **sums,
            }
            for number in range(NUM_ROWS)
        ],
        idempotent_requests: [
            {
                "account": account(number),
                "key": f"key-{number}",
                "fingerprint": b"",
                "created_at": 0.0,
                "expires_at": 1000.0 + number,
                "status": 200,
                "headers": [],
                "body": b"",
            }
            for number in range(NUM_ROWS)
        ],
        rate_windows: [
            {"key_id": f"key-{number}", "dialect": "totalgpt", "name": "day", "started_at": 0.0, "used": 1}
            for number in range(NUM_ROWS)
        ],
        audit_log: [
            {"at": float(number), "actor": "a", "action": "b", "target": "c", "details": {}}
            for number in range(NUM_ROWS)
        ],
    }
    async with open_database(url) as database, database.write() as connection:
        for table, values in rows.items():
            await connection.execute(insert(table), values)
        await connection.execute(text("ANALYZE"))


def idempotency(database: Database) -> SqlIdempotentRequests:
    return SqlIdempotentRequests(database, "here", now=lambda: 1001.5)


async def run_idempotent(database: Database) -> None:
    requests = idempotency(database)
    await requests.begin("account-1", "new", b"1")
    await requests.finish("account-1", "new", KeptAnswer(200, (), b""))
    await requests.begin("account-1", "new", b"1")
    await requests.begin("account-1", "other", b"1")
    await requests.abandon("account-1", "other")


async def run_billed(database: Database) -> None:
    store = SqlAdmissionStore(database)
    line = Line("new", "account-7", "key-7", "totalgpt", "m", "here", held=5, held_tokens=5)
    await store.open(Opening(line, WINDOWS, max_concurrent=3))
    await store.record([Progress("new", Counts(1, 1, 1))])
    await store.settle(Settlement(line, Counts(1, 2, 3), 4, Outcome.COMPLETED, token_windows=WINDOWS[1:]))
    await store.visit(Visit("key-7", "account-7", "totalgpt", WINDOWS))
    await store.standings("key-7", "totalgpt", WINDOWS)


async def run_upkeep(database: Database) -> None:
    processes = SqlOwners(database)
    await processes.beat("here", 1e9)
    await processes.lost_lines(0.0, besides="owner", limit=10)
    await processes.forget_dead(0.0)


WINDOWS = (Window("minute", 10**6, 60), Window("day", 10**9, 86400, "tokens"))
BY_DAY = (UsageGroup.DAY, UsageGroup.KEY, UsageGroup.DIALECT, UsageGroup.MODEL)

SELECTIVE: dict[str, Query] = {
    "a key by its id": lambda database: SqlKeyStore(database).get("key-77"),
    "the keys of an account": lambda database: SqlKeyStore(database).list("account-7"),
    "a key's changes": lambda database: SqlKeyStore(database).change("key-77", KeyGrant(), AUDIT),
    "last uses of keys": lambda database: SqlKeyStore(database).touch({"key-77": 60.0, "key-78": 60.0}),
    "an account by its id": lambda database: SqlAccountStore(database).get("account-7"),
    "a grant": lambda database: SqlAccountStore(database).grant("account-7", 5, "", AUDIT),
    "a request that is billed": run_billed,
    "the search for what dead processes left": run_upkeep,
    "an idempotent request": run_idempotent,
    "expired idempotent requests": lambda database: idempotency(database).delete_expired(),
    "usage of an account": lambda database: SqlUsageReports(database).sums(
        UsageQuery(account="account-7", group_by=BY_DAY)
    ),
    "usage of an account in some days": lambda database: SqlUsageReports(database).sums(
        UsageQuery(account="account-7", first_day="2026-01-02", last_day="2026-01-03", group_by=(UsageGroup.MODEL,))
    ),
    "usage of everybody on a day": lambda database: SqlUsageReports(database).sums(
        UsageQuery(first_day="2026-01-03", last_day="2026-01-03")
    ),
}
PAGES: dict[str, Query] = {
    "lines of an account": lambda database: SqlUsageReports(database).ledger(
        LedgerQuery(account="account-1"), after=LINE, limit=10
    ),
    "lines of an account since": lambda database: SqlUsageReports(database).ledger(
        LedgerQuery(account="account-1", since=4000.0, until=7000.0), limit=10
    ),
    "lines of everybody": lambda database: SqlUsageReports(database).ledger(LedgerQuery(), after=LINE, limit=10),
    "lines of a key": lambda database: SqlUsageReports(database).ledger(LedgerQuery(key_id="key-7"), limit=5),
    "the first lines": lambda database: SqlUsageReports(database).ledger(LedgerQuery(), limit=10),
    "the audit log": lambda database: SqlAuditLog(database).page(before=5000, limit=10),
    "accounts": lambda database: SqlAccountStore(database).list(after="account-100", limit=10),
}


@pytest.mark.parametrize("name", [*SELECTIVE, *PAGES])
async def test_no_table_is_read_from_one_end_to_the_other(filled: Database, name: str) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await {**SELECTIVE, **PAGES}[name](filled)
    await explain(filled, plans)
    assert plans.plans
    assert plans.scanned <= {"owners"}, plans.plans


@pytest.mark.parametrize("name", list(PAGES))
async def test_pages_come_in_the_order_of_an_index(filled: Database, name: str) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await PAGES[name](filled)
    await explain(filled, plans)
    assert not plans.is_sorted, plans.plans


async def test_a_query_without_an_index_is_noticed(filled: Database) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await SqlUsageReports(filled).ledger(LedgerQuery(model="nothing"))
        await SqlUsageReports(filled).sums(UsageQuery(model="nothing", group_by=(UsageGroup.MODEL,)))
    await explain(filled, plans)
    assert "usage_by_day" in plans.scanned
