import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.checkpoints.digests import sha256
from deployments.checkpoints.manifest import MAX_BYTES, Manifest, ManifestFile, decode, encode
from deployments.errors import CorruptObject

DIGEST = sha256(b"")
FILE = ManifestFile("adapter_model.safetensors", 3, DIGEST)

names = st.builds(
    "{}{}".format, st.from_regex("[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), st.sampled_from([".json", ".txt"])
)
files = st.dictionaries(names, st.integers(0, 2**32), min_size=1, max_size=5).filter(
    lambda sizes: len({name.casefold() for name in sizes}) == len(sizes)
)
plain_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(plain_values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def manifest_of(sizes: dict[str, int], about: dict[str, Any]) -> Manifest:
    return Manifest(about, tuple(ManifestFile(name, size, DIGEST) for name, size in sorted(sizes.items())))


@given(files, st.dictionaries(st.text(), values, max_size=5))
def test_what_is_written_is_read(sizes: dict[str, int], about: dict[str, Any]) -> None:
    manifest = manifest_of(sizes, about)
    assert decode(encode(manifest)) == manifest
    assert manifest.num_bytes == sum(sizes.values())


@given(st.dictionaries(st.text(), values, max_size=5))
def test_the_same_content_has_the_same_bytes(about: dict[str, Any]) -> None:
    reversed_about = dict(reversed(about.items()))
    assert encode(Manifest(about, (FILE,))) == encode(Manifest(reversed_about, (FILE,)))


@given(st.binary())
def test_other_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        decode(data)


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_never_reads_as_the_same(position: int, change: int) -> None:
    manifest = Manifest({"kind": "adapter", "steps": 12}, (FILE,))
    data = bytearray(encode(manifest))
    data[position % len(data)] ^= change
    with suppress(CorruptObject):
        assert decode(bytes(data)) != manifest


@pytest.mark.parametrize(
    "name",
    [
        "", ".json", "../up.json", "a/b.json", "a\\b.json", "/etc/passwd.json", "-rf.json", "adapter_model.bin",
        "model.pt", "code.py", "weights.pickle", "a.json\n", "a\x00.json", "ä.json", "a" * 130 + ".json", "json",
    ],
)  # fmt: skip
def test_names_that_no_file_may_have(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name of a file"):
        encode(Manifest({}, (ManifestFile(name, 1, DIGEST),)))
    with pytest.raises(CorruptObject, match="is not a name of a file"):
        decode(document(files=[{"name": name, "size": 1, "sha256": DIGEST}]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "its schema is 2"),
        ({"schema": "1"}, "its schema is '1'"),
        ({"about": []}, "no object"),
        ({"files": []}, "names no files"),
        ({"files": [{"name": "a.json", "size": -1, "sha256": DIGEST}]}, "size of a.json"),
        ({"files": [{"name": "a.json", "size": True, "sha256": DIGEST}]}, "size of a.json"),
        ({"files": [{"name": "a.json", "size": 1.0, "sha256": DIGEST}]}, "size of a.json"),
        ({"files": [{"name": "a.json", "size": 6 * 1024**3, "sha256": DIGEST}]}, "size of a.json"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": DIGEST.upper()}]}, "digest of a.json"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": f"{DIGEST}\n"}]}, "digest of a.json"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": None}]}, "digest of a.json"),
        ({"files": [{"name": ["a"], "size": 1, "sha256": DIGEST}]}, "not a name"),
        ({"files": [{"name": "a.json", "size": 1}]}, "sha256"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": DIGEST, "mode": 0}]}, "mode"),
        ({"files": [{"name": name, "size": 1, "sha256": DIGEST} for name in ("b.json", "a.json")]}, "not in order"),
        ({"files": [{"name": name, "size": 1, "sha256": DIGEST} for name in ("A.json", "a.json")]}, "same name"),
        ({"files": "a.json"}, "mapping"),
        ({"more": 1}, "not written as manifests are"),
    ],
)
def test_what_a_manifest_may_not_say(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptObject, match=reason):
        decode(document(**changes))


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1" * 5000, b" " * (MAX_BYTES + 1)],
    ids=["nothing", "null", "list", "empty", "no text", "deep", "large number", "long"],
)
def test_what_is_no_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptObject, match="not understood"):
        decode(data)


def test_only_the_canonical_form_is_read() -> None:
    data = document()
    decode(data)
    for other in (data + b"\n", data.replace(b":", b": "), data.replace(b'"schema":1', b'"schema":1,"schema":1')):
        with pytest.raises(CorruptObject, match="not written as manifests are"):
            decode(other)


@pytest.mark.parametrize(
    "about",
    [{"a": {1}}, {"a": float("nan")}, {"a": b"bytes"}, {1: "a"}, {"a": (1, 2)}, {"a": "x" * MAX_BYTES}],
    ids=["set", "nan", "bytes", "number as key", "tuple", "long"],
)
def test_about_is_what_json_can_say(about: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"about|JSON|manifest has"):
        encode(Manifest(about, (FILE,)))


def document(**changes: Any) -> bytes:
    """A manifest written without the checks of `encode`."""
    file = {"name": "a.json", "size": 1, "sha256": DIGEST}
    content = {"schema": 1, "about": {"kind": "adapter"}, "files": [file]} | changes
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
