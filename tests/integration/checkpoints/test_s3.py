"""What is special about a real S3 server: uploads that go on, and a server that dies or stands still."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.layout import digest_in
from deployments.checkpoints.opening import open_artifacts
from deployments.checkpoints.s3.client import Patience
from deployments.checkpoints.s3.multipart import Multipart
from deployments.checkpoints.s3.parts import Source, cut
from deployments.checkpoints.s3.store import S3Store
from deployments.config import CheckpointConfig
from deployments.errors import ObjectNotFound, ObjectStoreError
from tests.integration.checkpoints.conftest import PART_BYTES, s3_place, s3_store
from tests.seaweedfs import BUCKET, SeaweedFS

NUM_PARTS = 4


class CountingClient:
    """boto3's, which counts the parts that are sent. fails_after: so many parts, the connection is gone.
    before_complete: is called once, before the upload is completed."""

    def __init__(self, client: Any, fails_after: int = 10**9) -> None:
        self._client = client
        self.num_parts = 0
        self.fails_after = fails_after
        self.before_complete: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upload_part(self, **arguments: Any) -> Any:
        if self.num_parts == self.fails_after:
            raise EndpointConnectionError(endpoint_url="http://test")
        self.num_parts += 1
        return self._client.upload_part(**arguments)

    def complete_multipart_upload(self, **arguments: Any) -> Any:
        act, self.before_complete = self.before_complete, None
        if act is not None:
            act(arguments)
        return self._client.complete_multipart_upload(**arguments)


class Upload:
    """Of one content under one key."""

    def __init__(self, server: SeaweedFS) -> None:
        self.key = server.new_url().removeprefix(f"s3://{BUCKET}/")
        self.content = os.urandom((NUM_PARTS - 1) * PART_BYTES + 1000)
        self._client = server.client()

    def run(self, **options: Any) -> tuple[bool, CountingClient]:
        client = CountingClient(self._client, **options)
        return self.run_with(client), client

    def run_with(self, client: CountingClient) -> bool:
        source = Source(self.content)
        parts = cut(source, PART_BYTES, sha256=sha256(self.content))
        return Multipart(client, BUCKET, 1).create(self.key, source, parts)

    def stored(self) -> bytes:
        return bytes(self._client.get_object(Bucket=BUCKET, Key=self.key)["Body"].read())

    def unfinished(self) -> list[Any]:
        return list(self._client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.key).get("Uploads", ()))


@pytest.fixture
def upload(seaweedfs: SeaweedFS) -> Upload:
    return Upload(seaweedfs)


def test_an_interrupted_upload_goes_on_with_the_parts_that_are_there(upload: Upload) -> None:
    with pytest.raises(EndpointConnectionError):
        upload.run(fails_after=3)
    assert len(upload.unfinished()) == 1
    created, client = upload.run()
    assert created
    assert client.num_parts == NUM_PARTS - 3
    assert upload.stored() == upload.content
    assert upload.unfinished() == []


def test_parts_of_other_content_are_not_taken_for_ours(upload: Upload) -> None:
    with pytest.raises(EndpointConnectionError):
        upload.run(fails_after=3)
    first, upload.content = upload.content, os.urandom(PART_BYTES) + upload.content[PART_BYTES:]
    _, client = upload.run()
    assert client.num_parts == NUM_PARTS - 2
    assert upload.stored() == upload.content != first


def test_an_upload_that_another_completes_is_done(upload: Upload) -> None:
    client = CountingClient(upload._client)
    client.before_complete = lambda arguments: upload._client.complete_multipart_upload(**arguments)
    assert not upload.run_with(client)
    assert upload.stored() == upload.content


def test_an_upload_that_another_aborts_begins_again(upload: Upload) -> None:
    client = CountingClient(upload._client)
    client.before_complete = lambda arguments: upload._client.abort_multipart_upload(
        Bucket=BUCKET, Key=upload.key, UploadId=arguments["UploadId"]
    )
    assert upload.run_with(client)
    assert client.num_parts == 2 * NUM_PARTS
    assert upload.stored() == upload.content


def test_a_key_that_is_taken_meanwhile_is_taken(upload: Upload) -> None:
    client = CountingClient(upload._client)
    client.before_complete = lambda _arguments: upload._client.put_object(Bucket=BUCKET, Key=upload.key, Body=b"first")
    assert not upload.run_with(client)
    assert upload.stored() == b"first"
    assert upload.unfinished() == []


def test_wrong_credentials_are_an_error(s3_config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ObjectStoreError, match="403"):
        open_artifacts(s3_config, Path("/nowhere")).put_blob(b"text")


def test_a_bucket_that_is_not_there_is_an_error(s3_config: CheckpointConfig) -> None:
    artifacts = open_artifacts(s3_config.model_copy(update={"url": "s3://no-such-bucket"}), Path("/nowhere"))
    with pytest.raises(ObjectStoreError, match="NoSuchBucket"):
        artifacts.put_blob(b"text")


@pytest.mark.timeout(180)
def test_a_server_that_stands_still_or_is_gone_is_given_up(
    own_seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_place(own_seaweedfs, monkeypatch)
    patient = ArtifactStore(s3_store(own_seaweedfs, "still"))
    digest = patient.put_blob(b"text")
    patience = Patience(connect_s=0.5, read_s=0.5, attempts=3)
    store = S3Store(BUCKET, "still", endpoint_url=own_seaweedfs.endpoint_url, patience=patience)
    artifacts = ArtifactStore(store)
    sent: list[str] = []
    store._client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.url))

    def all_fail() -> None:
        for call in (
            lambda: artifacts.put_blob(b"text"),
            lambda: artifacts.put_blob(os.urandom(PART_BYTES * 2)),
            lambda: artifacts.read_blob(digest, max_bytes=10),
            lambda: artifacts.fetch_blob(digest, tmp_path / "file"),
            lambda: artifacts.collect_garbage(manifests=(), blobs=(), now=time.time()),
        ):
            sent.clear()
            with pytest.raises(ObjectStoreError):
                call()
            assert len(sent) == patience.attempts

    with own_seaweedfs.paused():
        all_fail()
    own_seaweedfs.kill()
    all_fail()
    own_seaweedfs.start()
    assert patient.read_blob(digest, max_bytes=10) == b"text"


@pytest.mark.timeout(300)
def test_a_killed_server_loses_nothing_that_it_acknowledged(
    own_seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed and started again under writers, who never stop."""
    place = s3_place(own_seaweedfs, monkeypatch)
    artifacts, done = place.artifacts, threading.Event()
    acknowledged: list[tuple[str, bytes]] = []
    published: list[tuple[str, bytes]] = []

    def put_blobs(writer: int) -> None:
        number = 0
        while not done.is_set():
            content = f"{writer} {number}".encode() * (number % 7 * 10_000 + 1)
            try:
                acknowledged.append((artifacts.put_blob(content), content))
                number += 1
            except ObjectStoreError:
                continue  # the same again

    def publish() -> None:
        path = tmp_path / "file"
        while not done.is_set():
            content = os.urandom(PART_BYTES + 1000)
            path.write_bytes(content)
            while not done.is_set():
                try:
                    published.append((artifacts.publish({"file.txt": path}, {}).digest, content))
                    break
                except ObjectStoreError:
                    continue

    writers = [threading.Thread(target=put_blobs, args=(number,)) for number in range(3)]
    writers.append(threading.Thread(target=publish))
    for writer in writers:
        writer.start()
    try:
        for _ in range(3):
            target = len(acknowledged) + 30
            deadline = time.monotonic() + 60
            while (len(acknowledged) < target or not published) and time.monotonic() < deadline:
                time.sleep(0.01)
            own_seaweedfs.kill()
            own_seaweedfs.start()
    finally:
        done.set()
        for writer in writers:
            writer.join()

    assert len(acknowledged) >= 90
    assert published
    for digest, content in acknowledged:
        assert artifacts.read_blob(digest, max_bytes=len(content)) == content
    for number, (digest, content) in enumerate(published):
        artifacts.fetch(digest, tmp_path / f"fetched-{number}")
        assert (tmp_path / f"fetched-{number}/file.txt").read_bytes() == content
    for found in place.objects.list("manifests/sha256/"):  # also those that nobody was told about
        artifacts.fetch(str(digest_in(found.key)), tmp_path / str(digest_in(found.key)))


@pytest.mark.timeout(180)
def test_an_upload_goes_on_after_the_server_was_killed(
    own_seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_place(own_seaweedfs, monkeypatch)
    upload = Upload(own_seaweedfs)
    with pytest.raises(EndpointConnectionError):
        upload.run(fails_after=2)
    own_seaweedfs.kill()
    own_seaweedfs.start()
    created, client = upload.run()
    assert created
    assert client.num_parts == NUM_PARTS - 2
    assert upload.stored() == upload.content


def test_prefixes_of_one_bucket_do_not_see_each_other(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = s3_place(seaweedfs, monkeypatch), s3_place(seaweedfs, monkeypatch)
    digest = one.artifacts.put_blob(b"text")
    with pytest.raises(ObjectNotFound):
        other.artifacts.read_blob(digest, max_bytes=10)
    assert other.artifacts.collect_garbage(manifests=(), blobs=(), now=time.time() + 10**9).num_blobs == 0
    assert one.artifacts.read_blob(digest, max_bytes=10) == b"text"
