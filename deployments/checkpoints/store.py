"""What an object store must do. Two do it: a directory (`local`) and a bucket of an S3 server (`s3`)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_OBJECT_BYTES = 5 * 1024**3
"""S3 copies no more by one call, and without a copy an object cannot be touched."""

MAX_FREE_KEY_BYTES = 5 * 1024 * 1024
"""A longer object has its digest in its key. It may have to be sent in parts, and servers that refuse a second object
reliably do not all do so where several such uploads end at once; then it must not matter which of them is kept."""

CHUNK_BYTES = 1024 * 1024

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class UnusableStore(ValueError):
    """The store cannot be used as it is set up; a sentence for whoever runs the service."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """size: in bytes. modified_at: when it was created or last touched by the store's clock, in Unix seconds."""

    key: str
    size: int
    modified_at: float


class ObjectStore(Protocol):
    """Objects under keys such as `blobs/sha256/0a1b`. An object never changes; it appears whole or not at all.

    Every method blocks, may be called by several threads at once, and raises ObjectStoreError if the store does not
    answer, or not as it should. None waits for ever.
    """

    def create(self, key: str, source: bytes | Path, *, sha256: str) -> bool:
        """Makes an object, which is durable when this returns; False: the key is taken, and nothing changed.

        Of several callers at once, one makes it; several may be told so if it is longer than MAX_FREE_KEY_BYTES, and
        then all bring the same. A caller whose connection broke may be told False about an object of its own. Raises
        ValueError if the source's digest is not the given one, or as `check_source` does.
        """
        ...

    def chunks(self, key: str, *, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, fewer where the object ends earlier. Raises ObjectNotFound."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, a key that ends in a slash; in no certain order."""
        ...

    def delete(self, key: str) -> None:
        """Does nothing where there is no such object."""
        ...

    def touch(self, key: str) -> None:
        """Makes the object as young as a new one. Raises ObjectNotFound."""
        ...

    def drop_unfinished(self, *, before: float) -> int:
        """Removes what calls of `create` that never ended left behind before that Unix time; returns how many."""
        ...

    def is_open_to_strangers(self, key: str) -> bool:
        """Whether somebody without credentials can read this object, or make one beside it."""
        ...


def check_source(key: str, size: int, *, sha256: str) -> None:
    """Raises ValueError if no object of this size may be created under this key."""
    if size > MAX_OBJECT_BYTES:
        raise ValueError(f"an object has at most {MAX_OBJECT_BYTES} bytes")
    if size > MAX_FREE_KEY_BYTES and sha256 not in key:
        raise ValueError(f"an object of more than {MAX_FREE_KEY_BYTES} bytes needs a key with its digest in it")


def is_key(key: str) -> bool:
    """Whether objects may have this key: no longer than a name may be, and leading out of no directory."""
    return len(key) <= 500 and _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key. Raises ValueError if it is none."""
    if not is_key(key):
        raise ValueError(f"{key!r} is not an object's key")
    return key
