"""Adapters' files on this machine's disk, shared by its generators. Blocks; knows no engine."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from deployments.adapters.directories import held, make_room
from deployments.checkpoints import manifest as manifests
from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import check_digest, sha256
from deployments.checkpoints.manifest import Manifest
from deployments.checkpoints.store import UnusableStore
from deployments.engine.lora.peft_files import read_adapter
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import CorruptObject, InvalidAdapter, ObjectNotFound, ObjectStoreError, StorageError
from deployments.types import AdapterRef

KIND = "adapter"
"""What an adapter's manifest says that it is."""

_FILES = "files"
_MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


class AdapterFiles:
    """A directory with one for each adapter, named by its digest; those read longest ago go when there is no room.

    Any number of threads and processes may use the directory at the same time. What is here is read, verified, without
    the object store.
    """

    def __init__(self, directory: Path, open_store: Callable[[], ArtifactStore], *, max_bytes: int) -> None:
        """`open_store` is called by whoever needs the first adapter that is not here."""
        self._directory = directory
        self._open_store = open_store
        self._store: ArtifactStore | None = None
        self._max_bytes = max_bytes

    def read(self, ref: AdapterRef) -> LoadedAdapter:
        """The adapter, fetched if need be.

        Raises InvalidAdapter where it is none; CorruptObject where it is damaged or missing in the object store;
        ObjectStoreError where that does not answer; StorageError where this disk cannot be used.
        """
        try:
            return self._read(ref)
        except OSError as error:
            logger.error("adapters cannot be kept in %s: %s", self._directory, error)
            raise StorageError("this machine's disk cannot keep the adapter at the moment") from error

    def _read(self, ref: AdapterRef) -> LoadedAdapter:
        path = self._directory / check_digest(ref.digest)
        with held(path):
            os.utime(path)
            found = _verified(path, ref.digest)
            manifest = found or self._fetch(ref, path)
            if manifest.about.get("kind") != KIND:
                raise InvalidAdapter(f"{ref.id!r} is no adapter")
            adapter = read_adapter(path / _FILES, ref)
        if found is None:
            self._make_room(keep=path.name)
        return adapter

    def _make_room(self, *, keep: str) -> None:
        """The adapter is here already: a disk on which nothing can be removed is no reason to refuse it."""
        try:
            make_room(self._directory, max_bytes=self._max_bytes, keep=keep)
        except OSError as error:
            logger.error("adapters in %s cannot be removed: %s", self._directory, error)

    def _fetch(self, ref: AdapterRef, path: Path) -> Manifest:
        """Of several that fetch an adapter at the same time, one does, and the others find what it made."""
        try:
            if self._store is None:
                self._store = self._open_store()
            manifest = self._store.fetch(ref.digest, path / _FILES)
        except ObjectNotFound as error:
            raise CorruptObject(f"files of the adapter {ref.id!r} are missing in the object store") from error
        except UnusableStore as error:
            logger.error("adapters cannot be fetched: %s", error)
            raise ObjectStoreError("the object store that holds the adapters is not set up as it must be") from error
        # Whoever finds half of it sees that by its digest.
        (path / _MANIFEST).write_bytes(manifests.encode(manifest))
        return manifest


def _verified(path: Path, digest: str) -> Manifest | None:
    """The manifest of the adapter whose files are all here and undamaged."""
    try:
        encoded = (path / _MANIFEST).read_bytes()
        if sha256(encoded) != digest:
            return None
        manifest = manifests.decode(encoded)
        if any(sha256(path / _FILES / file.name) != file.sha256 for file in manifest.files):
            return None
    except FileNotFoundError:
        return None
    return manifest
