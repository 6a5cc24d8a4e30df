"""Real object stores, each reached by its front and by its back door."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.s3.store import S3Store
from deployments.checkpoints.store import ObjectStore
from tests.seaweedfs import BUCKET, SeaweedFS, running_seaweedfs

PART_BYTES = 5 * 1024 * 1024


@dataclass
class Place:
    """An empty store. overwrite: puts other content in an object's place, as a fault would. leave_unfinished: as a
    writer does that dies before it has finished an object of this key."""

    objects: ObjectStore
    overwrite: Callable[[str, bytes], object]
    leave_unfinished: Callable[[str], object]

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.objects, part_bytes=PART_BYTES, max_parallel=4)


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return s3_place(request.getfixturevalue("seaweedfs"), request.getfixturevalue("monkeypatch"))
    directory = tmp_path / "objects"

    def leave_unfinished(_key: str) -> None:
        (directory / ".unfinished").mkdir(parents=True, exist_ok=True)
        (directory / ".unfinished/left").write_bytes(b"half")

    return Place(LocalStore(directory), lambda key, content: (directory / key).write_bytes(content), leave_unfinished)


def s3_place(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    prefix = server.new_url().removeprefix(f"s3://{BUCKET}/")
    client = server.client()
    return Place(
        s3_store(server, prefix),
        lambda key, content: client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=content),
        lambda key: client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{key}"),
    )


def s3_store(server: SeaweedFS, prefix: str) -> S3Store:
    return S3Store(BUCKET, prefix, endpoint_url=server.endpoint_url, part_bytes=PART_BYTES, max_parallel=4)


@pytest.fixture(scope="module")
def own_seaweedfs() -> Iterator[SeaweedFS]:
    """A server that a test may hurt; it must run again afterwards."""
    with running_seaweedfs() as server:
        yield server
