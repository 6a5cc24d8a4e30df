"""The outbox of webhooks in SQL: events and what is to be delivered, written with the change that they tell of.

Locks are taken in one order by everybody: the endpoint, then its deliveries.
"""

import json
from typing import Any

from sqlalchemy import and_, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.ids import new_id
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import accounts, webhook_deliveries, webhook_endpoints, webhook_events
from serve_app.stores.upsert import insert_new
from serve_app.webhooks.endpoint import DeliveryStatus
from serve_app.webhooks.event import WebhookEvent

_columns = webhook_deliveries.c
_endpoint = webhook_endpoints.c

IS_LIVE = and_(_endpoint.disabled_at.is_(None), _endpoint.deleted_at.is_(None))
"""Of an endpoint: it is there, and enabled."""


async def enqueue(connection: AsyncConnection, event: WebhookEvent) -> None:
    """Adds the event, and a pending delivery for each live endpoint of its account that subscribed to its type.

    In the transaction of the caller. An event whose id is there already is not added again, and none is where the
    account is closed.
    """
    is_closed = exists().where(accounts.c.id == event.account, accounts.c.closed_at.is_not(None))
    if (await connection.execute(select(is_closed))).scalar_one():
        return
    if not await _add_event(connection, event):
        return
    live = select(_endpoint.id, _endpoint.events).where(owned_by(webhook_endpoints, event.account), IS_LIVE)
    for endpoint in (await connection.execute(live)).all():
        if event.type.value in endpoint.events:
            await _add_delivery(connection, event, endpoint.id)


async def enqueue_for(connection: AsyncConnection, event: WebhookEvent, endpoint: str) -> str:
    """Adds the event, and a pending delivery for this endpoint alone, whose id it answers."""
    await _add_event(connection, event)
    return await _add_delivery(connection, event, endpoint)


async def end_pending(connection: AsyncConnection, endpoint: str, at: float, why: str) -> None:
    """Ends what is pending for an endpoint that the caller has locked, but for what is being sent at this moment."""
    is_waiting = and_(_columns.endpoint == endpoint, _columns.next_at.is_not(None), ~_columns.leased)
    values = ended(DeliveryStatus.FAILED, at) | {"error": why}
    await connection.execute(update(webhook_deliveries).where(is_waiting).values(values))


def ended(status: DeliveryStatus, at: float) -> dict[str, Any]:
    """What changes of a delivery that ends."""
    return {"status": status.value, "leased": False, "next_at": None, "finished_at": at}


async def _add_event(connection: AsyncConnection, event: WebhookEvent) -> bool:
    row = {
        "id": event.id,
        "account": event.account,
        "type": event.type.value,
        "at": event.at,
        "payload": json.dumps(event.payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(),
    }
    return await insert_new(connection, webhook_events, row)


async def _add_delivery(connection: AsyncConnection, event: WebhookEvent, endpoint: str) -> str:
    delivery_id = new_id("whd_", 24)
    row = {
        "id": delivery_id,
        "account": event.account,
        "endpoint": endpoint,
        "event": event.id,
        "status": DeliveryStatus.PENDING.value,
        "created_at": event.at,
        "next_at": event.at,
        "leased": False,
    }
    await connection.execute(insert(webhook_deliveries).values(row))
    return delivery_id
