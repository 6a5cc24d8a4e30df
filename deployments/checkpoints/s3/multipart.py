"""Multipart uploads: parts in parallel. An interrupted one is continued by whoever stores the same object next."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from deployments.checkpoints.parallel import in_parallel
from deployments.checkpoints.s3.client import CONFLICT, TAKEN, code_of
from deployments.checkpoints.s3.parts import Part, Source

_OVERTAKEN = ("NoSuchUpload", "InvalidPart")
"""Another caller completed, aborted or changed the upload that this one worked on."""
_TRIES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Multipart:
    """Uploads to a bucket by boto3's client. Its errors are raised as they are; an upload that failed is left for the
    next try, and for `drop_unfinished`."""

    client: Any
    bucket: str
    max_parallel: int

    def create(self, key: str, source: Source, parts: Sequence[Part]) -> bool:
        """False: the key is taken. Raises ClientError, also after several callers were in each other's way."""
        for failures in range(_TRIES):
            upload_id = (self._find(key) if failures == 0 else None) or self._begin(key)
            try:
                self._send(key, upload_id, source, parts)
                return True
            except ClientError as error:
                code = code_of(error)
                if code == TAKEN or (code in _OVERTAKEN and self._exists(key)):
                    self._abort(key, upload_id)
                    return False
                if code not in (CONFLICT, *_OVERTAKEN) or failures == _TRIES - 1:
                    raise
                self._abort(key, upload_id)
            time.sleep(0.05 * 2**failures)
        raise AssertionError("the last try returns or raises")

    def _send(self, key: str, upload_id: str, source: Source, parts: Sequence[Part]) -> None:
        known = self._parts_of(key, upload_id)
        missing = [part for part in parts if not _is_same(part, known.get(part.number))]
        if known:
            logger.info("going on with an interrupted upload: %d of %d parts are missing", len(missing), len(parts))
        etags = {number: part["ETag"] for number, part in known.items()}

        def send(part: Part) -> None:
            answer = self.client.upload_part(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=source.read(part.start, part.stop),
                ChecksumSHA256=part.sha256,
            )
            etags[part.number] = answer["ETag"]

        in_parallel(send, missing, self.max_parallel)
        complete = [{"PartNumber": p.number, "ETag": etags[p.number], "ChecksumSHA256": p.sha256} for p in parts]
        self.client.complete_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": complete}, IfNoneMatch="*"
        )

    def _find(self, key: str) -> str | None:
        """The youngest upload of this object that has not ended."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=key)
        found = [each for page in pages for each in page.get("Uploads", ()) if each["Key"] == key]
        return max(found, key=lambda each: each["Initiated"])["UploadId"] if found else None

    def _begin(self, key: str) -> str:
        answer = self.client.create_multipart_upload(Bucket=self.bucket, Key=key, ChecksumAlgorithm="SHA256")
        return str(answer["UploadId"])

    def _parts_of(self, key: str, upload_id: str) -> dict[int, Mapping[str, Any]]:
        pages = self.client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload_id)
        return {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}

    def _exists(self, key: str) -> bool:
        try:
            self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if code_of(error) != "404":
                raise
            return False
        return True

    def _abort(self, key: str, upload_id: str) -> None:
        with suppress(ClientError):  # it may be gone already; if not, `drop_unfinished` finds it
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)


def _is_same(part: Part, found: Mapping[str, Any] | None) -> bool:
    """Whether a part that the server has is this one. Some servers do not list checksums; their ETag is the MD5."""
    if found is None or found["Size"] != part.stop - part.start:
        return False
    if "ChecksumSHA256" in found:
        return bool(found["ChecksumSHA256"] == part.sha256)
    return bool(found["ETag"].strip('"') == part.md5)
