"""Artifacts over stores that fail, lie and change; what holds for real stores is asked in tests/integration."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.layout import BLOBS, blob_key, manifest_key
from deployments.errors import CorruptObject, ObjectNotFound, ObjectStoreError
from tests.unit.checkpoints.memory_store import MemoryStore

PART_BYTES = 100
CONTENT = bytes(range(256)) * 4


class Killed(BaseException):
    """The process ends here."""


class CountingStore(MemoryStore):
    """Remembers which parts of blobs were read. lies: how many of the next reads return a wrong byte."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []
        self.lies = 0

    def chunks(self, key: str, *, start: int, stop: int) -> Iterator[bytes]:
        for chunk in super().chunks(key, start=start, stop=stop):
            if key.startswith(BLOBS):
                self.reads.append((start, stop))
            if self.lies:
                self.lies -= 1
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            yield chunk


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def artifacts(store: CountingStore) -> ArtifactStore:
    return ArtifactStore(store, part_bytes=PART_BYTES, max_parallel=1, clock=lambda: store.now)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"adapter_model.safetensors": CONTENT, "adapter_config.json": b"{}", "notes.txt": b""}
    for name, content in found.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in found}


def test_an_artifact_comes_back_as_it_was(artifacts: ArtifactStore, files: dict[str, Path], tmp_path: Path) -> None:
    about = {"kind": "adapter", "fence": 3, "metrics": {"loss": 0.5}}
    published = artifacts.publish(files, about)
    assert published.num_bytes == len(CONTENT) + 2
    manifest = artifacts.fetch(published.digest, tmp_path / "fetched")
    assert manifest == artifacts.read_manifest(published.digest)
    assert manifest.about == about
    assert [file.name for file in manifest.files] == sorted(files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()} == {
        name: path.read_bytes() for name, path in files.items()
    }


def test_the_same_artifact_again_is_the_same(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path]
) -> None:
    first = artifacts.publish(files, {"job": "1"})
    before = dict(store.objects)
    assert artifacts.publish(files, {"job": "1"}) == first
    assert store.objects == before
    assert artifacts.publish(files, {"job": "2"}).digest != first.digest


def test_files_that_no_manifest_may_name_are_refused_before_anything_is_stored(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.pt"):
        artifacts.publish({**files, "optimizer.pt": files["notes.txt"]}, {})
    with pytest.raises(ValueError, match="about"):
        artifacts.publish(files, {"bytes": b""})
    assert not store.objects


def test_a_killed_publication_is_whole_or_not_there(files: dict[str, Path], tmp_path: Path) -> None:
    """Killed before each of its steps, and published by somebody else afterwards."""
    num_steps = 0
    while True:
        store = CountingStore()
        artifacts = ArtifactStore(store, clock=lambda store=store: store.now)
        steps_left = num_steps

        def kill(_name: str, _key: str) -> None:
            nonlocal steps_left
            if steps_left == 0:
                raise Killed
            steps_left -= 1

        store.before = kill
        try:
            digest = artifacts.publish(files, {}).digest
        except Killed:
            killed = True
        else:
            killed = False
        store.before = lambda _name, _key: None
        for key in store.objects:
            if key.startswith("manifests/"):
                digest = key.removeprefix("manifests/sha256/").removesuffix(".json")
                artifacts.fetch(digest, tmp_path / f"killed-{num_steps}")
        artifacts.fetch(artifacts.publish(files, {}).digest, tmp_path / f"again-{num_steps}")
        if not killed:
            break
        num_steps += 1
    assert num_steps >= 2 * (len(files) + 1)  # a look and a creation for each object


def test_a_blob_that_is_not_there(artifacts: ArtifactStore, tmp_path: Path) -> None:
    digest = sha256(b"nothing")
    with pytest.raises(ObjectNotFound):
        artifacts.read_blob(digest, max_bytes=10)
    with pytest.raises(ObjectNotFound):
        artifacts.fetch_blob(digest, tmp_path / "file")
    with pytest.raises(ObjectNotFound):
        artifacts.fetch(digest, tmp_path / "directory")
    assert not (tmp_path / "file").exists()
    assert not (tmp_path / "directory").exists()


@pytest.mark.parametrize("digest", ["", "abc", "../../etc/passwd", "A" * 64, "0" * 63])
def test_what_is_no_digest(artifacts: ArtifactStore, tmp_path: Path, digest: str) -> None:
    for call in (
        lambda: artifacts.read_blob(digest, max_bytes=10),
        lambda: artifacts.read_manifest(digest),
        lambda: artifacts.fetch_blob(digest, tmp_path / "file"),
        lambda: artifacts.fetch(digest, tmp_path / "directory"),
    ):
        with pytest.raises(ValueError, match="is not a SHA-256"):
            call()


def test_what_came_wrong_once_is_fetched_again(artifacts: ArtifactStore, store: CountingStore, tmp_path: Path) -> None:
    digest = artifacts.put_blob(CONTENT)
    store.lies = 1
    assert artifacts.read_blob(digest, max_bytes=len(CONTENT)) == CONTENT
    store.lies = 1
    artifacts.fetch_blob(digest, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_stays_wrong_is_corrupt(artifacts: ArtifactStore, store: CountingStore, tmp_path: Path) -> None:
    digest = artifacts.put_blob(CONTENT)
    store.objects[blob_key(digest)] = (CONTENT[:-1] + b"?", store.now)
    with pytest.raises(CorruptObject):
        artifacts.read_blob(digest, max_bytes=len(CONTENT))
    with pytest.raises(CorruptObject):
        artifacts.fetch_blob(digest, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_blob_that_is_longer_than_allowed_is_not_read(
    artifacts: ArtifactStore, store: CountingStore, tmp_path: Path
) -> None:
    digest = artifacts.put_blob(CONTENT)
    with pytest.raises(CorruptObject, match="more than the 1023"):
        artifacts.read_blob(digest, max_bytes=1023)
    with pytest.raises(CorruptObject, match="more than the 1023"):
        artifacts.fetch_blob(digest, tmp_path / "file", max_bytes=1023)
    assert store.reads == []


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"more"])
def test_a_file_of_an_artifact_that_has_another_length_is_corrupt(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    digest = artifacts.publish(files, {}).digest
    store.objects[blob_key(sha256(CONTENT))] = (content, store.now)
    if content != CONTENT + b"more":  # of which nobody reads the end
        with pytest.raises(CorruptObject):
            artifacts.fetch(digest, tmp_path / "fetched")
        assert not (tmp_path / "fetched").exists()
    with pytest.raises(CorruptObject, match="bytes instead of"):
        artifacts.put_blob(CONTENT)


def test_a_manifest_that_is_not_what_its_digest_says_is_corrupt(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path]
) -> None:
    first, second = artifacts.publish(files, {"job": "1"}).digest, artifacts.publish(files, {"job": "2"}).digest
    store.objects[manifest_key(first)] = store.objects[manifest_key(second)]
    with pytest.raises(CorruptObject):
        artifacts.read_manifest(first)


def test_a_blob_that_is_no_manifest_is_corrupt_as_one(artifacts: ArtifactStore, store: CountingStore) -> None:
    digest = sha256(b"{}")
    store.create(manifest_key(digest), b"{}", sha256=digest)
    with pytest.raises(CorruptObject, match="not understood"):
        artifacts.read_manifest(digest)


def test_an_interrupted_fetch_goes_on_with_what_it_has(
    artifacts: ArtifactStore, store: CountingStore, tmp_path: Path
) -> None:
    digest = artifacts.put_blob(CONTENT)
    stop_after(store, 4)
    with pytest.raises(ObjectStoreError):
        artifacts.fetch_blob(digest, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert len(store.reads) == 4
    store.before = lambda _name, _key: None
    artifacts.fetch_blob(digest, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sorted(store.reads) == [(start, min(start + PART_BYTES, 1024)) for start in range(0, 1024, PART_BYTES)]
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_artifact_goes_on_with_what_it_has(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path], tmp_path: Path
) -> None:
    digest = artifacts.publish(files, {}).digest
    stop_after(store, 8)
    with pytest.raises(ObjectStoreError):
        artifacts.fetch(digest, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    num_reads = len(store.reads)
    store.before = lambda _name, _key: None
    artifacts.fetch(digest, tmp_path / "fetched")
    assert (tmp_path / "fetched/adapter_model.safetensors").read_bytes() == CONTENT
    assert 1 < num_reads < len(store.reads)
    assert len(set(store.reads)) == len(store.reads)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def stop_after(store: CountingStore, num_reads: int) -> None:
    """The store answers so many reads of content, and then none."""
    left = num_reads

    def stop(name: str, _key: str) -> None:
        nonlocal left
        if name == "chunks":
            if left == 0:
                raise ObjectStoreError("gone")
            left -= 1

    store.before = stop


def test_a_part_that_the_disk_lost_is_noticed(artifacts: ArtifactStore, store: CountingStore, tmp_path: Path) -> None:
    """After a power loss the file may lack what the marks say it has."""
    digest = artifacts.put_blob(CONTENT)
    stop_after(store, 4)
    with pytest.raises(ObjectStoreError):
        artifacts.fetch_blob(digest, tmp_path / "file")
    store.before = lambda _name, _key: None
    [data] = tmp_path.rglob("data")
    with data.open("r+b") as file:
        file.write(b"lost")
    artifacts.fetch_blob(digest, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_is_replaced(artifacts: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    artifacts.fetch_blob(artifacts.put_blob(b"new"), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_directory_that_is_there_is_verified_and_mended(
    artifacts: ArtifactStore, store: CountingStore, files: dict[str, Path], tmp_path: Path
) -> None:
    digest = artifacts.publish(files, {}).digest
    target = tmp_path / "fetched"
    artifacts.fetch(digest, target)
    store.reads.clear()
    artifacts.fetch(digest, target)
    assert store.reads == []

    (target / "adapter_config.json").write_bytes(b"[]")
    artifacts.fetch(digest, target)
    assert (target / "adapter_config.json").read_bytes() == b"{}"
    (target / "notes.txt").unlink()
    artifacts.fetch(digest, target)
    assert (target / "notes.txt").exists()


def test_a_directory_with_something_else_in_it_is_left_alone(
    artifacts: ArtifactStore, files: dict[str, Path], tmp_path: Path
) -> None:
    digest = artifacts.publish(files, {}).digest
    (tmp_path / "home").mkdir()
    (tmp_path / "home/diary.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match=r"diary\.txt"):
        artifacts.fetch(digest, tmp_path / "home")
    assert os.listdir(tmp_path / "home") == ["diary.txt"]


def test_an_object_that_vanishes_while_it_is_touched_is_created_again(
    artifacts: ArtifactStore, store: CountingStore
) -> None:
    digest = artifacts.put_blob(CONTENT)
    store.now += 10 * 86400

    def vanish(name: str, key: str) -> None:
        if name == "touch":
            del store.objects[key]

    store.before = vanish
    assert artifacts.put_blob(CONTENT) == digest
    assert store.objects[blob_key(digest)] == (CONTENT, store.now)


def test_an_object_that_comes_and_goes_is_an_error(artifacts: ArtifactStore, store: CountingStore) -> None:
    digest = sha256(CONTENT)

    def come_and_go(name: str, _key: str) -> None:
        if name == "create":
            store.objects[blob_key(digest)] = (CONTENT, store.now)
        else:
            store.objects.clear()

    store.before = come_and_go
    with pytest.raises(ObjectStoreError, match="comes and goes"):
        artifacts.put_blob(CONTENT)
