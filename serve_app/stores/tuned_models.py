"""Fine-tuned models, in SQL."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.job import TunedModel
from serve_app.stores.database import Database
from serve_app.stores.ownership import owned_by
from serve_app.stores.tables import jobs, tuned_models
from serve_app.use_cases.tuned_models import ComingModel

_columns = tuned_models.c


class SqlTunedModels:
    """See `serve_app.use_cases.tuned_models.TunedModelStore`. Rows are added where jobs end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, account: str, model_id: str) -> TunedModel | None:
        statement = select(tuned_models).where(_is(account, model_id))
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else TunedModel(**row._mapping)

    async def coming(self, account: str, model_id: str) -> ComingModel | None:
        columns = (jobs.c.model_id.label("id"), jobs.c.key_id, jobs.c.base_model, jobs.c.name, jobs.c.created_at)
        statement = select(*columns).where(
            owned_by(jobs, account), jobs.c.model_id == model_id, jobs.c.finished_at.is_(None)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else ComingModel(**row._mapping)

    async def list(self, account: str) -> Sequence[TunedModel]:
        statement = (
            select(tuned_models)
            .where(owned_by(tuned_models, account), _columns.deleted_at.is_(None))
            .order_by(_columns.created_at, _columns.id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [TunedModel(**row._mapping) for row in rows]

    async def set_deployed(
        self, account: str, model_id: str, *, deployed: bool, undeploy_at: float | None
    ) -> TunedModel | None:
        statement = (
            update(tuned_models)
            .where(_is(account, model_id))
            .values(deployed=deployed, undeploy_at=undeploy_at)
            .returning(tuned_models)
        )

        async def work(connection: AsyncConnection) -> TunedModel | None:
            row = (await connection.execute(statement)).one_or_none()
            return None if row is None else TunedModel(**row._mapping)

        return await self._database.transact(work)

    async def delete(self, account: str, model_id: str, now: float) -> bool:
        statement = update(tuned_models).where(_is(account, model_id)).values(deleted_at=now)

        async def work(connection: AsyncConnection) -> bool:
            return (await connection.execute(statement)).rowcount == 1

        return await self._database.transact(work)


def _is(account: str, model_id: str) -> ColumnElement[bool]:
    return and_(owned_by(tuned_models, account), _columns.id == model_id, _columns.deleted_at.is_(None))
