"""Deliveries of webhooks as the processes that send them share them, in SQL."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, and_, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.stores.database import Database
from serve_app.stores.outbox import IS_LIVE, end_pending, ended
from serve_app.stores.tables import webhook_deliveries, webhook_endpoints, webhook_events
from serve_app.use_cases.webhook_delivery import Claim
from serve_app.webhooks.attempt import Attempt
from serve_app.webhooks.endpoint import DeliveryStatus
from serve_app.webhooks.event import EventType
from serve_app.webhooks.sharing import Parcel, choose, full_accounts, full_endpoints

_MAX_DUE = 256
"""How many deliveries are looked at by one claim."""
_MAX_DELETED = 1000

_columns = webhook_deliveries.c
_endpoint = webhook_endpoints.c
_event = webhook_events.c


class SqlOutbox:
    """See `serve_app.use_cases.webhook_delivery.Outbox`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, now: float, lease_until: float, sending: Collection[Parcel]) -> Sequence[Claim]:
        is_due = and_(
            _columns.next_at <= now,
            _columns.account.not_in(full_accounts(sending)),
            _columns.endpoint.not_in(full_endpoints(sending)),
        )
        # Most often there is nothing to send, and nobody need wait for that.
        async with self._database.read() as connection:
            if not (await connection.execute(select(exists().where(is_due)))).scalar_one():
                return ()
        due = (
            select(_columns.id, _columns.account, _columns.endpoint)
            .where(is_due)
            .order_by(_columns.next_at, _columns.id)
            .limit(_MAX_DUE)
            .with_for_update(skip_locked=True)
        )
        lease = {"leased": True, "next_at": lease_until, "fence": _columns.fence + 1, "attempted_at": now}

        async def work(connection: AsyncConnection) -> Sequence[Claim]:
            parcels = [Parcel(*row) for row in await connection.execute(due)]
            chosen = [parcel.id for parcel in choose(parcels, sending)]
            await connection.execute(update(webhook_deliveries).where(_columns.id.in_(chosen)).values(lease))
            rows = (await connection.execute(_claimed(chosen))).all()
            lost = [row.id for row in rows if not row.is_live]
            if lost:  # their endpoints went while they were added or sent
                values = ended(DeliveryStatus.FAILED, now) | {"error": "the endpoint was disabled or deleted"}
                await connection.execute(update(webhook_deliveries).where(_columns.id.in_(lost)).values(values))
            return [_claim(row) for row in rows if row.is_live]

        return await self._database.transact(work)

    async def record(
        self, claim: Claim, attempt: Attempt, next_at: float | None, *, disable_failing_since: float
    ) -> str | None:
        is_mine = and_(_columns.id == claim.parcel.id, _columns.fence == claim.fence, _columns.leased)
        # KEY SHARE, which new deliveries take of their endpoint, is let in.
        found = select(webhook_endpoints).where(_endpoint.id == claim.parcel.endpoint).with_for_update(key_share=True)

        async def work(connection: AsyncConnection) -> str | None:
            endpoint = (await connection.execute(found)).one()
            changes, why = _endpoint_after(endpoint, claim, attempt, next_at, disable_failing_since)
            is_live = endpoint.disabled_at is None and endpoint.deleted_at is None and why is None
            values = _delivery_after(claim, attempt, next_at if is_live else None)
            if (await connection.execute(update(webhook_deliveries).where(is_mine).values(values))).rowcount == 0:
                return None  # the lease ended, and another process has it
            if changes:
                statement = update(webhook_endpoints).where(_endpoint.id == endpoint.id).values(changes)
                await connection.execute(statement)
            if why is not None:
                await end_pending(connection, endpoint.id, attempt.at, "the endpoint was disabled")
            return why

        return await self._database.transact(work)

    async def forget(self, before: float) -> None:
        has_deliveries = exists().where(_columns.event == _event.id)
        is_called = exists().where(_columns.endpoint == _endpoint.id)
        for old in (
            select(_columns.id).where(_columns.finished_at < before),
            select(_event.id).where(_event.at < before, ~has_deliveries),
            select(_endpoint.id).where(_endpoint.deleted_at < before, ~is_called),
        ):
            while await self._delete_some(old):
                pass

    async def _delete_some(self, old: Select[tuple[str]]) -> int:
        """In parts, so that nobody waits long for the database."""
        [column] = old.selected_columns
        table = column.table

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(delete(table).where(column.in_(old.limit(_MAX_DELETED))))).rowcount

        return await self._database.transact(work)


def _claimed(ids: Sequence[str]) -> Select[Any]:
    return (
        select(
            webhook_deliveries,
            _endpoint.url,
            _endpoint.secret,
            _endpoint.old_secret,
            _endpoint.old_secret_until,
            IS_LIVE.label("is_live"),
            _event.type,
            _event.payload,
        )
        .join_from(webhook_deliveries, webhook_endpoints)
        .join(webhook_events)
        .where(_columns.id.in_(ids))
    )


def _claim(row: Row[Any]) -> Claim:
    return Claim(
        parcel=Parcel(row.id, row.account, row.endpoint),
        fence=row.fence,
        attempts=row.attempts,
        url=row.url,
        secret=row.secret,
        old_secret=row.old_secret,
        old_secret_until=row.old_secret_until,
        event=row.event,
        type=EventType(row.type),
        payload=row.payload,
    )


def _delivery_after(claim: Claim, attempt: Attempt, next_at: float | None) -> Mapping[str, Any]:
    values = {
        "attempts": claim.attempts + 1,
        "response_status": attempt.status,
        "response_body": attempt.body if attempt.status is not None else None,
        "error": attempt.error,
    }
    if next_at is not None:
        return {**values, "leased": False, "next_at": next_at}
    return values | ended(DeliveryStatus.SUCCEEDED if attempt.succeeded else DeliveryStatus.FAILED, attempt.at)


def _endpoint_after(
    endpoint: Row[Any], claim: Claim, attempt: Attempt, next_at: float | None, disable_failing_since: float
) -> tuple[Mapping[str, Any], str | None]:
    """What changes of the endpoint, and why it is disabled by this attempt, if it is.

    A test that fails tells nothing of how events fare; and an event has all of its attempts first.
    """
    if attempt.succeeded:
        return ({"failing_since": None} if endpoint.failing_since is not None else {}), None
    changes: Mapping[str, Any] = {}
    why = None
    if claim.type is not EventType.TEST:
        failing_since = attempt.at if endpoint.failing_since is None else endpoint.failing_since
        changes = {"failing_since": failing_since}
        if next_at is None and failing_since < disable_failing_since:
            why = "every delivery has failed for too long"
    if attempt.is_gone:
        why = "the endpoint answered 410 Gone"
    if endpoint.disabled_at is not None:
        why = None
    return changes if why is None else {**changes, "disabled_at": attempt.at, "disabled_reason": why}, why
