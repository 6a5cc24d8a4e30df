"""Accounts and credit: what may be done, by whom it is remembered, and that no grant is lost."""

import asyncio

import pytest
from sqlalchemy import func, select, update

from deployments.errors import Conflict, InvalidParameter, NotFound, PermissionDenied
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import Database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.tables import credit_grants, jobs
from serve_app.use_cases.accounts import MAX_AMOUNT, Account, Accounts
from tests.job_rows import add_endpoint, add_job, rows, stored


class Clock:
    time = 1000.5

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(database: Database, clock: Clock) -> Accounts:
    return Accounts(SqlAccountStore(database), now=clock)


async def test_a_new_account_has_unbounded_credit_and_the_name_of_its_id(accounts: Accounts) -> None:
    created = await accounts.create("acme", actor="test")
    assert created == Account("acme", "acme", 1000.5)
    assert await accounts.get("acme") == created


async def test_an_account_without_an_id_gets_one(accounts: Accounts) -> None:
    first, second = [await accounts.create(name="Acme Ltd.", actor="test") for _ in range(2)]
    assert first.id != second.id
    assert first.name == "Acme Ltd."


@pytest.mark.parametrize("bad", ["", "-acme", "a b", "a/b", "ä", "x" * 101, "..", "a\n"])
async def test_an_id_can_stand_in_a_path(accounts: Accounts, bad: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        await accounts.create(bad, actor="test")
    assert refused.value.param == "id"


async def test_ids_are_unique(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", credit=5, actor="test")
    with pytest.raises(Conflict):
        await accounts.create("acme", credit=7, actor="test")
    assert (await accounts.get("acme")).credit == 5
    assert await grants(database, "acme") == 5


async def test_processes_that_ensure_an_account_at_once_agree(accounts: Accounts) -> None:
    made = await asyncio.gather(*(accounts.ensure("default", actor="test") for _ in range(5)))
    assert set(made) == {await accounts.get("default")}


async def test_accounts_are_listed_by_id_in_pages(accounts: Accounts) -> None:
    for account_id in ("c", "a", "b"):
        await accounts.create(account_id, actor="test")
    assert [account.id for account in await accounts.list()] == ["a", "b", "c"]
    assert [account.id for account in await accounts.list(limit=2)] == ["a", "b"]
    assert [account.id for account in await accounts.list(after="a")] == ["b", "c"]


async def test_renaming_and_closing(accounts: Accounts, clock: Clock) -> None:
    await accounts.create("acme", actor="test")
    assert (await accounts.rename("acme", "Acme Ltd.", actor="test")).name == "Acme Ltd."
    assert (await accounts.close("acme", actor="test")).closed_at == 1000.5
    clock.time += 10
    assert (await accounts.close("acme", actor="test")).closed_at == 1000.5


async def test_closing_cancels_jobs_and_tells_it_last(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", actor="test")
    await add_endpoint(database, "acme", ["finetune.cancelled"])
    queue = SqlJobQueue(database, FineTuningConfig())
    running, waiting, paused = [await add_job(database, account="acme", created_at=number) for number in range(3)]
    other = await add_job(database, account="other", created_at=9.0)
    await SqlJobs(database).change("acme", paused.id, lambda job: transitions.paused(job, 9.0))
    assert (await queue.claim("w", 9.0, besides=(), takes_over=True)) is not None
    assert await queue.held("w") == {running.id: 1}
    await accounts.close("acme", actor="test")
    for job in (running, waiting, paused):
        assert ((await stored(database, job)).status, (await stored(database, job)).finished_at) == (
            "cancelled",
            1000.5,
        )
        assert (await rows(database, "job_events", job=job.id))[-1]["message"] == "The job was cancelled"
    assert await queue.held("w") == {}
    assert len(await rows(database, "webhook_deliveries", account="acme", status="pending")) == 3
    assert (await stored(database, other)).status == "queued"
    await accounts.close("acme", actor="test")
    assert len(await rows(database, "webhook_deliveries")) == 3


async def test_nothing_more_is_begun_or_told_for_a_closed_account(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", actor="test")
    await add_endpoint(database, "acme", ["finetune.cancelled"])
    await accounts.close("acme", actor="test")
    with pytest.raises(PermissionDenied):
        await add_job(database, account="acme")
    left = await add_job(database, account="other")
    async with database.write() as connection:  # as a database holds it that was restored in part
        await connection.execute(update(jobs).values(account="acme"))
    queue = SqlJobQueue(database, FineTuningConfig())
    assert await queue.claim("w", 9.0, besides=(), takes_over=True) is None
    await SqlJobs(database).change("acme", left.id, lambda job: transitions.cancelled(job, 9.0))
    assert await rows(database, "webhook_events") == []


async def test_credit_is_granted_taken_back_and_unbounded(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", actor="test")
    assert (await accounts.grant("acme", 5_000_000, note="invoice 17", actor="test")).credit == 5_000_000
    assert (await accounts.grant("acme", 1, actor="test")).credit == 5_000_001
    assert (await accounts.grant("acme", -6_000_000, actor="test")).credit == -999_999
    assert await grants(database, "acme") == -999_999
    assert (await accounts.set_unlimited("acme", actor="test")).credit is None


async def test_grants_that_come_at_once_all_count(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", credit=0, actor="test")
    await asyncio.gather(*(accounts.grant("acme", amount, actor="test") for amount in range(20)))
    assert (await accounts.get("acme")).credit == sum(range(20)) == await grants(database, "acme")


@pytest.mark.parametrize("amount", [MAX_AMOUNT + 1, -MAX_AMOUNT - 1])
async def test_an_amount_that_could_overflow_is_refused(accounts: Accounts, amount: int) -> None:
    await accounts.create("acme", actor="test")
    with pytest.raises(InvalidParameter):
        await accounts.grant("acme", amount, actor="test")
    with pytest.raises(InvalidParameter):
        await accounts.create("other", credit=amount, actor="test")


async def test_what_is_done_to_an_unknown_account_is_not_found_and_not_audited(
    accounts: Accounts, database: Database
) -> None:
    for act in (
        accounts.get("nobody"),
        accounts.rename("nobody", "name", actor="test"),
        accounts.close("nobody", actor="test"),
        accounts.grant("nobody", 5, actor="test"),
        accounts.set_unlimited("nobody", actor="test"),
    ):
        with pytest.raises(NotFound):
            await act
    assert await SqlAuditLog(database).page() == []
    assert await grants(database, "nobody") == 0


async def test_the_audit_log_tells_every_act_newest_first_in_pages(accounts: Accounts, database: Database) -> None:
    await accounts.create("acme", name="Acme", credit=7, actor="a")
    await accounts.grant("acme", 5, note="ü", actor="b")
    await accounts.close("acme", actor="c")
    log = SqlAuditLog(database)
    rows = await log.page()
    assert [(row.entry.actor, row.entry.action, row.entry.target, row.entry.details) for row in rows] == [
        ("c", "account.close", "acme", {}),
        ("b", "account.grant", "acme", {"amount": 5, "note": "ü"}),
        ("a", "account.create", "acme", {"name": "Acme", "credit": 7}),
    ]
    assert {row.entry.at for row in rows} == {1000.5}
    assert await log.page(limit=1) == rows[:1]
    assert await log.page(before=rows[0].id, limit=1) == rows[1:2]


async def grants(database: Database, account: str) -> int:
    statement = select(func.coalesce(func.sum(credit_grants.c.amount), 0)).where(credit_grants.c.account == account)
    async with database.read() as connection:
        return int((await connection.execute(statement)).scalar_one())
