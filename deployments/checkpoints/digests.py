"""SHA-256 of bytes and files."""

import hashlib
import re
from pathlib import Path

_DIGEST = re.compile("[0-9a-f]{64}")


def sha256(source: bytes | Path) -> str:
    """In hexadecimal. Raises OSError if the file cannot be read."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 as `sha256` writes it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def check_digest(value: str) -> str:
    """The digest. Raises ValueError if it is none."""
    if not is_digest(value):
        raise ValueError(f"{value!r} is not a SHA-256 in hexadecimal")
    return value
