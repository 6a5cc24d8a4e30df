"""The outbox of webhooks in SQL: events and what is to be delivered, written with the change that they tell of."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.ids import new_id
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import webhook_deliveries, webhook_endpoints, webhook_events
from serve_app.stores.upsert import insert_new
from serve_app.webhooks.event import WebhookEvent


async def enqueue(connection: AsyncConnection, event: WebhookEvent) -> None:
    """Adds the event, and a pending delivery for each live endpoint of its account that subscribed to its type.

    In the transaction of the caller. An event whose id is there already is not added again.
    """
    if not await _add_event(connection, event):
        return
    live = select(webhook_endpoints.c.id, webhook_endpoints.c.events).where(
        owned_by(webhook_endpoints, event.account),
        webhook_endpoints.c.disabled_at.is_(None),
        webhook_endpoints.c.deleted_at.is_(None),
    )
    endpoints = (await connection.execute(live)).all()
    rows = [_delivery(event, endpoint.id) for endpoint in endpoints if event.type.value in endpoint.events]
    if rows:
        await connection.execute(insert(webhook_deliveries), rows)


async def _add_event(connection: AsyncConnection, event: WebhookEvent) -> bool:
    row = {
        "id": event.id,
        "account": event.account,
        "type": event.type.value,
        "at": event.at,
        "payload": json.dumps(event.payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(),
    }
    return await insert_new(connection, webhook_events, row)


def _delivery(event: WebhookEvent, endpoint: str) -> Mapping[str, Any]:
    return {
        "id": new_id("whd_", 24),
        "account": event.account,
        "endpoint": endpoint,
        "event": event.id,
        "status": "pending",
        "created_at": event.at,
        "next_at": event.at,
        "leased": False,
    }
