"""Brings an object here: its parts in parallel, into memory or into a file that an interrupted call leaves to the next.

Nothing here is verified; see `artifacts`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deployments.checkpoints.parallel import in_parallel, split
from deployments.checkpoints.store import ObjectStore
from deployments.errors import CorruptObject

_DONE = b"\x01"


@dataclass(frozen=True, slots=True)
class Download:
    """From a store, in pieces of `part_bytes`, `max_parallel` at a time.

    Both methods raise ObjectNotFound, ObjectStoreError, and CorruptObject if the object is shorter than `size`.
    """

    store: ObjectStore
    part_bytes: int
    max_parallel: int

    def into_memory(self, key: str, *, size: int) -> bytes:
        buffer = bytearray(size)

        def write(chunk: bytes, position: int) -> None:
            buffer[position : position + len(chunk)] = chunk

        def fetch(part: tuple[int, int]) -> None:
            self._fetch(key, part, write)

        in_parallel(fetch, split(size, self.part_bytes), self.max_parallel)
        return bytes(buffer)

    def into_file(self, key: str, path: Path, *, size: int, marks: Path) -> None:
        """`marks`: a file that remembers which parts of an unfinished `path` are there, so that they are not fetched
        again. Only one call may work on the two at a time. Raises OSError if they cannot be written."""
        parts = split(size, self.part_bytes)
        with _opened(path) as data, _opened(marks) as done:
            if os.fstat(data.number).st_size != size:
                os.ftruncate(done.number, 0)
                os.ftruncate(data.number, size)
            known = os.pread(done.number, len(parts), 0).ljust(len(parts), b"\x00")

            def fetch(index: int) -> None:
                self._fetch(key, parts[index], lambda chunk, position: _write_all(data.number, chunk, position))
                os.pwrite(done.number, _DONE, index)

            in_parallel(fetch, [i for i in range(len(parts)) if known[i : i + 1] != _DONE], self.max_parallel)
            os.fsync(data.number)

    def _fetch(self, key: str, part: tuple[int, int], write: Callable[[bytes, int], object]) -> None:
        position, stop = part
        for chunk in self.store.chunks(key, start=position, stop=stop):
            write(chunk, position)
            position += len(chunk)
        if position != stop:
            raise CorruptObject(f"the object {key} ends at byte {position}, and should not before {stop}")


class _opened:
    """A file, opened to be written anywhere; made if it is not there, and kept as it is if it is."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> "_opened":
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.number)


def _write_all(descriptor: int, chunk: bytes, position: int) -> None:
    rest = memoryview(chunk)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        position += written
        rest = rest[written:]
