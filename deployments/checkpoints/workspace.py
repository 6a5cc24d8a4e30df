"""A place beside a file or directory that is being made, for one worker at a time; the next one finds what it left."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def workspace(target: Path, version: str) -> Iterator[Path]:
    """A directory next to `target`, for making this version of it, held alone until the block ends.

    Other threads and processes wait. It is removed when the block succeeds, and stays as it is when it fails or the
    process dies. Raises OSError if it cannot be made.
    """
    path = target.with_name(f".{target.name}.{version}.partial")
    descriptor = _hold(path)
    try:
        yield path
        shutil.rmtree(path)
    finally:
        os.close(descriptor)


def _hold(path: Path) -> int:
    """A descriptor of the directory, locked; the lock ends with it, however the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody finished just now
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # who held it has finished, and removed it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
