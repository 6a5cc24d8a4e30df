"""Fine-tuned models in SQL: published with their jobs, each account sees its own, found by an index."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert

from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job
from serve_app.stores.database import Database
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.tables import jobs, tuned_models
from serve_app.stores.tuned_models import SqlTunedModels
from serve_app.use_cases.tuned_models import ComingModel
from tests.fake_fine_tuner import MANIFEST, finished
from tests.integration.stores.plans import Plans, explain, recorded
from tests.job_rows import add_job, rows

CONFIG = FineTuningConfig()
AT = 2_000_000.0


@pytest.fixture
def models(database: Database) -> SqlTunedModels:
    return SqlTunedModels(database)


async def publish(database: Database, *, at: float = AT, **fields: Any) -> Job:
    """A job that has made its model."""
    store, job = SqlJobs(database), await add_job(database, **fields)
    await store.change(job.account, job.id, lambda job: transitions.claimed(job, at, worker="worker", config=CONFIG))
    return await store.change(
        job.account, job.id, lambda job: transitions.published(job, at, finished(), training_time_s=1.0)
    )


async def test_model_is_coming_until_it_is_published(database: Database, models: SqlTunedModels) -> None:
    job = await add_job(database, account="acme", name="fox")
    assert await models.get("acme", job.model_id) is None
    assert await models.coming("acme", job.model_id) == ComingModel(
        job.model_id, job.key_id, "base", "fox", job.created_at
    )
    job = await publish(database, account="acme", name="fox")
    model = await models.get("acme", job.model_id)
    assert model is not None
    assert (model.id, model.job, model.base_model, model.name) == (job.model_id, job.id, "base", "fox")
    assert (model.manifest, model.num_bytes, model.created_at, model.deployed) == (MANIFEST, 1000, AT, True)
    assert await models.coming("acme", job.model_id) is None


async def test_model_of_a_job_that_failed_is_not_coming(database: Database, models: SqlTunedModels) -> None:
    job = await add_job(database)
    await SqlJobs(database).change(job.account, job.id, lambda job: transitions.cancelled(job, AT))
    assert await models.coming(job.account, job.model_id) is None
    assert await models.get(job.account, job.model_id) is None


async def test_models_are_listed_oldest_first(database: Database, models: SqlTunedModels) -> None:
    published = [await publish(database, account="acme", at=at) for at in (AT + 2, AT, AT + 1)]
    await publish(database, account="other")
    assert [model.id for model in await models.list("acme")] == [published[place].model_id for place in (1, 2, 0)]


async def test_deployment_is_kept(database: Database, models: SqlTunedModels) -> None:
    job = await publish(database, account="acme")
    before = await models.get("acme", job.model_id)
    assert before is not None
    for deployed, undeploy_at in ((False, None), (True, AT + 9.5), (True, None)):
        after = replace(before, deployed=deployed, undeploy_at=undeploy_at)
        assert await models.set_deployed("acme", job.model_id, deployed=deployed, undeploy_at=undeploy_at) == after
        assert await models.get("acme", job.model_id) == after


async def test_deleted_model_is_gone_for_good(database: Database, models: SqlTunedModels) -> None:
    job = await publish(database, account="acme")
    assert await models.delete("acme", job.model_id, AT + 1)
    assert not await models.delete("acme", job.model_id, AT + 2)
    assert await models.get("acme", job.model_id) is None
    assert await models.list("acme") == []
    assert await models.set_deployed("acme", job.model_id, deployed=True, undeploy_at=None) is None


async def test_model_is_not_there_for_another_account(database: Database, models: SqlTunedModels) -> None:
    job = await publish(database, account="acme")
    waiting = await add_job(database, account="acme")
    assert await models.get("other", job.model_id) is None
    assert await models.coming("other", waiting.model_id) is None
    assert await models.list("other") == []
    assert await models.set_deployed("other", job.model_id, deployed=False, undeploy_at=None) is None
    assert not await models.delete("other", job.model_id, AT)
    model = await models.get("acme", job.model_id)
    assert model is not None and model.deployed


async def test_models_are_found_by_an_index(database: Database, models: SqlTunedModels) -> None:
    job = await publish(database, account="acme")
    [job_row], [model_row] = await rows(database, "jobs"), await rows(database, "tuned_models")

    def others(row: Mapping[str, Any], **columns: str) -> list[dict[str, Any]]:
        return [
            {**row, **{name: f"{start}-{number}" for name, start in columns.items()}, "created_at": AT + number}
            for number in range(300)
        ]

    async with database.write() as connection:  # in one transaction: a disk may be slow to keep each
        await connection.execute(insert(jobs), others(job_row, id="job", model_id="model"))
        await connection.execute(insert(tuned_models), others(model_row, id="model", job="job"))
        await connection.exec_driver_sql("ANALYZE")
    plans = Plans()
    with recorded(database, plans):
        await models.get("acme", job.model_id)
        await models.set_deployed("acme", job.model_id, deployed=True, undeploy_at=None)
        await models.coming("acme", job.model_id)
    await explain(database, plans)
    assert plans.plans
    assert plans.scanned == set()
