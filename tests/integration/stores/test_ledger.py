"""The ledger in SQL, on both databases: rows, exactly-once settlement, owners that died."""

import asyncio

import pytest
from sqlalchemy import insert

from deployments.errors import OutOfCredits, Overloaded, RateLimited
from serve_app.ledger.entries import Counts, Outcome
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import Database
from serve_app.stores.owners import SqlOwners
from serve_app.stores.tables import idempotent_requests
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.ledger_upkeep import ALIVE_FOR_S, HEARTBEAT_S, SWEEP_S, LedgerUpkeep
from tests.integration.stores.ledger_rows import (
    RULES,
    add_key,
    assert_consistent,
    make_admission,
    make_caller,
    row,
    rows,
)

MOST = Counts(10, 20, 0)
MICRO = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make_upkeep(database: Database, clock: Clock, owner: str) -> LedgerUpkeep:
    store = SqlAdmissionStore(database, now=clock)
    admission = make_admission(database, owner=owner)
    return LedgerUpkeep(admission, store, SqlOwners(database), RULES.prices, owner=owner, now=clock)


async def beat_for(clock: Clock, seconds: float, *upkeeps: LedgerUpkeep) -> None:
    """Lets so much time pass, in which these processes live."""
    for _ in range(int(seconds / HEARTBEAT_S)):
        clock.now += HEARTBEAT_S
        await asyncio.gather(*(upkeep.beat() for upkeep in upkeeps))


async def test_a_request_is_held_and_settled_in_all_its_rows(database: Database) -> None:
    principal = await add_key(database, budget=1000 * MICRO, credit=500 * MICRO)
    admission = make_admission(database)
    reservation = await admission.admit(make_caller(principal, "r1"), "base", MOST)
    held = 90 * MICRO
    assert (await row(database, "keys"))["reserved"] == (await row(database, "accounts"))["reserved"] == held
    line = await row(database, "ledger")
    assert (line["held"], line["held_tokens"], line["owner"], line["settled_at"]) == (held, 30, "owner", None)
    await reservation.settle(Outcome.COMPLETED, about_to_send=Counts(10, 5, 17))
    line = await row(database, "ledger")
    assert (line["prompt_tokens"], line["completion_tokens"], line["characters"]) == (10, 5, 17)
    assert (line["cost"], line["outcome"]) == (30 * MICRO, "completed")
    assert (await row(database, "keys"))["spent"] == 30 * MICRO
    assert (await row(database, "accounts"))["credit"] == 470 * MICRO
    usage = await row(database, "usage_by_day")
    assert (usage["requests"], usage["characters"], usage["cost"]) == (1, 17, 30 * MICRO)
    await assert_consistent(database)


async def test_account_without_bound_stays_without_one(database: Database) -> None:
    principal = await add_key(database)
    async with await make_admission(database).admit(make_caller(principal, "r1"), "base", MOST) as reservation:
        reservation.delivered(Counts(10, 20, 0))
    assert (await row(database, "accounts"))["credit"] is None
    await assert_consistent(database)


async def test_a_group_of_all_kinds_is_one_consistent_step(database: Database) -> None:
    principal, other = await add_key(database), await add_key(database, account="other", credit=89 * MICRO)
    admission = make_admission(database)
    first = await admission.admit(make_caller(principal, "first"), "base", MOST)
    results = await asyncio.gather(
        first.settle(Outcome.COMPLETED, about_to_send=Counts(1, 1)),
        admission.admit(make_caller(principal, "second", Dialect.AITEXTGEN), "base", MOST),
        admission.admit(make_caller(other, "third"), "base", MOST),
        admission.count(make_caller(principal, "fourth", Dialect.AITEXTGEN)),
        admission.admit(make_caller(principal, "first"), "base", MOST),  # an id that is taken: this one alone fails
        return_exceptions=True,
    )
    assert [isinstance(result, Exception) for result in results] == [False, False, True, False, True]
    assert isinstance(results[2], OutOfCredits)
    await results[1].settle(Outcome.CANCELLED)  # type: ignore[union-attr]
    window = await row(database, "rate_windows", name="minute")
    assert window["used"] == 2
    await admission.drain()
    await assert_consistent(database)


async def test_windows_outlive_their_process(database: Database) -> None:
    principal = await add_key(database)
    for attempt in range(100):
        await make_admission(database).count(make_caller(principal, str(attempt), Dialect.AITEXTGEN))
    with pytest.raises(RateLimited):
        await make_admission(database).count(make_caller(principal, "again", Dialect.AITEXTGEN))
    standings = await make_admission(database).standings(principal, Dialect.AITEXTGEN)
    assert [standing.remaining for standing in standings] == [0, 4900]


async def test_what_a_dead_process_left_is_settled_from_its_progress_once(database: Database) -> None:
    principal, clock = await add_key(database), Clock()
    upkeep = make_upkeep(database, clock, "alive")
    await beat_for(clock, ALIVE_FOR_S + SWEEP_S, upkeep)
    dead = make_admission(database, owner="dead")
    await SqlOwners(database).beat("dead", clock.now + ALIVE_FOR_S)
    moved = await dead.admit(make_caller(principal, "moved"), "base", MOST)
    await dead.admit(make_caller(principal, "idle"), "base", MOST)
    moved.delivered(Counts(10, 3, 9))
    await dead.record_progress(older_than_s=0)
    moved.delivered(Counts(0, 1, 1))
    await upkeep.sweep()
    assert len([line for line in await rows(database, "ledger") if line["settled_at"] is None]) == 2

    await beat_for(clock, ALIVE_FOR_S, upkeep)
    await upkeep.sweep()
    lines = {line["id"]: line for line in await rows(database, "ledger")}
    assert {line["outcome"] for line in lines.values()} == {"lost"}
    assert (lines["moved"]["cost"], lines["idle"]["cost"]) == (22 * MICRO, 0)
    assert [owner["id"] for owner in await rows(database, "owners")] == ["alive"]

    with pytest.raises(Overloaded):
        await moved.settle(Outcome.COMPLETED)  # it was only paused
    await moved.settle(Outcome.COMPLETED)
    assert (await row(database, "ledger", id="moved"))["cost"] == 22 * MICRO
    await assert_consistent(database)


async def test_an_outage_of_the_database_makes_nobody_seem_dead(database: Database) -> None:
    principal, clock = await add_key(database), Clock()
    first, second = (make_upkeep(database, clock, owner) for owner in ("first", "second"))
    await beat_for(clock, 2 * ALIVE_FOR_S, first, second)
    running = await make_admission(database, owner="second").admit(make_caller(principal, "r1"), "base", MOST)

    clock.now += ALIVE_FOR_S + 1  # nobody could beat
    await first.sweep()
    await first.beat()
    await first.sweep()
    await beat_for(clock, SWEEP_S, first)
    await first.sweep()
    await second.beat()
    await beat_for(clock, ALIVE_FOR_S, first, second)
    await first.sweep()
    await running.settle(Outcome.COMPLETED, about_to_send=Counts(1, 1))
    assert (await row(database, "ledger"))["outcome"] == "completed"


async def test_who_starts_settles_for_the_dead_once_its_heart_has_beaten_for_a_while(database: Database) -> None:
    principal, clock = await add_key(database), Clock()
    await make_admission(database, owner="dead").admit(make_caller(principal, "r1"), "base", MOST)
    upkeep = make_upkeep(database, clock, "new")
    await upkeep.beat()
    await beat_for(clock, ALIVE_FOR_S - HEARTBEAT_S, upkeep)
    await upkeep.sweep()
    assert (await row(database, "ledger"))["outcome"] is None
    await beat_for(clock, HEARTBEAT_S, upkeep)
    await upkeep.sweep()
    assert (await row(database, "ledger"))["outcome"] == "lost"


async def test_nobody_settles_its_own_requests_as_lost(database: Database) -> None:
    principal, clock = await add_key(database), Clock()
    await make_admission(database, owner="me").admit(make_caller(principal, "r1"), "base", MOST)
    upkeep = make_upkeep(database, clock, "me")
    await beat_for(clock, ALIVE_FOR_S + SWEEP_S, upkeep)
    await SqlOwners(database).leave("me")
    await upkeep.sweep()
    assert (await row(database, "ledger"))["outcome"] is None


async def test_idempotent_requests_of_a_dead_process_can_be_run_again(database: Database) -> None:
    clock = Clock()
    values = {"account": "acme", "fingerprint": bytes(32), "created_at": 0.0, "expires_at": 1e12}
    async with database.write() as connection:
        for key, owner in (("dead's", "dead"), ("alive's", "alive"), ("answered", None)):
            await connection.execute(insert(idempotent_requests).values(key=key, owner=owner, **values))
    upkeep = make_upkeep(database, clock, "alive")
    await beat_for(clock, ALIVE_FOR_S + SWEEP_S, upkeep)
    await upkeep.sweep()
    assert {request["key"] for request in await rows(database, "idempotent_requests")} == {"alive's", "answered"}


async def test_process_that_ends_in_order_leaves_no_trace(database: Database) -> None:
    clock = Clock()
    async with make_upkeep(database, clock, "me").running():
        assert [owner["id"] for owner in await rows(database, "owners")] == ["me"]
    assert await rows(database, "owners") == []
