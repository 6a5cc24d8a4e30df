"""Directories that threads and processes share: held while they are read, given up when there are too many. Blocks."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The directory, made if it is not there, stays until the block ends. Any number may hold it.

    Whoever holds it may make, and make anew, what is in it. Raises OSError if it cannot be made.
    """
    descriptor = _hold(path)
    try:
        yield
    finally:
        os.close(descriptor)  # the lock ends with it, however the process ends


def make_room(parent: Path, *, max_bytes: int, keep: str) -> None:
    """Removes the directories in `parent` that were last changed longest ago until the rest has so many bytes.

    What somebody holds stays, and so does the one named `keep`. While another does this, it is left to that one.
    """
    descriptor = os.open(parent / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor):
            return
        found = sorted((path.stat().st_mtime, path) for path in parent.iterdir() if path.is_dir())
        sizes = {path: _size(path) for _, path in found}
        excess = sum(sizes.values()) - max_bytes
        for _, path in found:
            if excess > 0 and path.name != keep and _removed(path):
                excess -= sizes[path]
    finally:
        os.close(descriptor)


def _hold(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        # Not `exist_ok`, which fails where what was there goes at that moment.
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed just now
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # of a directory that was removed before the lock was there


def _removed(path: Path) -> bool:
    """Removes the directory unless somebody holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _locked(descriptor):
            return False
        shutil.rmtree(path)
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: Path) -> int:
    """Others may be making files in it: what vanishes meanwhile counts nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                continue
    return total
