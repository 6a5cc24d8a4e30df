"""Jobs as their owners see them: what is checked before one is made, and waiting for its end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.config import ModelConfig
from deployments.errors import (
    InvalidParameter,
    InvalidRequest,
    InvalidTrainingData,
    JobNotFound,
    ModelNotFound,
    RateLimited,
    StorageError,
)
from deployments.training import TrainingParams
from deployments.training_documents import Document
from serve_app.config import FineTuningConfig
from serve_app.jobs.job import Job, JobStatus, TrainingFile
from serve_app.stores.database import open_database
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.fine_tuning import FineTuneCommand, FineTuning
from serve_app.use_cases.models import ModelCatalog
from serve_app.use_cases.training_files import TrainingFiles
from tests.fakes import FakeTokenizer
from tests.job_rows import Clock

CONFIG = FineTuningConfig(max_epochs=10, max_rank=32, max_tokens=100, max_queued_jobs_per_account=3)
MODELS = ModelCatalog((ModelConfig(id="base", source="/nowhere", aliases=("standard",)),))


class Bench:
    def __init__(self, jobs: SqlJobs, files: TrainingFiles) -> None:
        self.files = files
        self.clock = Clock()
        self.nudges = 0
        self.fine_tuning = FineTuning(jobs, files, MODELS, FakeTokenizer(), CONFIG, nudge=self.nudge, now=self.clock)

    def nudge(self) -> None:
        self.nudges += 1

    async def command(self, documents: Sequence[str] = ("four", "five5"), **fields: Any) -> FineTuneCommand:
        file = await self.files.add("me", filename="f", purpose="fine-tune", original=None, documents=documents)
        defaults = {
            "account": "me",
            "key_id": "key",
            "dialect": "totalgpt",
            "base_model": "standard",
            "training_file": file.id,
            "params": TrainingParams(),
        }
        return FineTuneCommand(**defaults | fields)

    async def create(self, **fields: Any) -> Job:
        return await self.fine_tuning.create(await self.command(**fields))


@pytest.fixture
async def bench(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_database(sqlite_url) as database:
        files = TrainingFiles(SqlTrainingFiles(database), ArtifactStore(LocalStore(tmp_path / "objects")), CONFIG)
        bench = Bench(SqlJobs(database), files)
        yield bench
        await bench.fine_tuning.close()


async def test_job_is_stored_and_the_dispatcher_nudged(bench: Bench) -> None:
    job = await bench.create(name="mine", metadata={"team": "blue"})
    assert await bench.fine_tuning.get("me", job.id) == job
    assert (job.status, job.base_model, job.name, job.metadata) == (JobStatus.QUEUED, "base", "mine", {"team": "blue"})
    assert job.id.startswith("ftjob-") and len(job.id) == 30
    assert job.model_id.startswith("ft_model_") and len(job.model_id) == 25
    assert bench.nudges == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 11),
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("rank", 33),
        ("dropout", 1.0),
        ("batch_size", 0),
        ("validation_split", 0.6),
        ("num_workers", 2),
        ("seed", -1),
    ],
)
async def test_parameter_out_of_its_range_is_refused_by_name(bench: Bench, name: str, value: float) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await bench.create(params=replace(TrainingParams(), **{name: value}))  # type: ignore[arg-type]
    assert caught.value.param == name
    assert await bench.fine_tuning.list("me") == []


async def test_unknown_model_and_unknown_files_are_refused(bench: Bench) -> None:
    with pytest.raises(ModelNotFound):
        await bench.create(base_model="absent")
    for field in ("training_file", "validation_file"):
        with pytest.raises(InvalidParameter) as caught:
            await bench.create(**{field: "file-absent"})
        assert caught.value.param == field


async def test_file_of_another_account_cannot_be_trained_on(bench: Bench) -> None:
    command = await bench.command()
    with pytest.raises(InvalidParameter):
        await bench.fine_tuning.create(replace(command, account="other"))


async def test_document_without_tokens_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.use_cases.token_counts._BATCH_BYTES", 4)
    with pytest.raises(InvalidTrainingData) as caught:
        await bench.create(documents=["one", "two", "three", ""], data_param="training_data")
    assert caught.value.param == "training_data[3]"


async def test_more_tokens_than_a_job_may_have_are_refused(bench: Bench) -> None:
    params = TrainingParams(epochs=10)
    assert await bench.create(documents=["x" * 10], params=params)
    with pytest.raises(InvalidTrainingData, match="11 tokens"):
        await bench.create(documents=["x" * 10, "x"], params=params)


async def test_job_of_a_request_that_is_sent_again_is_the_same(bench: Bench) -> None:
    first = await bench.create(once=b"name")
    assert await bench.create(once=b"name") == first
    assert len(await bench.fine_tuning.list("me")) == 1
    assert (await bench.create(once=b"other")).id != first.id


async def test_more_jobs_than_may_wait_are_refused(bench: Bench) -> None:
    waiting = [await bench.create(once=bytes([number])) for number in range(3)]
    await bench.fine_tuning.pause("me", waiting[0].id)
    with pytest.raises(RateLimited, match="max_queued_jobs_per_account"):
        await bench.create()
    assert len(await bench.fine_tuning.list("me")) == 3
    assert await bench.create(once=bytes([2])) == waiting[2]
    assert await bench.fine_tuning.cancel("me", waiting[0].id)
    assert await bench.create()


async def test_who_has_no_room_for_another_job_has_no_file_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    command = await bench.command()
    for _ in range(3):
        await bench.fine_tuning.create(command)
    read: list[Any] = []
    monkeypatch.setattr(bench.files, "documents", read.append)
    with pytest.raises(RateLimited):
        await bench.fine_tuning.create(command)
    assert read == []


async def test_files_are_read_two_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    command = await bench.command()
    monkeypatch.setattr(bench.fine_tuning, "_config", CONFIG.model_copy(update={"max_queued_jobs_per_account": 6}))
    now = most = 0
    are_two = asyncio.Event()
    read = bench.files.documents

    async def documents(file: TrainingFile) -> Sequence[Document]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 2:
            are_two.set()
        await are_two.wait()
        found = await read(file)
        now -= 1
        return found

    monkeypatch.setattr(bench.files, "documents", documents)
    await asyncio.gather(*(bench.fine_tuning.create(command) for _ in range(6)))
    assert most == 2


async def test_owner_pauses_resumes_and_cancels(bench: Bench) -> None:
    job = await bench.create()
    assert (await bench.fine_tuning.pause("me", job.id)).status is JobStatus.PAUSED
    assert (await bench.fine_tuning.resume("me", job.id)).status is JobStatus.QUEUED
    cancelled = await bench.fine_tuning.cancel("me", job.id)
    assert cancelled.status is JobStatus.CANCELLED
    assert await bench.fine_tuning.cancel("me", job.id) == cancelled
    with pytest.raises(InvalidRequest):
        await bench.fine_tuning.resume("me", job.id)
    with pytest.raises(JobNotFound):
        await bench.fine_tuning.cancel("other", job.id)
    assert bench.nudges >= 4


async def test_waiting_ends_with_the_job(bench: Bench) -> None:
    job = await bench.create()
    waiting = asyncio.create_task(bench.fine_tuning.wait("me", job.id, timeout_s=30))
    await asyncio.sleep(0.01)
    await bench.fine_tuning.cancel("me", job.id)
    assert (await waiting).status is JobStatus.CANCELLED


async def test_waiting_ends_with_its_time(bench: Bench) -> None:
    job = await bench.create()
    assert await bench.fine_tuning.wait("me", job.id, timeout_s=0.05) == job
    assert await bench.fine_tuning.wait("me", job.id, timeout_s=0) == job


async def test_outage_of_the_database_is_waited_through(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await bench.fine_tuning.cancel("me", (await bench.create()).id)
    get, calls = SqlJobs.get, 0

    async def get_or_fail(store: SqlJobs, account: str, job_id: str) -> Job:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise StorageError("the database does not answer")
        return await get(store, account, job_id)

    monkeypatch.setattr(SqlJobs, "get", get_or_fail)
    assert await bench.fine_tuning.wait("me", job.id, timeout_s=600) == job
    calls = -1000
    with pytest.raises(StorageError):
        await bench.fine_tuning.wait("me", job.id, timeout_s=0.05)
