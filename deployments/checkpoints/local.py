"""An object store in a directory of one machine: the embedded default."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from deployments.checkpoints.store import CHUNK_BYTES, ObjectInfo, check_key, check_source
from deployments.errors import ObjectNotFound, ObjectStoreError

_UNFINISHED = ".unfinished"


class LocalStore:
    """Objects are files, readable by their owner alone. Several processes may use the directory at once; its file
    system must know hard links. Nothing is created before the first object is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, key: str, source: bytes | Path, *, sha256: str) -> bool:
        path = self._path(key)
        check_source(key, len(source) if isinstance(source, bytes) else source.stat().st_size, sha256=sha256)
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream, _as_store_errors(key):
            if path.exists():
                return False
            unfinished = self._write(stream, sha256)
            try:
                _make_directory(path.parent)
                os.link(unfinished, path)
                _flush(path.parent)
            except FileExistsError:
                return False
            finally:
                unfinished.unlink()
        return True

    def chunks(self, key: str, *, start: int, stop: int) -> Iterator[bytes]:
        with _as_store_errors(key), self._path(key).open("rb") as stream:
            stream.seek(start)
            while start < stop and (chunk := stream.read(min(CHUNK_BYTES, stop - start))):
                start += len(chunk)
                yield chunk

    def head(self, key: str) -> ObjectInfo:
        with _as_store_errors(key):
            found = self._path(key).stat()
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with _as_store_errors(prefix):
            for path in self._path(prefix.removesuffix("/")).rglob("*"):
                with suppress(FileNotFoundError):  # deleted since
                    found = path.stat()
                    if path.is_file():
                        key = path.relative_to(self._directory).as_posix()
                        yield ObjectInfo(key, found.st_size, found.st_mtime)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(ObjectNotFound), _as_store_errors(key):
            path.unlink()
            _flush(path.parent)

    def touch(self, key: str) -> None:
        with _as_store_errors(key):
            os.utime(self._path(key))

    def drop_unfinished(self, *, before: float) -> int:
        dropped = 0
        with _as_store_errors(_UNFINISHED):
            for path in (self._directory / _UNFINISHED).glob("*"):
                with suppress(FileNotFoundError):  # finished since
                    if path.stat().st_mtime < before:
                        path.unlink()
                        dropped += 1
        return dropped

    def is_open_to_strangers(self, key: str) -> bool:
        path = self._path(key)
        with _as_store_errors(key):
            return bool(path.stat().st_mode & 0o004 or path.parent.stat().st_mode & 0o002)

    def _path(self, key: str) -> Path:
        return self._directory / check_key(key)

    def _write(self, stream: BinaryIO, sha256: str) -> Path:
        """A new file with the stream's bytes, on the disk."""
        directory = self._directory / _UNFINISHED
        _make_directory(directory)
        descriptor, name = tempfile.mkstemp(dir=directory)
        found = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                while chunk := stream.read(CHUNK_BYTES):
                    found.update(chunk)
                    file.write(chunk)
                if found.hexdigest() != sha256:
                    raise ValueError(f"the source of {sha256} is not what it was when its digest was taken")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(name)
            raise
        return Path(name)


def _make_directory(path: Path) -> None:
    """Makes it and what it lies in, durably."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _flush(path.parent)


def _flush(directory: Path) -> None:
    """Until then, a power loss may take back that a file appeared or vanished here."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_store_errors(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"there is no object {key}") from error
    except OSError as error:
        raise ObjectStoreError(f"the object store's directory cannot be used: {error.strerror}") from error
