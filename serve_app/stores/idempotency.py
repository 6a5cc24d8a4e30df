"""Idempotent requests and their answers, in SQL."""

import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, and_, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import Conflict, IdempotencyMismatch
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import idempotent_requests, owners
from serve_app.stores.upsert import insert_new
from serve_app.use_cases.idempotency import KEPT_FOR_S, KeptAnswer

_columns = idempotent_requests.c


class SqlIdempotentRequests:
    """See `serve_app.use_cases.idempotency.IdempotentRequests`. owner: this process, which beats in `owners`."""

    def __init__(self, database: Database, owner: str, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._owner = owner
        self._now = now

    async def begin(self, account: str, key: str, fingerprint: bytes) -> KeptAnswer | None:
        now = self._now()
        values = {
            "fingerprint": fingerprint,
            "owner": self._owner,
            "created_at": now,
            "expires_at": now + KEPT_FOR_S,
            "status": None,
            "headers": None,
            "body": None,
        }
        is_alive = exists().where(owners.c.id == _columns.owner, owners.c.alive_until > now)
        found = select(idempotent_requests, is_alive.label("is_alive")).where(_is(account, key)).with_for_update()
        take = update(idempotent_requests).where(_is(account, key)).values(values)

        async def work(connection: AsyncConnection) -> KeptAnswer | None:
            if await insert_new(connection, idempotent_requests, {"account": account, "key": key, **values}):
                return None
            row = (await connection.execute(found)).one_or_none()
            if row is None:  # the row that was in the way has been abandoned at this moment
                return await work(connection)
            is_expired = row.expires_at <= now
            if not is_expired and row.fingerprint != fingerprint:
                raise IdempotencyMismatch("this idempotency key was used for another request; take a new one for each")
            if not is_expired and row.owner is None:
                return KeptAnswer(row.status, tuple(map(tuple, row.headers)), row.body)
            if not is_expired and row.is_alive:
                raise Conflict("the request with this idempotency key is running; send it again later for its answer")
            await connection.execute(take)
            return None

        return await self._database.transact(work)

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        kept = {"owner": None, "status": answer.status, "headers": list(answer.headers), "body": answer.body}
        statement = update(idempotent_requests).where(self._is_mine(account, key)).values(kept)
        await self._database.transact(lambda connection: connection.execute(statement))

    async def abandon(self, account: str, key: str) -> None:
        statement = delete(idempotent_requests).where(self._is_mine(account, key))
        await self._database.transact(lambda connection: connection.execute(statement))

    async def delete_expired(self) -> None:
        """Makes room; to be called now and then by any process."""
        statement = delete(idempotent_requests).where(_columns.expires_at <= self._now())
        await self._database.transact(lambda connection: connection.execute(statement))

    def _is_mine(self, account: str, key: str) -> ColumnElement[bool]:
        return and_(_is(account, key), _columns.owner == self._owner)


def _is(account: str, key: str) -> ColumnElement[bool]:
    return and_(owned_by(idempotent_requests, account), _columns.key == key)
