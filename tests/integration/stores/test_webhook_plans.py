"""The queries of webhooks find their rows by an index, on both databases, whatever else the tables hold."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import insert, text

from serve_app.stores.database import Database, open_database
from serve_app.stores.outbox import enqueue
from serve_app.stores.tables import accounts, webhook_deliveries, webhook_endpoints, webhook_events
from serve_app.stores.webhook_queue import SqlOutbox
from serve_app.stores.webhooks import SqlWebhooks
from serve_app.webhooks.attempt import Attempt
from serve_app.webhooks.event import EventType, WebhookEvent
from tests.databases import run_apart
from tests.integration.stores.plans import Plans, explain, recorded

NUM_ROWS = 8000
NUM_ENDPOINTS = 1000
NUM_DUE = 20

Query = Callable[[Database], Awaitable[object]]


@pytest.fixture(scope="module")
def filled_url(shared_database_url: str) -> str:
    run_apart(fill(shared_database_url))
    return shared_database_url


async def fill(url: str) -> None:
    """Many endpoints, the first of which has a quarter of the deliveries; few of all are due."""
    endpoints = [
        {
            "id": f"whep_{number}",
            "account": f"account-{number // 2}",
            "url": "https://example.com/",
            "events": ["finetune.completed"],
            "secret": b"",
            "created_at": float(number),
            # Few of them are deleted.
            "deleted_at": 1.0 if number > 990 else None,
        }
        for number in range(NUM_ENDPOINTS)
    ]
    events = [
        {"id": f"evt_{number}", "account": "a", "type": "finetune.completed", "at": float(number), "payload": b"{}"}
        for number in range(NUM_ROWS)
    ]
    deliveries = [
        {
            "id": f"whd_{number}",
            "account": f"account-{place // 2}",
            "endpoint": f"whep_{place}",
            "event": f"evt_{number}",
            "status": "pending" if number < NUM_DUE else "succeeded",
            "created_at": float(number),
            "next_at": 5.0 if number < NUM_DUE else None,
            "finished_at": None if number < NUM_DUE else float(number),
            "leased": False,
        }
        for number in range(NUM_ROWS)
        for place in [0 if number % 4 == 0 else number % NUM_ENDPOINTS]
    ]
    async with open_database(url) as database, database.write() as connection:
        for table, rows in (
            (accounts, [{"id": "account-7", "name": "n", "created_at": 0.0}]),
            (webhook_endpoints, endpoints),
            (webhook_events, events),
            (webhook_deliveries, deliveries),
        ):
            await connection.execute(insert(table), rows)
        await connection.execute(text("ANALYZE"))


async def run_delivery(database: Database) -> None:
    outbox = SqlOutbox(database)
    claims = await outbox.claim(10.0, 20.0, [])
    assert claims
    await outbox.record(claims[0], Attempt(10.0, status=410), None, disable_failing_since=0.0)
    await outbox.record(claims[1], Attempt(10.0, status=200), None, disable_failing_since=0.0)


async def run_event(database: Database) -> None:
    event = WebhookEvent("evt_new", "account-7", EventType.FINETUNE_COMPLETED, 100.0, {})
    await database.transact(lambda connection: enqueue(connection, event))


QUERIES: dict[str, Query] = {
    "a delivery": run_delivery,
    "an event": run_event,
    "a replay": lambda database: SqlWebhooks(database).replay("account-10", "whep_21", "whd_21", 1e9),
    "a deletion": lambda database: SqlWebhooks(database).delete("account-11", "whep_23", 1e9),
    "an endpoint by its id": lambda database: SqlWebhooks(database).get("account-7", "whep_14"),
    "what is to be forgotten": lambda database: SqlOutbox(database).forget(40.0),
}
PAGES: dict[str, Query] = {
    "endpoints of an account": lambda database: SqlWebhooks(database).list("account-7", after="whep_15", limit=10),
    "deliveries to an endpoint": lambda database: SqlWebhooks(database).deliveries(
        "account-0", "whep_0", after="whd_4000", limit=10
    ),
}
# There are few endpoints: once in an hour they may all be looked at, and joined with many deliveries they may be too.
MAY_SCAN = {"a delivery": {"webhook_endpoints"}, "what is to be forgotten": {"webhook_endpoints"}}


@pytest.mark.parametrize("name", [*PAGES, *QUERIES])
async def test_no_table_is_read_from_one_end_to_the_other(filled: Database, name: str) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await {**QUERIES, **PAGES}[name](filled)
    await explain(filled, plans)
    assert plans.plans
    assert plans.scanned <= {"accounts", *MAY_SCAN.get(name, ())}, plans.plans  # the one account


@pytest.mark.parametrize("name", list(PAGES))
async def test_pages_come_in_the_order_of_an_index(filled: Database, name: str) -> None:
    plans = Plans()
    with recorded(filled, plans):
        await PAGES[name](filled)
    await explain(filled, plans)
    assert not plans.is_sorted, plans.plans
