"""What is kept in the object store: what the database names, as long as it is needed, and nothing else."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.errors import ObjectNotFound
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job
from serve_app.jobs.transitions import Change
from serve_app.stores import retention
from serve_app.stores.database import Database
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.retention import SqlRetention
from serve_app.stores.tables import tuned_models
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.retention import PERIOD_S, Retention
from tests.fake_fine_tuner import checkpoint, finished, progress
from tests.job_rows import Clock, add_job, rows

CONFIG = FineTuningConfig(keep_checkpoints_s=1000.0)
AT = 2_000_000.0


async def change(database: Database, job: Job, *steps: Callable[[Job], Change]) -> None:
    for step in steps:
        await SqlJobs(database).change(job.account, job.id, step)


def claim(job: Job) -> Change:
    return transitions.claimed(job, AT, worker="worker", config=CONFIG)


def save(step: int) -> Callable[[Job], Change]:
    return lambda job: transitions.checkpointed(job, AT, checkpoint(step))


def publish(manifest: str) -> Callable[[Job], Change]:
    return lambda job: transitions.published(job, AT, finished(manifest=manifest), training_time_s=1.0)


async def test_models_and_checkpoints_are_roots_until_they_are_deleted_or_too_old(database: Database) -> None:
    store = SqlRetention(database)
    running, done = await add_job(database), await add_job(database)
    await change(database, running, claim, save(1), save(2))
    await change(database, done, claim, save(3), publish("a" * 64))
    kept = {f"{step:064x}" for step in (1, 2)}
    assert (await store.roots()).manifests == {*kept, f"{3:064x}", "a" * 64}
    await store.forget_progress(AT)
    assert f"{3:064x}" in (await store.roots()).manifests
    await store.forget_progress(AT + 1)
    assert (await store.roots()).manifests == {*kept, "a" * 64}
    async with database.write() as connection:
        await connection.execute(update(tuned_models).values(deleted_at=AT))
    assert (await store.roots()).manifests == kept
    assert {row["job"] for row in await rows(database, "job_checkpoints")} == {running.id}


async def test_metrics_go_with_checkpoints_and_messages_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_MAX_DELETED", 2)
    store = SqlRetention(database)
    going, done = await add_job(database), await add_job(database)

    def measure(job: Job) -> Change:
        return transitions.progressed(job, AT, progress(1), training_time_s=1.0)

    await change(database, going, claim, measure)
    await change(database, done, claim, *[measure] * 5, publish("a" * 64))
    history = [row for row in await rows(database, "job_events") if row["job"] == going.id or row["type"] == "message"]
    await store.forget_progress(AT)
    assert len(await rows(database, "job_events", type="metrics")) == 6
    await store.forget_progress(AT + 1)
    assert await rows(database, "job_events") == history


async def test_files_are_roots_until_they_are_deleted_and_no_job_needs_them(database: Database) -> None:
    store, files = SqlRetention(database), SqlTrainingFiles(database)
    job = await add_job(database)
    validated = await add_job(database, validation_file=job.training_file)
    assert (await store.roots()).blobs == {"d" * 64, "e" * 64}
    for each in (job, validated):
        await files.delete(each.account, each.training_file, AT)
    assert (await store.roots()).blobs == {"d" * 64, "e" * 64}
    await change(database, job, lambda job: transitions.cancelled(job, AT))
    assert (await store.roots()).blobs == {"d" * 64, "e" * 64}  # the other one's validation file
    await change(database, validated, lambda job: transitions.cancelled(job, AT))
    assert (await store.roots()).blobs == set()


async def test_chore_is_done_by_one_of_many_in_each_period(database: Database) -> None:
    store = SqlRetention(database)

    async def ask(now: float) -> int:
        return sum(await asyncio.gather(*(store.is_due("chore", now, period_s=60) for _ in range(5))))

    assert await ask(AT) == 1
    assert await ask(AT + 59) == 0
    assert await ask(AT + 60) == 1
    assert await store.is_due("another", AT, period_s=60)


async def test_objects_that_nothing_names_go_and_others_stay(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    objects = ArtifactStore(LocalStore(tmp_path / "objects"), grace_s=1.0)
    file = tmp_path / "adapter.json"
    file.write_text("{}")
    needed = objects.publish({"adapter.json": file}, {"number": 1}).digest
    old = objects.publish({"adapter.json": file}, {"number": 2}).digest
    blob = objects.put_blob(b"nobody names me")
    job = await add_job(database)
    await change(database, job, claim, publish(needed))
    chore = Retention(SqlRetention(database), objects, CONFIG, now=clock)
    clock.at = file.stat().st_mtime + 1000
    await chore.collect()
    assert objects.read_manifest(needed).about == {"number": 1}
    with pytest.raises(ObjectNotFound):
        objects.read_manifest(old)
    with pytest.raises(ObjectNotFound):
        objects.read_blob(blob, max_bytes=100)
    late = objects.put_blob(b"it is not time yet")
    clock.at += PERIOD_S - 1
    await chore.collect()
    assert objects.read_blob(late, max_bytes=100)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    (tmp_path / "objects" / "manifests" / "sha256" / f"{needed}.json").unlink()
    clock.at += 1
    await chore.collect()
    assert needed in caplog.text
