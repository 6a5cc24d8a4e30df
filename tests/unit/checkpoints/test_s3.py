"""How the S3 store takes what a server does wrong; over a fake one."""

import time
from base64 import b64encode
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any

import pytest

from deployments.checkpoints.digests import sha256
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.s3.client import Patience
from deployments.checkpoints.s3.parts import MAX_PARTS, Source, cut
from deployments.checkpoints.s3.store import S3Store
from deployments.checkpoints.store import MAX_FREE_KEY_BYTES, MAX_OBJECT_BYTES, ObjectStore
from deployments.errors import ObjectNotFound, ObjectStoreError
from tests.unit.checkpoints.fake_s3 import FakeS3, Fault

MIB = 1024 * 1024
PATH = "/bucket/prefix/a"
CONTENT = bytes(range(256)) * 8


def store_of(server: FakeS3, **patience: Any) -> S3Store:
    return S3Store("bucket", "prefix", endpoint_url=server.endpoint_url, patience=Patience(**patience))


def create(store: ObjectStore, content: bytes = CONTENT) -> bool:
    return store.create("a", content, sha256=sha256(content))


def test_an_object_is_created_only_if_there_is_none_and_with_its_digest(fake_s3: FakeS3) -> None:
    store = store_of(fake_s3)
    assert create(store)
    assert not create(store, b"other")
    assert fake_s3.objects == {PATH: CONTENT}
    [(method, path, headers), _] = fake_s3.requests
    assert (method, path, headers["If-None-Match"]) == ("PUT", PATH, "*")
    assert headers["x-amz-checksum-sha256"] == b64encode(sha256_of(CONTENT).digest()).decode()


@pytest.mark.parametrize("status_and_code", [(409, "ConditionalRequestConflict"), (503, "SlowDown"), (500, "")])
def test_what_is_no_answer_is_asked_again(fake_s3: FakeS3, status_and_code: tuple[int, str]) -> None:
    fake_s3.faults.append(status_and_code)
    assert create(store_of(fake_s3))
    assert len(fake_s3.requests) == 2


@pytest.mark.parametrize("status_and_code", [(409, "ConditionalRequestConflict"), (500, "InternalError")])
def test_a_server_that_never_answers_properly_is_an_error(fake_s3: FakeS3, status_and_code: tuple[int, str]) -> None:
    fake_s3.faults.extend([status_and_code] * 100)
    with pytest.raises(ObjectStoreError, match=f"PutObject with {status_and_code[1]}"):
        create(store_of(fake_s3))
    assert len(fake_s3.requests) == 5


def test_a_refusal_is_an_error_at_once(fake_s3: FakeS3) -> None:
    fake_s3.faults.append((403, "AccessDenied"))
    with pytest.raises(ObjectStoreError, match="AccessDenied"):
        create(store_of(fake_s3))
    assert len(fake_s3.requests) == 1


def test_a_source_that_is_not_what_its_digest_says(fake_s3: FakeS3) -> None:
    fake_s3.faults.append((400, "BadDigest"))
    with pytest.raises(ValueError, match="is not what it was"):
        create(store_of(fake_s3))


def test_a_body_that_breaks_off_goes_on_where_it_ended(fake_s3: FakeS3) -> None:
    fake_s3.objects[PATH] = CONTENT
    fake_s3.faults.append(Fault.BREAK_OFF)
    assert b"".join(store_of(fake_s3).chunks("a", start=0, stop=len(CONTENT))) == CONTENT
    assert [headers["Range"] for _, _, headers in fake_s3.requests] == ["bytes=0-2047", "bytes=1024-2047"]


def test_a_body_that_always_breaks_off_is_an_error(fake_s3: FakeS3) -> None:
    fake_s3.objects[PATH] = CONTENT
    fake_s3.faults.extend([Fault.BREAK_OFF] * 100)
    with pytest.raises(ObjectStoreError, match="breaks off"):
        list(store_of(fake_s3).chunks("a", start=0, stop=MIB))


def test_a_server_that_says_nothing_is_given_up(fake_s3: FakeS3) -> None:
    fake_s3.faults.extend([Fault.STALL] * 100)
    started_at = time.monotonic()
    with pytest.raises(ObjectStoreError, match="ReadTimeout"):
        store_of(fake_s3, read_s=0.1, attempts=2).head("a")
    assert time.monotonic() - started_at >= 0.2


def test_a_server_that_is_not_there_is_given_up() -> None:
    with FakeS3() as server:
        store = store_of(server)
    with pytest.raises(ObjectStoreError, match="does not answer"):
        store.head("a")


def test_what_is_not_there(fake_s3: FakeS3) -> None:
    store = store_of(fake_s3)
    with pytest.raises(ObjectNotFound):
        store.head("a")
    with pytest.raises(ObjectNotFound):
        list(store.chunks("a", start=0, stop=1))
    with pytest.raises(ObjectNotFound):
        list(store.chunks("a", start=0, stop=0))


def test_a_bucket_that_is_not_there_is_no_missing_object(fake_s3: FakeS3) -> None:
    fake_s3.faults.append((404, "NoSuchBucket"))
    with pytest.raises(ObjectStoreError, match="NoSuchBucket"):
        list(store_of(fake_s3).chunks("a", start=0, stop=1))


def test_an_answer_that_is_no_s3_is_an_error(fake_s3: FakeS3) -> None:
    fake_s3.objects["/bucket?list-type=2&prefix=prefix%2Fblobs%2F&encoding-type=url"] = b"<html>not found"
    with pytest.raises(ObjectStoreError):
        list(store_of(fake_s3).list("blobs/"))


@pytest.mark.parametrize("bundle", ["", "/nowhere/at/all.pem"])
def test_certificates_and_proxies_of_the_environment_do_not_matter_to_a_plain_endpoint(
    fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch, bundle: str
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, bundle)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert create(store_of(fake_s3))


def test_no_secret_stands_in_an_error(fake_s3: FakeS3) -> None:
    fake_s3.faults.append((403, "SignatureDoesNotMatch"))
    with pytest.raises(ObjectStoreError) as raised:
        create(store_of(fake_s3))
    assert "a secret of tests" not in repr(raised.value) + repr(raised.value.__cause__)


def test_the_parts_of_a_source(tmp_path: Path) -> None:
    content = b"x" * (11 * MIB)
    path = tmp_path / "file"
    path.write_bytes(content)
    parts = cut(Source(path), 5 * MIB, sha256=sha256(content))
    assert [(part.number, part.start, part.stop) for part in parts] == [
        (1, 0, 5 * MIB),
        (2, 5 * MIB, 10 * MIB),
        (3, 10 * MIB, 11 * MIB),
    ]
    assert cut(Source(content), 5 * MIB, sha256=sha256(content)) == parts
    with pytest.raises(ValueError, match="is not what it was"):
        cut(Source(path), 5 * MIB, sha256=sha256(b"other"))


def test_an_object_has_a_largest_size(fake_s3: FakeS3, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(MAX_OBJECT_BYTES)
    assert MAX_OBJECT_BYTES / MAX_PARTS < 5 * MIB  # so it has few enough parts, however small they are
    with (tmp_path / "file").open("ab") as file:
        file.write(b"1")
    digest = "0" * 64
    for store in (store_of(fake_s3), LocalStore(tmp_path / "objects")):
        with pytest.raises(ValueError, match=str(MAX_OBJECT_BYTES)):
            store.create(f"blobs/{digest}", tmp_path / "file", sha256=digest)


def test_a_large_object_has_its_digest_in_its_key(fake_s3: FakeS3, tmp_path: Path) -> None:
    for store in (store_of(fake_s3), LocalStore(tmp_path / "objects")):
        assert create(store, b"x" * MAX_FREE_KEY_BYTES)
        with pytest.raises(ValueError, match="needs a key with its digest in it"):
            create(store, b"x" * (MAX_FREE_KEY_BYTES + 1))
