"""Webhook endpoints and their deliveries in SQL, as their owners see them."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Row, Select, Table, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import InvalidRequest, NotFound
from serve_app.stores.database import Database
from serve_app.stores.outbox import end_pending, enqueue_for
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import accounts, webhook_deliveries, webhook_endpoints, webhook_events
from serve_app.webhooks.endpoint import Delivery, DeliveryStatus, Endpoint
from serve_app.webhooks.event import EventType, WebhookEvent

_endpoint = webhook_endpoints.c
_delivery = webhook_deliveries.c
_ENDPOINT = [_endpoint[name] for name in Endpoint.__slots__]
_DELIVERY = [webhook_events.c.type if name == "type" else _delivery[name] for name in Delivery.__slots__]


class SqlWebhooks:
    """See `serve_app.use_cases.webhooks.WebhookStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, endpoint: Endpoint, secret: bytes, *, most: int) -> None:
        # Locked, so that no two count at the same time.
        account = select(accounts.c.id).where(accounts.c.id == endpoint.account).with_for_update(key_share=True)
        number = select(func.count()).where(
            owned_by(webhook_endpoints, endpoint.account), _endpoint.deleted_at.is_(None)
        )
        row = {name: getattr(endpoint, name) for name in Endpoint.__slots__} | {"secret": secret}

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(account)
            if (await connection.execute(number)).scalar_one() >= most:
                raise InvalidRequest(f"an account may have {most} webhooks; delete one that is not needed any more")
            await connection.execute(insert(webhook_endpoints).values(row))

        await self._database.transact(work)

    async def get(self, account: str, endpoint_id: str) -> Endpoint:
        async with self._database.read() as connection:
            return await _found(connection, account, endpoint_id)

    async def list(self, account: str, *, after: str | None, limit: int) -> Sequence[Endpoint]:
        own = select(*_ENDPOINT).where(owned_by(webhook_endpoints, account), _endpoint.deleted_at.is_(None))
        statement = _newest_first(own, webhook_endpoints, account, after).limit(limit)
        async with self._database.read() as connection:
            return [_to_endpoint(row) for row in await connection.execute(statement)]

    async def change(
        self, account: str, endpoint_id: str, change: Callable[[Endpoint], Endpoint], at: float
    ) -> Endpoint:
        async def work(connection: AsyncConnection) -> Endpoint:
            before = await _locked(connection, account, endpoint_id)
            after = change(before)
            values = {name: getattr(after, name) for name in Endpoint.__slots__}
            await connection.execute(update(webhook_endpoints).where(_endpoint.id == before.id).values(values))
            if before.is_enabled and not after.is_enabled:
                await end_pending(connection, after.id, at, "the endpoint was disabled")
            return after

        return await self._database.transact(work)

    async def rotate(self, account: str, endpoint_id: str, secret: bytes, *, old_until: float) -> Endpoint:
        values = {"secret": secret, "old_secret": _endpoint.secret, "old_secret_until": old_until}

        async def work(connection: AsyncConnection) -> Endpoint:
            await _locked(connection, account, endpoint_id)
            await connection.execute(update(webhook_endpoints).where(_endpoint.id == endpoint_id).values(values))
            return await _found(connection, account, endpoint_id)

        return await self._database.transact(work)

    async def delete(self, account: str, endpoint_id: str, at: float) -> None:
        values = {"deleted_at": at, "secret": b"", "old_secret": None, "old_secret_until": None}

        async def work(connection: AsyncConnection) -> None:
            await _locked(connection, account, endpoint_id)
            await connection.execute(update(webhook_endpoints).where(_endpoint.id == endpoint_id).values(values))
            await end_pending(connection, endpoint_id, at, "the endpoint was deleted")

        await self._database.transact(work)

    async def add_event(self, event: WebhookEvent, endpoint_id: str) -> Delivery:
        async def work(connection: AsyncConnection) -> Delivery:
            _require_enabled(await _locked(connection, event.account, endpoint_id))
            delivery_id = await enqueue_for(connection, event, endpoint_id)
            return await _found_delivery(connection, event.account, endpoint_id, delivery_id)

        return await self._database.transact(work)

    async def deliveries(self, account: str, endpoint_id: str, *, after: str | None, limit: int) -> Sequence[Delivery]:
        own = _deliveries(account, endpoint_id)
        statement = _newest_first(own, webhook_deliveries, account, after).limit(limit)
        async with self._database.read() as connection:
            await _found(connection, account, endpoint_id)
            return [_to_delivery(row) for row in await connection.execute(statement)]

    async def delivery(self, account: str, endpoint_id: str, delivery_id: str) -> Delivery:
        async with self._database.read() as connection:
            await _found(connection, account, endpoint_id)
            return await _found_delivery(connection, account, endpoint_id, delivery_id)

    async def replay(self, account: str, endpoint_id: str, delivery_id: str, at: float) -> Delivery:
        again = {"status": DeliveryStatus.PENDING.value, "attempts": 0, "next_at": at, "finished_at": None}
        is_it = (_delivery.id == delivery_id) & (_delivery.endpoint == endpoint_id) & ~_delivery.leased

        async def work(connection: AsyncConnection) -> Delivery:
            _require_enabled(await _locked(connection, account, endpoint_id))
            await connection.execute(update(webhook_deliveries).where(is_it).values(again))
            return await _found_delivery(connection, account, endpoint_id, delivery_id)

        return await self._database.transact(work)


def _is(account: str, endpoint_id: str) -> Select[Any]:
    is_own = owned_by(webhook_endpoints, account)
    return select(*_ENDPOINT).where(is_own, _endpoint.id == endpoint_id, _endpoint.deleted_at.is_(None))


async def _found(connection: AsyncConnection, account: str, endpoint_id: str) -> Endpoint:
    return _one(await connection.execute(_is(account, endpoint_id)), endpoint_id)


async def _locked(connection: AsyncConnection, account: str, endpoint_id: str) -> Endpoint:
    """KEY SHARE, which new deliveries take of it, is let in."""
    statement = _is(account, endpoint_id).with_for_update(key_share=True)
    return _one(await connection.execute(statement), endpoint_id)


def _one(found: Any, endpoint_id: str) -> Endpoint:
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no webhook {endpoint_id!r}")
    return _to_endpoint(row)


def _deliveries(account: str, endpoint_id: str) -> Select[Any]:
    joined = select(*_DELIVERY).join_from(webhook_deliveries, webhook_events)
    return joined.where(owned_by(webhook_deliveries, account), _delivery.endpoint == endpoint_id)


async def _found_delivery(connection: AsyncConnection, account: str, endpoint_id: str, delivery_id: str) -> Delivery:
    statement = _deliveries(account, endpoint_id).where(_delivery.id == delivery_id)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id!r} to this webhook")
    return _to_delivery(row)


def _newest_first(statement: Select[Any], table: Table, account: str, after: str | None) -> Select[Any]:
    """Those older than the row `after`, where one is given; none where that is no row of the account."""
    if after is not None:
        last = table.alias("last")
        place = select(last.c.created_at, last.c.id).where(last.c.id == after, owned_by(last, account))
        statement = statement.where(tuple_(table.c.created_at, table.c.id) < place.scalar_subquery())
    return statement.order_by(table.c.created_at.desc(), table.c.id.desc())


def _require_enabled(endpoint: Endpoint) -> None:
    if not endpoint.is_enabled:
        raise InvalidRequest("this webhook is disabled; enable it first")


def _to_endpoint(row: Row[Any]) -> Endpoint:
    columns = dict(row._mapping)
    return Endpoint(events=tuple(map(EventType, columns.pop("events"))), **columns)


def _to_delivery(row: Row[Any]) -> Delivery:
    columns = dict(row._mapping)
    type_, status = EventType(columns.pop("type")), DeliveryStatus(columns.pop("status"))
    return Delivery(type=type_, status=status, **columns)
