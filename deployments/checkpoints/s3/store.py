"""Objects in a bucket of an S3 server, under a prefix."""

import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deployments.checkpoints.s3.client import CONFLICT, PATIENCE, TAKEN, Patience, as_store_errors, code_of, open_client
from deployments.checkpoints.s3.multipart import Multipart
from deployments.checkpoints.s3.parts import Source, changed, cut
from deployments.checkpoints.store import CHUNK_BYTES, ObjectInfo, check_key, check_source
from deployments.errors import ObjectStoreError

_TRIES = 5


class S3Store:
    """What is longer than `part_bytes` is sent in several parts, `max_parallel` at a time.

    The credentials need to get, put and delete objects, to list the bucket and its multipart uploads, and to abort
    these. In a bucket with versions, `delete` and `touch` leave old versions to its lifecycle rules.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        part_bytes: int = 16 * 1024 * 1024,
        max_parallel: int = 8,
        patience: Patience = PATIENCE,
    ) -> None:
        """prefix: of all keys, without the slash that follows it. Raises UnusableStore, see `open_client`."""
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_bytes = part_bytes

        self._open_client = partial(
            open_client,
            endpoint_url=endpoint_url,
            region=region,
            max_connections=4 * max_parallel,  # a few transfers at once
            patience=patience,
        )
        self._client = self._open_client()
        self._multipart = Multipart(self._client, bucket, max_parallel)

    def create(self, key: str, source: bytes | Path, *, sha256: str) -> bool:
        place, content = self._place(key), Source(source)
        check_source(key, content.size, sha256=sha256)
        with as_store_errors(key):
            try:
                if content.size <= self._part_bytes:
                    return self._create_at_once(place["Key"], content.read(0, content.size), sha256)
                return self._multipart.create(place["Key"], content, cut(content, self._part_bytes, sha256=sha256))
            except ClientError as error:
                if code_of(error) == "BadDigest":
                    raise changed(sha256) from error
                raise

    def chunks(self, key: str, *, start: int, stop: int) -> Iterator[bytes]:
        if start >= stop:
            self.head(key)
            return
        failures = 0
        while start < stop:
            body = self._body(key, start, stop)
            if body is None:
                return
            try:
                while start < stop and (chunk := body.read(CHUNK_BYTES)):
                    start += len(chunk)
                    yield chunk
            except BotoCoreError as error:  # the connection broke; what came is good
                failures += 1
                if failures == _TRIES:
                    raise ObjectStoreError(f"the object store breaks off: {type(error).__name__}") from error
                continue
            finally:
                body.close()
            return

    def head(self, key: str) -> ObjectInfo:
        with as_store_errors(key):
            found = self._client.head_object(**self._place(key))
        return ObjectInfo(key, found["ContentLength"], found["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}"
        )
        with as_store_errors(prefix):
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, found["Size"], found["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        with as_store_errors(key):
            self._client.delete_object(**self._place(key))

    def touch(self, key: str) -> None:
        """A copy onto itself, which S3 makes at once or not at all."""
        place = self._place(key)
        with as_store_errors(key):
            self._client.copy_object(**place, CopySource=place, MetadataDirective="REPLACE")

    def drop_unfinished(self, *, before: float) -> int:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
        with as_store_errors("multipart uploads"):
            uploads = [each for page in pages for each in page.get("Uploads", ())]
            old = [each for each in uploads if each["Initiated"].timestamp() < before]
            for each in old:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=each["Key"], UploadId=each["UploadId"])
        return len(old)

    def is_open_to_strangers(self, key: str) -> bool:
        stranger, beside = self._open_client(signed=False), f"{key}-by-a-stranger"
        with as_store_errors(key):
            with suppress(ClientError):  # refused, as it should be
                stranger.get_object(**self._place(key))
                return True
            with suppress(ClientError):
                stranger.put_object(**self._place(beside), Body=b"")
                self.delete(beside)
                return True
        return False

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{check_key(key)}"}

    def _create_at_once(self, place: str, content: bytes, sha256: str) -> bool:
        for failures in range(_TRIES):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=place,
                    Body=content,
                    IfNoneMatch="*",
                    ChecksumSHA256=b64encode(bytes.fromhex(sha256)).decode("ascii"),
                )
                return True
            except ClientError as error:
                if code_of(error) == TAKEN:
                    return False
                if code_of(error) != CONFLICT or failures == _TRIES - 1:
                    raise
            time.sleep(0.05 * 2**failures)
        raise AssertionError("the last try returns or raises")

    def _body(self, key: str, start: int, stop: int) -> Any:
        """None: the object has no bytes there."""
        with as_store_errors(key):
            try:
                return self._client.get_object(**self._place(key), Range=f"bytes={start}-{stop - 1}")["Body"]
            except ClientError as error:
                if code_of(error) != "InvalidRange":
                    raise
                return None
