"""Artifacts over every object store."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.layout import blob_key, digest_in
from deployments.checkpoints.probe import probe
from deployments.errors import CorruptObject, ObjectNotFound, ObjectStoreError
from tests.integration.checkpoints.conftest import PART_BYTES, Place

pytestmark = pytest.mark.timeout(180)

WEIGHTS = "adapter_model.safetensors"
YEAR_S = 365 * 86400.0


@pytest.fixture
def artifacts(place: Place) -> ArtifactStore:
    return place.artifacts


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Weights of several parts, the last of them short, and a small file."""
    (tmp_path / WEIGHTS).write_bytes(os.urandom(3 * PART_BYTES + 12345))
    (tmp_path / "adapter_config.json").write_text('{"r": 16}')
    return {name: tmp_path / name for name in (WEIGHTS, "adapter_config.json")}


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Failing:
    """A store that does so many things more, and then fails with this error."""

    objects: Any
    steps_left: int
    error: type[BaseException] = Killed

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.objects, name)

        def count(*arguments: Any, **options: Any) -> Any:
            if self.steps_left == 0:
                raise self.error("injected")
            self.steps_left -= 1
            return call(*arguments, **options)

        return count


def same(directory: Path, files: dict[str, Path]) -> bool:
    found = {path.name: sha256(path) for path in directory.iterdir()}
    return found == {name: sha256(path) for name, path in files.items()}


def test_the_probe_passes_and_leaves_nothing(artifacts: ArtifactStore) -> None:
    probe(artifacts)
    assert list(artifacts.objects.list("probe/")) == []


def test_a_large_artifact_comes_back_as_it_was(
    artifacts: ArtifactStore, files: dict[str, Path], tmp_path: Path
) -> None:
    published = artifacts.publish(files, {"kind": "adapter", "fence": 1})
    assert published.num_bytes == sum(path.stat().st_size for path in files.values())
    assert artifacts.publish(files, {"fence": 1, "kind": "adapter"}) == published
    assert artifacts.fetch(published.digest, tmp_path / "fetched").about == {"kind": "adapter", "fence": 1}
    assert same(tmp_path / "fetched", files)
    digest = sha256(files[WEIGHTS])
    assert artifacts.read_blob(digest, max_bytes=10**9) == files[WEIGHTS].read_bytes()
    artifacts.fetch_blob(digest, tmp_path / "blob")
    assert sha256(tmp_path / "blob") == digest


def test_blobs_of_every_size(artifacts: ArtifactStore) -> None:
    for size in (0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1):
        content = os.urandom(size)
        digest = artifacts.put_blob(content)
        assert artifacts.put_blob(content) == digest
        assert artifacts.read_blob(digest, max_bytes=size) == content


def test_many_fetch_the_same_into_one_place(artifacts: ArtifactStore, files: dict[str, Path], tmp_path: Path) -> None:
    digest = artifacts.publish(files, {}).digest
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: artifacts.fetch(digest, tmp_path / "fetched"), range(4)))
        list(threads.map(lambda _: artifacts.fetch_blob(sha256(files[WEIGHTS]), tmp_path / "blob"), range(4)))
    assert same(tmp_path / "fetched", files)
    assert sha256(tmp_path / "blob") == sha256(files[WEIGHTS])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_many_publish_the_same(artifacts: ArtifactStore, files: dict[str, Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        published = set(threads.map(lambda _: artifacts.publish(files, {"job": "1"}), range(4)))
    assert len(published) == 1
    artifacts.fetch(published.pop().digest, tmp_path / "fetched")
    assert same(tmp_path / "fetched", files)


def test_a_killed_publication_is_whole_or_not_there(place: Place, files: dict[str, Path], tmp_path: Path) -> None:
    files[WEIGHTS].write_bytes(os.urandom(PART_BYTES + 1))
    num_steps = 0
    while True:
        about = {"attempt": num_steps}
        try:
            ArtifactStore(Failing(place.objects, num_steps)).publish(files, about)
            break
        except Killed:
            num_steps += 1
        for found in place.objects.list("manifests/sha256/"):
            digest = str(digest_in(found.key))
            place.artifacts.fetch(digest, tmp_path / f"killed-{num_steps}-{digest[:8]}")
        published = place.artifacts.publish(files, about)
        place.artifacts.fetch(published.digest, tmp_path / f"again-{num_steps}")
        assert same(tmp_path / f"again-{num_steps}", files)
        for found in [*place.objects.list("blobs/sha256/"), *place.objects.list("manifests/sha256/")]:
            place.objects.delete(found.key)
    assert num_steps == 6  # a look and a creation for each of three objects


def test_an_interrupted_fetch_goes_on(place: Place, files: dict[str, Path], tmp_path: Path) -> None:
    digest = place.artifacts.publish(files, {}).digest
    num_steps = 2 + 1 + 4  # the manifest's size and content, the configuration, the parts of the weights
    failing = Failing(place.objects, 5, ObjectStoreError)
    with pytest.raises(ObjectStoreError, match="injected"):
        ArtifactStore(failing, part_bytes=PART_BYTES, max_parallel=1).fetch(digest, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    rest = Failing(place.objects, 100)
    ArtifactStore(rest, part_bytes=PART_BYTES).fetch(digest, tmp_path / "fetched")
    assert same(tmp_path / "fetched", files)
    assert 100 - rest.steps_left == num_steps - 5 + 2  # the manifest is read again


def test_a_corrupt_object_is_noticed(place: Place, files: dict[str, Path], tmp_path: Path) -> None:
    artifacts = place.artifacts
    published = artifacts.publish(files, {})
    content = bytearray(files[WEIGHTS].read_bytes())
    content[PART_BYTES * 2] ^= 1
    place.overwrite(blob_key(sha256(files[WEIGHTS])), bytes(content))
    with pytest.raises(CorruptObject):
        artifacts.fetch(published.digest, tmp_path / "fetched")
    with pytest.raises(CorruptObject):
        artifacts.read_blob(sha256(files[WEIGHTS]), max_bytes=10**9)
    assert not (tmp_path / "fetched").exists()

    place.overwrite(f"manifests/sha256/{published.digest}.json", b"{}")
    with pytest.raises(CorruptObject):
        artifacts.read_manifest(published.digest)


def test_garbage_is_collected_and_nothing_else(place: Place, files: dict[str, Path], tmp_path: Path) -> None:
    artifacts = place.artifacts
    files[WEIGHTS].write_bytes(os.urandom(PART_BYTES + 1))
    notes = tmp_path / "notes.txt"
    notes.write_text("of a job that nobody remembers")
    kept = artifacts.publish(files, {"job": "kept"}).digest
    shared = artifacts.publish({"adapter_config.json": files["adapter_config.json"]}, {"job": "dropped"}).digest
    dropped = artifacts.publish({"notes.txt": notes}, {"job": "dropped"}).digest
    named, unnamed = artifacts.put_blob(b"named"), artifacts.put_blob(b"unnamed")
    place.leave_unfinished("blobs/sha256/left")

    young = artifacts.collect_garbage(manifests=[kept], blobs=[named], now=time.time())
    assert (young.num_manifests, young.num_blobs, young.num_unfinished) == (0, 0, 0)

    garbage = artifacts.collect_garbage(manifests=[kept], blobs=[named], now=time.time() + YEAR_S)
    assert (garbage.num_manifests, garbage.num_blobs, garbage.num_unfinished) == (2, 2, 1)
    artifacts.fetch(kept, tmp_path / "fetched")
    assert same(tmp_path / "fetched", files)
    assert artifacts.read_blob(named, max_bytes=10) == b"named"
    for digest in (shared, dropped):
        with pytest.raises(ObjectNotFound):
            artifacts.read_manifest(digest)
    with pytest.raises(ObjectNotFound):
        artifacts.read_blob(unnamed, max_bytes=10)
