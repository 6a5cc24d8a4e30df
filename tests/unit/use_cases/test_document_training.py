"""Documents that come with a request: one job has one file, and no job has none."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.config import ModelConfig
from deployments.errors import InvalidParameter, ReplicaLost, StorageError
from deployments.training import TrainingParams
from serve_app.config import FineTuningConfig
from serve_app.jobs.transitions import Change
from serve_app.stores.database import open_database
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.document_training import DocumentTraining
from serve_app.use_cases.fine_tuning import FineTuneCommand, FineTuning
from serve_app.use_cases.models import ModelCatalog
from serve_app.use_cases.training_files import TrainingFiles
from tests.fakes import FakeTokenizer

MODELS = ModelCatalog((ModelConfig(id="base", source="/nowhere"),))
COMMAND = FineTuneCommand(
    account="me",
    key_id="key",
    dialect="aitextgen",
    base_model="base",
    training_file="",
    params=TrainingParams(),
    once=b"name",
)


class FailingJobs(SqlJobs):
    """errors: what the next attempts to add a job meet."""

    errors: list[Exception]

    async def add(self, change: Change, *, most_queued: int) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        return await super().add(change, most_queued=most_queued)


class Bench:
    def __init__(self, jobs: FailingJobs, files: TrainingFiles) -> None:
        config = FineTuningConfig()
        self.jobs = jobs
        self.files = files
        self.jobs.errors = []
        self.training = DocumentTraining(files, FineTuning(jobs, files, MODELS, FakeTokenizer(), config), config)

    async def create(self) -> str:
        return (await self.training.create(COMMAND, ["Once."], filename="data.jsonl")).training_file

    async def file_ids(self) -> list[str]:
        return [file.id for file in await self.files.list("me")]


@pytest.fixture
async def bench(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_database(sqlite_url) as database:
        store = ArtifactStore(LocalStore(tmp_path / "objects"))
        yield Bench(FailingJobs(database), TrainingFiles(SqlTrainingFiles(database), store, FineTuningConfig()))


async def test_attempts_that_the_database_leaves_open_share_one_file(bench: Bench) -> None:
    bench.jobs.errors = [StorageError("lost"), StorageError("lost")]
    for _ in range(2):
        with pytest.raises(StorageError):
            await bench.create()
    assert await bench.create() == await bench.create()
    assert len(await bench.file_ids()) == 1


@pytest.mark.parametrize("error", [ReplicaLost("gone"), InvalidParameter("no", "epochs"), ValueError("bug")])
async def test_attempt_that_made_no_job_leaves_no_file_and_the_next_makes_another(
    bench: Bench, error: Exception
) -> None:
    bench.jobs.errors = [error]
    with pytest.raises(type(error)):
        await bench.create()
    assert await bench.file_ids() == []
    assert [await bench.create()] == await bench.file_ids()
