"""An idempotent request runs once: among many that come at once, after its answer, and when its process dies."""

import asyncio

import pytest
from sqlalchemy import func, insert, select, update

from deployments.errors import Conflict, IdempotencyMismatch
from serve_app.stores.database import Database
from serve_app.stores.idempotency import SqlIdempotentRequests
from serve_app.stores.tables import idempotent_requests, owners
from serve_app.use_cases.idempotency import KEPT_FOR_S, KeptAnswer

ANSWER = KeptAnswer(200, (("content-type", "text/plain"), ("x-two", "1"), ("x-two", "2")), b"\x00\xffbytes")
SAME, OTHER = b"1" * 32, b"2" * 32


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


class Service:
    """Two processes that are alive."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.here, self.there = (SqlIdempotentRequests(database, owner, now=self.clock) for owner in ("here", "there"))

    async def live_until(self, time: float, *ids: str) -> None:
        async with self.database.write() as connection:
            await connection.execute(update(owners).where(owners.c.id.in_(ids)).values(alive_until=time))

    async def num_rows(self) -> int:
        async with self.database.read() as connection:
            rows = await connection.execute(select(func.count()).select_from(idempotent_requests))
            return int(rows.scalar_one())


@pytest.fixture
async def service(database: Database) -> Service:
    async with database.write() as connection:
        await connection.execute(insert(owners), [{"id": id_, "alive_until": 10**9} for id_ in ("here", "there")])
    return Service(database)


async def test_an_answer_is_given_again_as_it_was(service: Service) -> None:
    assert await service.here.begin("acme", "key", SAME) is None
    await service.here.finish("acme", "key", ANSWER)
    for process in (service.here, service.there):
        assert await process.begin("acme", "key", SAME) == ANSWER


async def test_a_running_request_is_in_conflict_with_itself(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    for process in (service.here, service.there):
        with pytest.raises(Conflict):
            await process.begin("acme", "key", SAME)


async def test_another_request_under_the_same_key_is_refused(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    with pytest.raises(IdempotencyMismatch):
        await service.there.begin("acme", "key", OTHER)
    await service.here.finish("acme", "key", ANSWER)
    with pytest.raises(IdempotencyMismatch):
        await service.there.begin("acme", "key", OTHER)


async def test_accounts_do_not_meet(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    await service.here.finish("acme", "key", ANSWER)
    assert await service.here.begin("other", "key", OTHER) is None


async def test_an_abandoned_request_may_be_begun_again(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    await service.here.abandon("acme", "key")
    assert await service.there.begin("acme", "key", OTHER) is None


async def test_a_dead_process_loses_its_requests_and_cannot_finish_them(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    await service.live_until(service.clock.time, "here")
    with pytest.raises(IdempotencyMismatch):
        await service.there.begin("acme", "key", OTHER)
    assert await service.there.begin("acme", "key", SAME) is None
    await service.here.finish("acme", "key", KeptAnswer(500, (), b"late"))
    await service.here.abandon("acme", "key")
    await service.there.finish("acme", "key", ANSWER)
    assert await service.there.begin("acme", "key", SAME) == ANSWER


async def test_a_kept_answer_cannot_be_abandoned_or_replaced(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    await service.here.finish("acme", "key", ANSWER)
    await service.here.abandon("acme", "key")
    await service.here.finish("acme", "key", KeptAnswer(500, (), b"late"))
    assert await service.here.begin("acme", "key", SAME) == ANSWER


async def test_an_answer_is_kept_for_its_time(service: Service) -> None:
    await service.here.begin("acme", "key", SAME)
    await service.here.finish("acme", "key", ANSWER)
    service.clock.time += KEPT_FOR_S - 0.001
    await service.here.delete_expired()
    assert await service.here.begin("acme", "key", SAME) == ANSWER
    service.clock.time += 0.001
    assert await service.here.begin("acme", "key", OTHER) is None
    await service.here.finish("acme", "key", ANSWER)
    assert await service.here.begin("acme", "key", OTHER) == ANSWER


async def test_expired_rows_are_deleted(service: Service) -> None:
    await service.here.begin("acme", "old", SAME)
    service.clock.time += KEPT_FOR_S
    await service.here.begin("acme", "new", SAME)
    await service.there.delete_expired()
    assert await service.num_rows() == 1


async def test_of_many_that_come_at_once_one_runs(service: Service, database_url: str) -> None:
    databases = [await Database.open(database_url) for _ in range(3)]
    processes = [SqlIdempotentRequests(database, "here", now=service.clock) for database in databases]
    outcomes = await asyncio.gather(
        *(process.begin("acme", "key", SAME) for process in processes for _ in range(5)), return_exceptions=True
    )
    for database in databases:
        await database.close()
    assert outcomes.count(None) == 1
    assert [type(outcome) for outcome in outcomes].count(Conflict) == 14
