"""A directory that is made once, whole or not at all, and is checked against its manifest. Knows nothing of models."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


def prepared(
    directory: Path, make: Callable[[Path], None], *, report: Callable[[str], None], verify_digests: bool = False
) -> Path:
    """`directory`, with the files that `make` writes into an empty directory; made if it is not there or damaged.

    Of several processes one makes it and the others wait. Interrupted or failed, it leaves nothing behind that a
    later call would take for the real thing.
    """
    if is_intact(directory, verify_digests=verify_digests):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(f".{directory.name}.lock"), report):
        if is_intact(directory, verify_digests=verify_digests):
            return directory
        prefix = f".{directory.name}.partial-"
        for leftover in directory.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        if directory.exists():
            report(f"{directory} is damaged and is made again")
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
        try:
            make(partial)
            _write_manifest(partial)
            partial.chmod(0o755)
            if directory.exists():
                shutil.rmtree(directory)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def is_intact(directory: Path, *, verify_digests: bool = False) -> bool:
    """Whether every file of the manifest is there, with its size and, if asked, its digest."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (directory / name).stat().st_size == entry["size_bytes"]
            and (not verify_digests or sha256(directory / name) == entry["sha256"])
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def sha256(file: Path) -> str:
    """The digest of the file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(directory: Path) -> None:
    files = sorted(file for file in directory.iterdir() if file.is_file())
    manifest = {
        "files": {file.name: {"size_bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in [*files, directory / MANIFEST]:
        _flush_to_disk(file)


def _flush_to_disk(file: Path) -> None:
    """A rename may reach the disk before the content does, and a later start checks sizes only."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(file: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Held by one process at a time; the system releases it when the process ends, however it ends."""
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that prepares {file.name.strip('.').removesuffix('.lock')}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
