"""Under which keys artifacts lie: each object is named by the SHA-256 of its bytes."""

from deployments.checkpoints.digests import check_digest

BLOBS = "blobs/sha256/"
MANIFESTS = "manifests/sha256/"

_MANIFEST_SUFFIX = ".json"


def blob_key(digest: str) -> str:
    """Raises ValueError if it is no digest."""
    return f"{BLOBS}{check_digest(digest)}"


def manifest_key(digest: str) -> str:
    """Raises ValueError if it is no digest."""
    return f"{MANIFESTS}{check_digest(digest)}{_MANIFEST_SUFFIX}"


def digest_in(key: str) -> str:
    """The digest that a blob's or manifest's key names; of any other key, what stands after its last slash."""
    return key.rpartition("/")[2].removesuffix(_MANIFEST_SUFFIX)
