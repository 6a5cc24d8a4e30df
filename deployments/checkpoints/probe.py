"""Asks a store, before anything relies on it, whether it keeps its promises."""

import secrets
from contextlib import suppress

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.store import UnusableStore
from deployments.errors import ObjectStoreError


def probe(artifacts: ArtifactStore) -> None:
    """Creates an object of a random name, tries to create it again with other content, reads it, and removes it.

    Raises UnusableStore if the second try is not refused, for then two writers would overwrite each other; if what is
    read is not what was written; or if somebody without credentials could read or write. Raises ObjectStoreError if the
    store does not answer, or refuses the credentials.
    """
    objects = artifacts.objects
    key = f"probe/{secrets.token_hex(16)}"
    first, second = b"first", b"second"
    try:
        objects.create(key, first, sha256=sha256(first))
        if objects.create(key, second, sha256=sha256(second)):
            raise UnusableStore(
                "the object store overwrites an object although it is told to create it only if there is none; "
                "it must support conditional writes (If-None-Match)"
            )
        if b"".join(objects.chunks(key, start=1, stop=4)) != first[1:4]:
            raise UnusableStore("the object store does not return the part of an object that it is asked for")
        if objects.is_open_to_strangers(key):
            raise UnusableStore(
                "the object store can be read or written without credentials; training data must not lie open"
            )
    finally:
        with suppress(ObjectStoreError):  # what went wrong before says more
            objects.delete(key)
