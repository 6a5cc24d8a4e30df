"""From the configuration to an ArtifactStore."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.store import ObjectStore, UnusableStore, is_key
from deployments.config import CheckpointConfig

_BUCKET = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_artifacts(config: CheckpointConfig, home: Path) -> ArtifactStore:
    """The store that the configuration names; home: the directory of local state. Asks the store for nothing.

    Raises UnusableStore if the URL names none; for S3 also if there are no credentials, or its client cannot be set up.
    """
    return ArtifactStore(
        _open_objects(config, home),
        part_bytes=config.part_bytes,
        max_parallel=config.max_parallel,
        grace_s=config.grace_s,
    )


def _open_objects(config: CheckpointConfig, home: Path) -> ObjectStore:
    if config.url is None:
        return LocalStore(home / "objects")
    url = urlsplit(config.url)
    if url.query or url.fragment:
        raise UnusableStore(f"the object store's URL {config.url!r} has more than a path in it")
    if url.scheme == "file":
        if url.netloc or not url.path.startswith("/"):
            raise UnusableStore(f"the object store's URL {config.url!r} names no absolute path: file:///directory")
        return LocalStore(Path(unquote(url.path)))
    bucket, prefix = url.netloc, url.path.strip("/")
    if _BUCKET.fullmatch(bucket) is None or (prefix and not is_key(prefix)):
        raise UnusableStore(
            f"the object store's URL {config.url!r} is not s3://bucket/prefix, in letters, digits, -_./"
        )
    from deployments.checkpoints.s3.store import S3Store  # what needs no S3 does not wait for its client

    return S3Store(
        bucket,
        prefix,
        endpoint_url=config.endpoint_url,
        region=config.region,
        part_bytes=config.part_bytes,
        max_parallel=config.max_parallel,
    )
