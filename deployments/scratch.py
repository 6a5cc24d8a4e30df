"""A worker's temporary files: in a directory of its own, which the next worker removes where this one was killed."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "tritext-worker-"


def make_scratch(parent: Path) -> tuple[Path, int]:
    """A new directory in `parent`, and a descriptor that keeps it: by a lock, which ends with this process at the
    latest. What others left in `parent` is removed. Raises OSError."""
    for left in parent.glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _locks(descriptor) and path.exists():
            return path, descriptor
        os.close(descriptor)  # another one took it for left, before it was locked


def _remove_if_left(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it is gone, or another user's
        return
    try:
        if _locks(descriptor):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
