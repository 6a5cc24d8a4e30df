from pathlib import Path

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.probe import probe
from deployments.checkpoints.s3.store import S3Store
from deployments.checkpoints.store import UnusableStore
from deployments.errors import ObjectStoreError
from tests.unit.checkpoints.fake_s3 import FakeS3
from tests.unit.checkpoints.memory_store import MemoryStore


def artifacts_of(server: FakeS3) -> ArtifactStore:
    return ArtifactStore(S3Store("bucket", endpoint_url=server.endpoint_url))


def test_a_good_store_passes_and_keeps_nothing(fake_s3: FakeS3, tmp_path: Path) -> None:
    probe(artifacts_of(fake_s3))
    assert not fake_s3.objects
    probe(ArtifactStore(LocalStore(tmp_path)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_that_ignores_conditions_is_refused() -> None:
    with FakeS3(conditional=False) as server, pytest.raises(UnusableStore, match="If-None-Match"):
        probe(artifacts_of(server))
    assert not server.objects


def test_a_server_that_lets_strangers_in_is_refused() -> None:
    with FakeS3(is_open=True) as server, pytest.raises(UnusableStore, match="without credentials"):
        probe(artifacts_of(server))
    assert not server.objects


def test_a_directory_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe").chmod(0o777)
    with pytest.raises(UnusableStore, match="without credentials"):
        probe(ArtifactStore(LocalStore(tmp_path)))


def test_a_store_that_returns_the_whole_for_a_part_is_refused() -> None:
    store = MemoryStore()
    store.chunks = lambda key, *, start, stop: iter([store.objects[key][0]])  # noqa: ARG005
    with pytest.raises(UnusableStore, match="part of an object"):
        probe(ArtifactStore(store))


def test_a_store_that_does_not_answer_is_no_unusable_one(fake_s3: FakeS3) -> None:
    fake_s3.faults.extend([(403, "InvalidAccessKeyId")] * 10)
    with pytest.raises(ObjectStoreError, match="InvalidAccessKeyId"):
        probe(artifacts_of(fake_s3))
