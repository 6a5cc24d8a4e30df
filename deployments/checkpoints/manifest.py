"""A manifest: the files of one artifact and what is said about it, as canonical JSON that its SHA-256 names.

Canonical: keys sorted, no spaces, ASCII, so that the same content always has the same bytes and the same digest.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.checkpoints.digests import is_digest
from deployments.checkpoints.store import MAX_OBJECT_BYTES
from deployments.errors import CorruptObject

SCHEMA = 1
MAX_BYTES = 1024 * 1024
SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Of files that are data; no format whose reading runs what it contains."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """size: in bytes. sha256: in hexadecimal, which also is the file's blob."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """about: JSON values, chosen by whoever published it. files: in the order of their names."""

    about: Mapping[str, Any]
    files: tuple[ManifestFile, ...]

    @property
    def num_bytes(self) -> int:
        """Of the files together."""
        return sum(file.size for file in self.files)


def encode(manifest: Manifest) -> bytes:
    """Raises ValueError if the manifest is one that `decode` would refuse, or `about` holds what JSON cannot say."""
    _check_files(manifest.files)
    try:
        encoded = _canonical(manifest.about, manifest.files)
        if json.loads(encoded)["about"] != manifest.about:
            raise ValueError("`about` is not the same after it was written as JSON")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"`about` cannot be written as JSON: {error}") from error
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"the manifest has {len(encoded)} bytes, more than {MAX_BYTES}")
    return encoded


def decode(data: bytes) -> Manifest:
    """Raises CorruptObject unless this is exactly what `encode` writes."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r:.20}, not {SCHEMA}")
        if not isinstance(document["about"], dict):
            raise ValueError("what it says about its files is no object")
        manifest = Manifest(document["about"], tuple(ManifestFile(**file) for file in document["files"]))
        _check_files(manifest.files)
        if _canonical(manifest.about, manifest.files) != data:
            raise ValueError("it is not written as manifests are")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptObject(f"a manifest is not understood: {error}") from error
    return manifest


def _canonical(about: Mapping[str, Any], files: Sequence[ManifestFile]) -> bytes:
    document = {
        "schema": SCHEMA,
        "about": about,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in files],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and value.endswith(SUFFIXES)


def _check_files(files: Sequence[ManifestFile]) -> None:
    if not files:
        raise ValueError("it names no files")
    for file in files:
        if not _is_name(file.name):
            raise ValueError(f"{file.name!r:.200} is not a name of a file that may be kept here")
        if type(file.size) is not int or not 0 <= file.size <= MAX_OBJECT_BYTES:
            raise ValueError(f"the size of {file.name} is {file.size!r:.30}")
        if not is_digest(file.sha256):
            raise ValueError(f"the digest of {file.name} is none")
    names = [file.name for file in files]
    if names != sorted(names) or len({name.casefold() for name in names}) < len(names):
        raise ValueError("its files are not in order, or two have the same name")
