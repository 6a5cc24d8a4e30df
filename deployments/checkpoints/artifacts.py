"""Blobs and artifacts: content-addressed, verified before use, whole or not there at all."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.checkpoints import manifest as manifests
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.download import Download
from deployments.checkpoints.garbage import Garbage, collect
from deployments.checkpoints.layout import blob_key, manifest_key
from deployments.checkpoints.manifest import Manifest, ManifestFile
from deployments.checkpoints.store import MAX_OBJECT_BYTES, ObjectStore
from deployments.checkpoints.workspace import workspace
from deployments.errors import CorruptObject, ObjectNotFound, ObjectStoreError


@dataclass(frozen=True, slots=True)
class Published:
    """digest: of the manifest, by which the artifact is known. num_bytes: of its files together."""

    digest: str
    num_bytes: int


class ArtifactStore:
    """A blob is named by the SHA-256 of its bytes; an artifact, several files, by that of its manifest.

    Every method blocks and may be called by several threads at once. Any of them raises ObjectStoreError if the store
    does not answer, ValueError for what is no digest, and OSError if a file here cannot be read or written.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        part_bytes: int = 16 * 1024 * 1024,
        max_parallel: int = 8,
        grace_s: float = 86400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """grace_s: see CheckpointConfig. clock: Unix seconds, to be compared with those of the store."""
        self.objects = objects
        self._download = Download(objects, part_bytes, max_parallel)
        self._grace_s = grace_s
        self._clock = clock

    def put_blob(self, source: bytes | Path) -> str:
        """The blob's digest. A blob that is there already is young again afterwards, as if it were new.

        It is safe from garbage collection for half the grace period; name it in the database or in a manifest by then.
        Raises CorruptObject if another object lies in its place, ValueError if the file changes meanwhile or is longer
        than MAX_OBJECT_BYTES.
        """
        digest = sha256(source)
        self._put(blob_key(digest), source, digest)
        return digest

    def read_blob(self, digest: str, *, max_bytes: int) -> bytes:
        """Raises ObjectNotFound; CorruptObject if it is not what its digest says, or has more than `max_bytes`."""
        return self._read(blob_key(digest), digest, max_bytes)

    def fetch_blob(self, digest: str, path: Path, *, max_bytes: int = MAX_OBJECT_BYTES) -> None:
        """Makes a file of it, replacing one that is there; not before its content is verified.

        An interrupted call's parts beside the path are used by the next. Raises what `read_blob` does.
        """
        size = self._size(blob_key(digest), max_bytes)
        with workspace(path, digest[:16]) as work:
            self._fetch(digest, work / "data", size, work / "marks")
            os.replace(work / "data", path)

    def publish(self, files: Mapping[str, Path], about: Mapping[str, Any]) -> Published:
        """Stores the files, then the manifest that makes an artifact of them; the same again changes nothing.

        Nobody finds the manifest without its files, whenever this is interrupted. What garbage collection may have
        taken meanwhile of what was there before is stored again at the end. Raises what `put_blob` does, and ValueError
        for names that no manifest may have, or an `about` that JSON cannot say.
        """
        entries = [ManifestFile(name, path.stat().st_size, sha256(path)) for name, path in sorted(files.items())]
        manifest = Manifest(dict(about), tuple(entries))
        encoded = manifests.encode(manifest)
        digest = sha256(encoded)
        objects: list[tuple[str, bytes | Path, str]] = [
            (blob_key(entry.sha256), files[entry.name], entry.sha256) for entry in entries
        ]
        objects.append((manifest_key(digest), encoded, digest))
        were_there = [each for each in objects if not self._put(*each)]
        for each in were_there:
            self._put(*each)
        return Published(digest, manifest.num_bytes)

    def read_manifest(self, digest: str) -> Manifest:
        """Raises ObjectNotFound; CorruptObject if it is not what its digest says, or is not understood."""
        return manifests.decode(self._read(manifest_key(digest), digest, manifests.MAX_BYTES))

    def fetch(self, digest: str, directory: Path) -> Manifest:
        """Makes a directory with the artifact's files, once they are all verified.

        A directory that is there already is verified, and made anew if a file of the artifact is damaged or missing.
        Interrupted, it goes on as `fetch_blob` does. Raises ObjectNotFound, CorruptObject, and FileExistsError if the
        directory holds anything else.
        """
        manifest = self.read_manifest(digest)
        with workspace(directory, digest[:16]) as work:
            if not _holds(directory, manifest):
                files = work / "files"
                files.mkdir(exist_ok=True)
                for file in manifest.files:
                    self._fetch(file.sha256, files / file.name, file.size, work / f"{file.name}.marks")
                shutil.rmtree(directory, ignore_errors=True)
                files.rename(directory)
        return manifest

    def collect_garbage(self, *, manifests: Collection[str], blobs: Collection[str], now: float) -> Garbage:
        """Removes what nothing names any more. manifests, blobs: digests that the database names, read before the call.

        See `garbage.collect` for what is kept and what is raised.
        """
        return collect(
            self.objects,
            self.read_manifest,
            manifests=manifests,
            blobs=blobs,
            before=now - self._grace_s,
            max_parallel=self._download.max_parallel,
        )

    def _put(self, key: str, source: bytes | Path, digest: str) -> bool:
        """Makes the object, or sees to it that one which is there is not old. False: it was there."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        for _ in range(5):
            try:
                found = self.objects.head(key)
                if found.size != size:
                    raise CorruptObject(f"the object {key} has {found.size} bytes instead of {size}")
                if found.modified_at < self._clock() - self._grace_s / 2:
                    self.objects.touch(key)
                return False
            except ObjectNotFound:
                if self.objects.create(key, source, sha256=digest):
                    return True
        raise ObjectStoreError(f"the object {key} comes and goes")

    def _read(self, key: str, digest: str, max_bytes: int) -> bytes:
        size = self._size(key, max_bytes)
        for _ in range(2):  # once more, in case it was the way here that changed it
            content = self._download.into_memory(key, size=size)
            if sha256(content) == digest:
                return content
        raise _differs(digest)

    def _size(self, key: str, max_bytes: int) -> int:
        size = self.objects.head(key).size
        if size > max_bytes:
            raise CorruptObject(f"the object {key} has {size} bytes, more than the {max_bytes} that it may have")
        return size

    def _fetch(self, digest: str, path: Path, size: int, marks: Path) -> None:
        for _ in range(2):  # as in _read
            self._download.into_file(blob_key(digest), path, size=size, marks=marks)
            if sha256(path) == digest:
                return
            path.unlink()
        raise _differs(digest)


def _holds(directory: Path, manifest: Manifest) -> bool:
    """Whether the directory is there and holds the artifact's files, verified."""
    if not directory.exists():
        return False
    names = {file.name for file in manifest.files}
    if unknown := sorted({path.name for path in directory.iterdir()} - names):
        raise FileExistsError(f"{directory} holds {unknown[0]}, which is no file of this artifact")
    return all(
        (directory / file.name).is_file() and sha256(directory / file.name) == file.sha256 for file in manifest.files
    )


def _differs(digest: str) -> CorruptObject:
    return CorruptObject(f"the content of the object {digest} is not what its name says")
