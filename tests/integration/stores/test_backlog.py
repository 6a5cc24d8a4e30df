"""What waits, as both databases count it."""

from sqlalchemy import update

from serve_app.ledger.entries import Counts
from serve_app.stores.backlog import SqlBacklog
from serve_app.stores.database import Database
from serve_app.stores.tables import jobs
from serve_app.use_cases.backlog import Backlog
from tests.integration.stores.ledger_rows import add_key, make_admission, make_caller
from tests.integration.stores.plans import Plans, explain, recorded
from tests.integration.stores.webhook_rows import AT, make_hooks
from tests.job_rows import add_job

NOW = 2_000_100.0


async def test_an_empty_database_has_nothing_that_waits(database: Database) -> None:
    assert await SqlBacklog(database).backlog(NOW) == Backlog({}, None, 0, None, 0, 0, None)


async def test_jobs_count_by_status_and_wait_once_they_may_be_claimed(database: Database) -> None:
    async def add(created_at: float, **values: object) -> None:
        job = await add_job(database, created_at=created_at)
        statement = update(jobs).where(jobs.c.id == job.id).values(values)
        await database.transact(lambda connection: connection.execute(statement))

    await add(10.0, status="succeeded", finished_at=20.0)
    await add(30.0, status="queued", not_before=NOW + 1)
    await add(40.0, status="running")
    await add(50.0, status="queued")
    await add(60.0, status="queued")
    found = await SqlBacklog(database).backlog(NOW)
    assert (dict(found.jobs), found.queued_since) == ({"queued": 3, "running": 1}, 50.0)


async def test_webhooks_and_reservations_that_are_open(database: Database) -> None:
    hooks = await make_hooks(database)
    await hooks.endpoint()
    await hooks.happen()
    principal = await add_key(database, account="payer")
    admission = make_admission(database)
    settled = await admission.admit(make_caller(principal, "settled"), "base", Counts(1, 1))
    async with settled:
        pass
    open_ones = [await admission.admit(make_caller(principal, name), "base", Counts(10, 5)) for name in ("a", "b")]
    found = await SqlBacklog(database).backlog(NOW)
    assert (found.deliveries, found.due_at) == (1, AT)
    assert (found.reservations, found.held) == (2, sum(each.line.held for each in open_ones))
    assert found.reserved_since == min(each.line.created_at for each in open_ones)


async def test_what_is_open_is_found_by_its_index(database: Database) -> None:
    plans = Plans()
    with recorded(database, plans):
        await SqlBacklog(database).backlog(NOW)
    if database._engine.dialect.name == "sqlite":  # PostgreSQL scans what is empty
        await explain(database, plans)
        assert plans.scanned == set()
