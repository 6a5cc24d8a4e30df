"""What is sent to an S3 server: bytes or a file, cut into the parts of a multipart upload."""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.checkpoints.parallel import split

MAX_PARTS = 10_000
MIN_PART_BYTES = 5 * 1024 * 1024
"""S3 takes no less, but for the last part."""


class Source:
    """Bytes or a file, read in pieces from any thread."""

    def __init__(self, content: bytes | Path) -> None:
        self._content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[start:stop]
        with self._content.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)


@dataclass(frozen=True, slots=True)
class Part:
    """number: from 1. sha256: in Base64, as S3 writes checksums. md5: in hexadecimal, as it writes ETags."""

    number: int
    start: int
    stop: int
    sha256: str
    md5: str


def cut(source: Source, part_bytes: int, *, sha256: str) -> Sequence[Part]:
    """The parts, read once from beginning to end. Raises ValueError if the whole has another digest."""
    part_bytes = max(part_bytes, MIN_PART_BYTES, -(-source.size // MAX_PARTS))
    whole = hashlib.sha256()
    parts: list[Part] = []
    for number, (start, stop) in enumerate(split(source.size, part_bytes), 1):
        content = source.read(start, stop)
        whole.update(content)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        checksum = b64encode(hashlib.sha256(content).digest()).decode("ascii")
        parts.append(Part(number, start, stop, checksum, md5))
    if whole.hexdigest() != sha256:
        raise changed(sha256)
    return parts


def changed(sha256: str) -> ValueError:
    return ValueError(f"the source of {sha256} is not what it was when its digest was taken")
