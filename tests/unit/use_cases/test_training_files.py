"""Files to train on: what is kept, what is refused, and whose they are."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.errors import InvalidTrainingData, NotFound, PayloadTooLarge
from serve_app.config import FineTuningConfig
from serve_app.stores.database import open_database
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.use_cases.training_files import TrainingFiles
from tests.job_rows import Clock

CONFIG = FineTuningConfig(max_data_bytes=1000, max_documents=4)
DOCUMENTS = ["One.\nTwo.", 'She said "no".', "Grüße\u2028aus\u0085München \x00", "日本語"]


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(LocalStore(tmp_path / "objects"))


@pytest.fixture
async def files(sqlite_url: str, artifacts: ArtifactStore) -> AsyncIterator[TrainingFiles]:
    async with open_database(sqlite_url) as database:
        yield TrainingFiles(SqlTrainingFiles(database), artifacts, CONFIG, now=Clock())


async def content(files: TrainingFiles, file_id: str) -> bytes:
    file, num_bytes = await files.open_content("me", file_id)
    with file:
        found = file.read()
    assert len(found) == num_bytes
    return found


async def test_documents_and_file_come_back_as_they_were(files: TrainingFiles, artifacts: ArtifactStore) -> None:
    original = b'{"text": "..."}'
    file = await files.add(
        "me", filename="data.jsonl", purpose="fine-tune", original=original, documents=iter(DOCUMENTS)
    )
    assert (file.bytes, file.num_documents) == (len(original), 4)
    assert file.original == sha256(original).hexdigest()
    assert await files.get("me", file.id) == file
    assert await content(files, file.id) == original
    assert await files.documents(file) == DOCUMENTS
    blob = artifacts.read_blob(file.digest, max_bytes=10_000)
    assert [json.loads(line) for line in blob.split(b"\n")[:-1]] == DOCUMENTS


async def test_file_may_lie_on_a_disk(files: TrainingFiles, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"abc")
    file = await files.add("me", filename="a.txt", purpose="fine-tune", original=path, documents=["abc"])
    assert await content(files, file.id) == b"abc"


async def test_documents_that_came_without_a_file_are_its_lines(files: TrainingFiles) -> None:
    file = await files.add("me", filename="", purpose="fine-tune", original=None, documents=["a", "b"])
    assert await content(files, file.id) == b'"a"\n"b"\n'
    assert file.bytes == 8


@pytest.mark.parametrize(
    ("documents", "param"),
    [([], "texts"), (["a", "b\ud800"], "texts[1]"), (["a"] * 5, "texts")],
    ids=["none", "no text", "too many"],
)
async def test_documents_that_cannot_be_trained_on_are_refused_by_name(
    files: TrainingFiles, documents: list[str], param: str
) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        await files.add("me", filename="f", purpose="p", original=b"x", documents=documents, param="texts")
    assert caught.value.param == param
    assert await files.list("me") == []


@pytest.mark.parametrize(
    ("original", "documents"), [(b"x", ["ü" * 501]), (b"x", ["x" * 500, "y" * 501]), (b"x" * 1001, ["x"])]
)
async def test_more_than_the_limit_is_refused(files: TrainingFiles, original: bytes, documents: list[str]) -> None:
    with pytest.raises(PayloadTooLarge):
        await files.add("me", filename="f", purpose="p", original=original, documents=documents)


async def test_what_reading_the_documents_raises_is_raised(files: TrainingFiles) -> None:
    def documents() -> Iterator[str]:
        yield "one"
        raise InvalidTrainingData("line 2 is no JSON", "file")

    with pytest.raises(InvalidTrainingData, match="line 2"):
        await files.add("me", filename="f", purpose="p", original=b"x", documents=documents())


async def test_deleted_file_is_gone_and_others_see_none(files: TrainingFiles) -> None:
    file = await files.add("me", filename="f", purpose="p", original=b"x", documents=["x"])
    for call in (files.get("other", file.id), files.open_content("other", file.id), files.delete("other", file.id)):
        with pytest.raises(NotFound):
            await call
    assert await files.list("other") == []
    await files.delete("me", file.id)
    for call in (files.get("me", file.id), files.delete("me", file.id)):
        with pytest.raises(NotFound):
            await call
    assert await files.list("me") == []


async def test_object_store_that_does_not_answer_holds_up_nobody_else(
    files: TrainingFiles, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await files.add("me", filename="f", purpose="fine-tune", original=None, documents=["a"])
    is_stalled, goes_on = threading.Event(), threading.Event()

    def stalled(_digest: str, path: Path, *, max_bytes: int) -> None:
        assert max_bytes == file.bytes
        is_stalled.set()
        goes_on.wait(30)
        path.write_bytes(b'"a"\n')

    monkeypatch.setattr(artifacts, "fetch_blob", stalled)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    reading = [asyncio.create_task(content(files, file.id)) for _ in range(9)]
    try:
        while not is_stalled.is_set():
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(lambda: "ready") == "ready"
        assert not any(task.done() for task in reading)
    finally:
        goes_on.set()
    assert await asyncio.gather(*reading) == [b'"a"\n'] * 9
    files.close()
