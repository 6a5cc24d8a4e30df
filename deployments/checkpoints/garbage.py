"""Removes from the object store what nothing names any more."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from deployments.checkpoints.layout import BLOBS, MANIFESTS, digest_in
from deployments.checkpoints.manifest import Manifest
from deployments.checkpoints.parallel import in_parallel
from deployments.checkpoints.store import ObjectInfo, ObjectStore
from deployments.errors import ObjectNotFound


@dataclass(frozen=True, slots=True)
class Garbage:
    """What was removed: num_manifests, num_blobs, num_bytes of both, and num_unfinished uploads.

    missing: digests of manifests that should be kept and are not in the store.
    """

    num_manifests: int
    num_blobs: int
    num_bytes: int
    num_unfinished: int
    missing: tuple[str, ...]


def collect(
    objects: ObjectStore,
    read_manifest: Callable[[str], Manifest],
    *,
    manifests: Collection[str],
    blobs: Collection[str],
    before: float,
    max_parallel: int,
) -> Garbage:
    """Removes manifests that are not among `manifests`, then blobs that neither `blobs` nor a manifest still there
    names; of both only what was last touched before that Unix time, asked again right before it is removed. What has
    other names lies there for other reasons, and stays.

    What is published while this works is young, as ArtifactStore makes it, and stays. What is left to chance: this
    finds an object old, stops, another touches it (as the same content is stored again), and this goes on to remove
    it. That needs a pause between two requests that follow each other at once; `publish` looks again at its end and
    mends it, so there the pause must outlast the whole publication. A blob that `put_blob` alone stored again is lost
    in such a case.

    Raises ObjectStoreError; CorruptObject if a manifest that stays cannot be read, for then nobody knows which blobs
    it names: no blob is removed.
    """
    kept = set(manifests)
    removed_manifests: list[ObjectInfo] = []
    for found in objects.list(MANIFESTS):
        digest = digest_in(found.key)
        if digest is not None and digest not in kept:
            if _remove(objects, found, before):
                removed_manifests.append(found)
            else:
                kept.add(digest)
    named, missing = _blobs_named_by(sorted(kept), read_manifest, max_parallel)
    named.update(blobs)
    removed_blobs: list[ObjectInfo] = []
    for found in objects.list(BLOBS):
        digest = digest_in(found.key)
        if digest is not None and digest not in named and _remove(objects, found, before):
            removed_blobs.append(found)
    return Garbage(
        num_manifests=len(removed_manifests),
        num_blobs=len(removed_blobs),
        num_bytes=sum(found.size for found in (*removed_manifests, *removed_blobs)),
        num_unfinished=objects.drop_unfinished(before=before),
        missing=tuple(digest for digest in missing if digest in manifests),
    )


def _remove(objects: ObjectStore, found: ObjectInfo, before: float) -> bool:
    """False if it is not old, or not any more."""
    try:
        if found.modified_at >= before or objects.head(found.key).modified_at >= before:
            return False
    except ObjectNotFound:
        return True
    objects.delete(found.key)
    return True


def _blobs_named_by(
    digests: Sequence[str], read_manifest: Callable[[str], Manifest], max_parallel: int
) -> tuple[set[str], list[str]]:
    """And the manifests that are not there."""
    named: set[str] = set()
    missing: list[str] = []

    def read(digest: str) -> None:
        try:
            named.update(file.sha256 for file in read_manifest(digest).files)
        except ObjectNotFound:
            missing.append(digest)

    in_parallel(read, digests, max_parallel)
    return named, sorted(missing)
