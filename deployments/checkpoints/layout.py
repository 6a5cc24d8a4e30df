"""Under which keys artifacts lie: each object is named by the SHA-256 of its bytes."""

from deployments.checkpoints.digests import check_digest, is_digest

BLOBS = "blobs/sha256/"
MANIFESTS = "manifests/sha256/"

_MANIFEST_SUFFIX = ".json"


def blob_key(digest: str) -> str:
    """Raises ValueError if it is no digest."""
    return f"{BLOBS}{check_digest(digest)}"


def manifest_key(digest: str) -> str:
    """Raises ValueError if it is no digest."""
    return f"{MANIFESTS}{check_digest(digest)}{_MANIFEST_SUFFIX}"


def digest_in(key: str) -> str | None:
    """The digest that a blob's or manifest's key names; None: it is another key."""
    digest = key.rpartition("/")[2].removesuffix(_MANIFEST_SUFFIX)
    return digest if is_digest(digest) and key in (blob_key(digest), manifest_key(digest)) else None
