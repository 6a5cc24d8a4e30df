"""Adapters' files on this machine's disk, shared by its generators. Blocks; knows no engine."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.engine.lora.peft_files import read_adapter
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import CorruptObject, InvalidAdapter, ObjectNotFound
from deployments.types import AdapterRef

KIND = "adapter"
"""What an adapter's manifest says that it is."""

_LOCK = ".lock"

logger = logging.getLogger(__name__)


class AdapterFiles:
    """A directory with one for each adapter, named by its digest; those read longest ago go when there is no room.

    Any number of threads and processes may use the directory at the same time.
    """

    def __init__(self, directory: Path, open_store: Callable[[], ArtifactStore], *, max_bytes: int) -> None:
        """`open_store` is called by whoever needs the first adapter that is not here."""
        self._directory = directory
        self._open_store = open_store
        self._store: ArtifactStore | None = None
        self._max_bytes = max_bytes

    def read(self, ref: AdapterRef) -> LoadedAdapter:
        """The adapter, fetched if need be and verified in any case.

        Raises InvalidAdapter where it is none; CorruptObject where it is damaged or missing in the object store;
        ObjectStoreError where that does not answer; OSError where this disk cannot be used.
        """
        path = self._directory / ref.digest
        with self._held(fcntl.LOCK_SH):
            try:
                manifest = self._artifacts().fetch(ref.digest, path)
            except ObjectNotFound as error:
                raise CorruptObject(f"files of the adapter {ref.id!r} are missing in the object store") from error
            if manifest.about.get("kind") != KIND:
                raise InvalidAdapter(f"{ref.id!r} is no adapter")
            os.utime(path)
            adapter = read_adapter(path, ref)
        self._make_room(keep=path)
        return adapter

    def _artifacts(self) -> ArtifactStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _make_room(self, *, keep: Path) -> None:
        """Where others are reading, the next one makes room."""
        try:
            with self._held(fcntl.LOCK_EX | fcntl.LOCK_NB):
                found = sorted(
                    (path.stat().st_mtime, path) for path in self._directory.iterdir() if not path.name.startswith(".")
                )
                sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for _, path in found}
                excess = sum(sizes.values()) - self._max_bytes
                for _, path in found:
                    if excess > 0 and path != keep:
                        excess -= sizes[path]
                        shutil.rmtree(path)
        except BlockingIOError:
            pass

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        """Shared by those who read, alone for who removes."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)
