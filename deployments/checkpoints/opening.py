"""From the configuration to an ArtifactStore."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.store import ObjectStore, UnusableStore
from deployments.config import CheckpointConfig


def open_artifacts(config: CheckpointConfig, home: Path) -> ArtifactStore:
    """The store that the configuration names; home: the directory of local state. Asks the store for nothing.

    Raises UnusableStore if the URL names none.
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
    if url.netloc or not url.path.startswith("/"):
        raise UnusableStore(f"the object store's URL {config.url!r} names no absolute path: file:///directory")
    return LocalStore(Path(unquote(url.path)))
